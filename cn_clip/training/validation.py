"""Validation: loss and accuracy inside batches, as the reference has them, and recall over each whole set.

The accuracy depends on the batch size. Recall does not: every distinct picture is ranked against every distinct caption,
several right ones included, whatever the batches and ranks (`cn_clip/metrics/first_right.py`).

Shapes: B pairs of a batch, n distinct things that this rank met first, P pairs of all ranks, E embedding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from cn_clip.clip.model import CLIP
from cn_clip.config.schema import Validate
from cn_clip.data.batches import PairBatch
from cn_clip.data.loader import PairLoader
from cn_clip.errors import ConfigError
from cn_clip.metrics.first_right import Exchange, ranks_of_first_right
from cn_clip.metrics.retrieval import DirectionScores, RetrievalScores
from cn_clip.parallel.engines import Engine
from cn_clip.parallel.gather import gather_rows, sum_over_ranks
from cn_clip.parallel.ranks import Ranks
from cn_clip.training.set_features import SetFeatures

logger = logging.getLogger(__name__)

Watched = Callable[[Iterable[PairBatch]], Iterator[PairBatch]]

MAIN_SET = ""
"""Name of `data.valid` among the sets of `data.valid_sets`."""


@dataclass(frozen=True)
class ValidationResult:
    """Of one set."""

    loss: float
    """Nats, inside batches."""
    image_to_text_accuracy: float
    """Share, inside batches."""
    text_to_image_accuracy: float
    """Share, inside batches."""
    logit_scale: float
    """The parameter: the logarithm of the factor of the cosine."""
    batch_size: int
    """Pairs per rank."""
    retrieval: RetrievalScores | None = None
    """Over the whole set; None where it was not asked for."""

    def numbers(self) -> dict[str, float]:
        """Every number by its name in `metrics.jsonl`."""
        inside_batches = {
            "loss": self.loss,
            "image_to_text_accuracy": self.image_to_text_accuracy,
            "text_to_image_accuracy": self.text_to_image_accuracy,
        }
        return inside_batches | ({} if self.retrieval is None else self.retrieval.numbers())


@dataclass(frozen=True)
class ValidationResults:
    """Of every set."""

    of_set: Mapping[str, ValidationResult]
    """Name -> result; `MAIN_SET` is `data.valid`."""

    def numbers(self) -> dict[str, float]:
        """Every number by name; those of a named set begin with it, for example `muge/mean_recall`."""
        return {
            f"{name}/{number}" if name else number: value
            for name, result in self.of_set.items()
            for number, value in result.numbers().items()
        }


def number_names(settings: Validate) -> list[str]:
    """Names of the numbers that a set's validation gives under these settings."""
    retrieval = None
    if settings.recall:
        one = DirectionScores.of(torch.ones(1), settings.recall_at)
        retrieval = RetrievalScores(one, one)
    return list(ValidationResult(0.0, 0.0, 0.0, 0.0, 1, retrieval).numbers())


def check_recall(settings: Validate) -> None:
    """ConfigError for a recall at nothing."""
    if settings.recall and not (settings.recall_at and min(settings.recall_at) >= 1):
        raise ConfigError(
            f"validate.recall_at is {list(settings.recall_at)}: give numbers from 1 on, for example [1, 5, 10], or set "
            "validate.recall=false"
        )


class Validation:
    """Validates one model on the sets of a run."""

    def __init__(
        self,
        model: Engine[CLIP],
        sets: Mapping[str, PairLoader],
        ranks: Ranks,
        settings: Validate,
        watched: Watched = iter,
    ) -> None:
        """
        sets: name -> this rank's batches, as many on every rank; `MAIN_SET` is `data.valid`.
        watched: the same batches, each a sign of life (`Watchdog.watched`).
        """
        self._model, self._sets, self._ranks, self._settings = model, sets, ranks, settings
        self._watched = watched

    def run(self) -> ValidationResults:
        """Validate each set in turn. Collective. Leaves the model in evaluation mode."""
        return ValidationResults(
            {
                name: validate(self._model, loader, self._ranks, self._settings, self._watched)
                for name, loader in self._sets.items()
            }
        )


@torch.no_grad()
def validate(
    model: Engine[CLIP],
    loader: PairLoader,
    ranks: Ranks,
    settings: Validate | None = None,
    watched: Watched = iter,
) -> ValidationResult:
    """Result on one set, in full precision. Collective. Leaves the model in evaluation mode."""
    settings = settings or Validate()
    model.module.eval()
    sums, batch_size = torch.zeros(4, device=ranks.device), 0
    features = SetFeatures(settings.max_pairs)
    for number, batch in enumerate(watched(loader), 1):
        batch = batch.to(ranks.device)
        image_BE, text_BE, scale, *_ = model(batch.images_BCHW, batch.tokens_BL)
        image_BE, text_BE = image_BE.float(), text_BE.float()
        sums += _batch_sums(image_BE, text_BE, scale.float())
        if settings.recall:
            features.add(batch, image_BE, text_BE)
        batch_size = len(batch)
        if number % 100 == 0:
            logger.info("Evaluated %d/%d batches...", number, len(loader))
    loss, image_hits, text_hits, num_pairs = sum_over_ranks(sums, ranks).tolist()
    return ValidationResult(
        loss / num_pairs,
        image_hits / num_pairs,
        text_hits / num_pairs,
        model.module.logit_scale.item(),
        batch_size,
        _retrieval(features, ranks, settings) if settings.recall else None,
    )


def _batch_sums(image_BE: Tensor, text_BE: Tensor, scale: Tensor) -> Tensor:
    """(4,) loss times pairs, right captions, right pictures, pairs."""
    logits_BB = scale * image_BE @ text_BE.T
    match_B = torch.arange(len(logits_BB), device=logits_BB.device)
    loss = (F.cross_entropy(logits_BB, match_B) + F.cross_entropy(logits_BB.T, match_B)) / 2
    image_hits = (logits_BB.argmax(1) == match_B).sum()
    text_hits = (logits_BB.argmax(0) == match_B).sum()
    return torch.stack([loss * len(match_B), image_hits, text_hits, torch.full_like(loss, len(match_B))])


def _retrieval(features: SetFeatures, ranks: Ranks, settings: Validate) -> RetrievalScores:
    # Apple's GPUs have no float64, in which scores are exact
    device = torch.device("cpu") if ranks.device.type == "mps" else ranks.device
    exchange = Exchange(partial(gather_rows, ranks=ranks), partial(sum_over_ranks, ranks=ranks), device)
    pictures, captions, right = features.distinct(exchange, ranks.rank)
    image_ranks_I, text_ranks_T = ranks_of_first_right(pictures, captions, right, exchange)
    ks = settings.recall_at
    return RetrievalScores(DirectionScores.of(text_ranks_T, ks), DirectionScores.of(image_ranks_I, ks))
