"""Two towers under a loss of pairs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # the common base of BatchNorm2d and SyncBatchNorm

from cn_clip.clip.encode_once import Distinct, distinct_ids, distinct_rows, is_repeatable
from cn_clip.clip.model import CLIP
from cn_clip.data.batches import PairBatch
from cn_clip.errors import DeviceError
from cn_clip.losses.pair import PairLoss, SharedOptions
from cn_clip.parallel.engines import Engine
from cn_clip.parallel.rng import pair_keys, seeded, stable_seed
from cn_clip.parallel.wrap import batch_statistics_only, set_training_mode
from cn_clip.training.accumulation import Accumulation
from cn_clip.training.distillation import Distillation, student_features
from cn_clip.training.global_loss import Features, GlobalLoss, gather_ids, global_loss
from cn_clip.training.out_of_memory import MicroBatchTooLargeError, free_memory
from cn_clip.training.task import StepReport

logger = logging.getLogger(__name__)

MAX_LOGIT_SCALE = 4.6052  # ln 100 (arXiv:2103.00020, section 2.5), rounded as the reference rounds it


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How micro-batches are encoded."""

    seed: int
    mask_ratio: Callable[[int], float] = lambda step: 0.0
    """Optimizer step, from 1 -> share of the patches that are left out."""
    keyed: bool = True
    """Dropout and masks follow each pair's place in the global batch; else the micro-batch."""
    text_groups: int = 1
    """Groups of like length that captions are encoded in."""
    once: bool = True
    """Encode what comes twice in a micro-batch once, where nothing random tells the two apart."""
    same_pictures: bool = False
    """Whether a picture that comes twice looks the same both times: no augmentation."""
    survives_shortage: bool = True
    """Halve the micro-batch where memory runs out."""


class ContrastiveTask:
    """Trains a two-tower model on batches of pairs."""

    def __init__(
        self,
        engine: Engine[CLIP],
        pair_loss: PairLoss,
        loss_options: SharedOptions,
        encoding: Encoding,
        *,
        frozen: Sequence[nn.Module] = (),
        distillation: Distillation | None = None,
    ) -> None:
        self.engine, self.module = engine, engine.module
        self._pair_loss, self._options, self._encoding = pair_loss, loss_options, encoding
        self._frozen, self._ranks, self._distillation = frozen, engine.ranks, distillation
        self.pieces = 1
        """What each micro-batch of the loader is cut into; only memory decides."""
        self._fits = engine.ranks.world_size == 1 or not encoding.survives_shortage
        """Whether micro-batches of this size have gone through forward and backward, or need not be tried."""

    def accumulate_gradients(
        self, batches: Sequence[PairBatch], step: int, *, notices: int = 0, diagnose: bool = False
    ) -> StepReport:
        statistics = _copied(_statistics(self.module)) if self._encoding.survives_shortage else {}
        while True:
            parts = [part for batch in batches for part in self._cut(batch)]
            if self._distillation is not None:
                self._distillation.begin()
            try:
                self._rehearse(parts, step)
                found = self._attempt(parts, step, notices=notices, diagnose=diagnose)
                self._fits = True
                report = self._report(found)
                return report.with_numbers(mask_ratio=self._encoding.mask_ratio(step)) if diagnose else report
            except MicroBatchTooLargeError:
                largest = max(len(part) for part in parts)
            self._halve(largest, step)
            _restore(_statistics(self.module), statistics)

    def _cut(self, batch: PairBatch) -> list[PairBatch]:
        if self.pieces == 1:
            return [batch]
        sizes = [len(rows) for rows in batch.positions_B.tensor_split(self.pieces) if len(rows)]
        return batch.split(sizes, self.module.bert.pad_id)

    def _halve(self, largest: int, step: int) -> None:
        if largest == 1:
            raise DeviceError(
                f"memory ran out at step {step} with one pair at a time: set model.recompute=true, a smaller model.image_px "
                "or data.context_length, or parallel.engine=fsdp on several devices"
            )
        self.engine.zero_grad()
        free_memory()
        self.pieces *= 2
        self._fits = self._ranks.world_size == 1
        logger.warning(
            "Memory ran out at step %d: micro-batches are cut to %d pairs, the same step is repeated. It gives %s; to spare "
            "the attempt next time, lower train.batch_size and raise train.accumulate.",
            step,
            -(-largest // 2),
            "the same gradients"
            if self._is_exact
            else "gradients of smaller micro-batches, which BatchNorm and randomness "
            "by micro-batch depend on",
        )

    @property
    def _is_exact(self) -> bool:
        """Whether how a batch is cut changes nothing."""
        norms = (module for module in self.module.modules() if isinstance(module, _BatchNorm))
        return self._encoding.keyed and not any(norm.training for norm in norms)

    def _rehearse(self, parts: Sequence[PairBatch], step: int) -> None:
        """Once for each size: forward and backward of one micro-batch, so that no rank runs short where others wait for it."""
        if self._fits:
            return
        accumulation = Accumulation(engine=self.engine, sizes=[len(parts[0])])
        with self.engine.without_sync(), batch_statistics_only(self.module):
            accumulation.rehearse(lambda number: self._encode(parts, number, step))
        self.engine.zero_grad()

    def _attempt(self, parts: Sequence[PairBatch], step: int, *, notices: int, diagnose: bool) -> GlobalLoss:
        gather = self._options.gather

        def loss_of(features: Sequence[Features] | None) -> GlobalLoss:
            gathered = gather_ids(
                parts, self._ranks, gather=gather, notices=notices, is_short=features is None
            )
            assert features is not None  # else `gather_ids` has raised
            return global_loss(
                self._pair_loss,
                features,
                gathered,
                self._ranks,
                gather=gather,
                diagnose=diagnose,
                teacher_weight=0.0 if self._distillation is None else self._distillation.settings.weight,
            )

        accumulation = Accumulation(
            engine=self.engine,
            sizes=[len(part) for part in parts],
            tower_share=1.0 if self._options.gradient == "exact" else 1 / self._ranks.world_size,
            survives_shortage=self._encoding.survives_shortage,
        )
        return accumulation.run(lambda number: self._encode(parts, number, step), loss_of)

    def _encode(self, parts: Sequence[PairBatch], number: int, step: int) -> Features:
        part, encoding = parts[number], self._encoding
        # Numbered in the global batch, not in this rank: as many ranks with the same micro-batches see the same.
        batch, piece = divmod(number, self.pieces)
        place = (batch * self._ranks.world_size + self._ranks.rank) * self.pieces + piece
        with (
            seeded(stable_seed(encoding.seed, step, place), self._ranks.device),
            self.engine.precision.autocast(),
        ):
            said = self.engine(*self._inputs(part, step), **self._options_of(part, step))
        return self._with_taught(said, parts, number)

    def _with_taught(self, said: tuple[Tensor, ...], parts: Sequence[PairBatch], number: int) -> Features:
        """With what a teacher adds, for the model's output on one micro-batch."""
        image, text, scale, *further = said
        features = Features(image, text, scale, further[0] if further else None)
        if self._distillation is None:
            return features
        with torch.no_grad(), self.engine.precision.autocast():
            taught = self._distillation.of(number, parts[number])
        if self._distillation.compares_similarities:
            return replace(features, taught=taught)
        num_pairs = sum(map(len, parts)) * self._ranks.world_size
        compared = student_features(image, further[1] if len(further) > 1 else None)
        return replace(features, own_loss=self._distillation.own_loss(compared, taught, num_pairs))

    def _inputs(self, part: PairBatch, step: int) -> tuple[Tensor, Tensor]:
        """Pictures and token ids to be encoded: of what comes twice, the first one."""
        once = self._once(part, step)
        tokens_TL = _all_tokens(part, self.module.bert.pad_id)
        images = part.images_BCHW if once.images is None else part.images_BCHW[once.images.first_U]
        return images, tokens_TL if once.texts is None else tokens_TL[once.texts.first_U]

    def _options_of(self, part: PairBatch, step: int) -> dict[str, Any]:  # Any: the model's own options
        encoding, once = self._encoding, self._once(part, step)
        options: dict[str, Any] = {"mask_ratio": encoding.mask_ratio(step)}
        if encoding.keyed:
            options["keys_B"] = pair_keys(stable_seed(encoding.seed, step), part.positions_B)
        if encoding.text_groups > 1:
            options["text_groups"] = encoding.text_groups
        if once.images is not None:
            options["image_rows"] = once.images.rows_B
        if once.texts is not None:
            options["text_rows"] = once.texts.rows_B
        return options

    def _once(self, part: PairBatch, step: int) -> _Once:
        encoding = self._encoding
        if not encoding.once:
            return _Once(None, None)
        visual, bert = cast(nn.Module, self.module.visual), cast(nn.Module, self.module.bert)
        images = texts = None
        if encoding.same_pictures and is_repeatable(visual, encoding.mask_ratio(step)):
            images = distinct_ids(part.image_ids_B)
        if is_repeatable(bert):
            texts = distinct_rows(_all_tokens(part, self.module.bert.pad_id))
        return _Once(*(found if found is not None and found.saves else None for found in (images, texts)))

    def _report(self, found: GlobalLoss) -> StepReport:
        numbers = {
            "loss": found.loss,
            "image_to_text_accuracy": found.image_accuracy,
            "text_to_image_accuracy": found.text_accuracy,
            "logit_scale": self.module.logit_scale.detach().reshape(()),
        }
        # one wait for the device
        values = torch.stack(
            [number.float() for number in (*numbers.values(), *found.numbers.values())]
        ).tolist()
        named = dict(zip((*numbers, *found.numbers), values, strict=True))
        return StepReport(
            **{name: named.pop(name) for name in numbers},
            notices=found.notices,
            numbers=named,
            suspects=found.suspects,
        )

    def after_step(self) -> float:
        return self.engine.clamp("logit_scale", 0, MAX_LOGIT_SCALE)

    def train_mode(self) -> None:
        set_training_mode(self.module, self._frozen)
        bert = cast(nn.Module, self.module.bert)
        if not any(parameter.requires_grad for parameter in bert.parameters()):
            bert.eval()  # dropout is for what learns


@dataclass(frozen=True)
class _Once:
    """What of a micro-batch is encoded once; None: all of it."""

    images: Distinct | None
    texts: Distinct | None


def _all_tokens(part: PairBatch, pad_id: int) -> Tensor:
    """(T, L) captions of the pairs, then their hard negatives."""
    if part.negatives is None:
        return part.tokens_BL
    both = (part.tokens_BL, part.negatives.tokens_KL)
    longest = max(tokens.shape[1] for tokens in both)
    return torch.cat([F.pad(tokens, (0, longest - tokens.shape[1]), value=pad_id) for tokens in both])


def _statistics(model: nn.Module) -> dict[str, Tensor]:
    """What a forward pass in training mode changes."""
    return dict(model.named_buffers())


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _restore(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        tensor.copy_(values[name])
