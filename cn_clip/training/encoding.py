"""What the model is given of a micro-batch: what comes twice once, keys for what is random, captions before hard negatives.

Shapes: B pairs, T captions of them and of their hard negatives, U different ones, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cn_clip.clip.encode_once import Distinct, distinct_ids, distinct_rows, is_repeatable
from cn_clip.clip.model import CLIP
from cn_clip.data.batches import PairBatch
from cn_clip.parallel.rng import stable_seed
from cn_clip.towers.pair_random import pair_keys


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How micro-batches are encoded."""

    seed: int
    mask_ratio: Callable[[int], float] = lambda step: 0.0
    """Optimizer step, from 1 -> share of the patches that are left out."""
    masks: bool = True
    """Whether that is above 0 at any step."""
    keyed: bool = True
    """Dropout and masks follow each pair's place in the global batch; else the micro-batch."""
    text_groups: int = 1
    """Groups of like length that captions are encoded in."""
    once: bool = True
    """Encode what comes twice in a micro-batch once, where nothing random tells the two apart."""
    same_pictures: bool = False
    """Whether one picture id is one picture, and looks the same each time: no augmentation."""
    longest: int = 0
    """Tokens of the longest caption that may come; 0 where nobody knows."""
    survives_shortage: bool = True
    """Halve the micro-batch where memory runs out."""


@dataclass(frozen=True)
class Inputs:
    """Of one forward pass."""

    images: Tensor
    tokens: Tensor
    options: Mapping[str, Any]
    """The model's own; `Any` since they are numbers and tensors."""


class Preparation:
    """Micro-batches to inputs of one model."""

    def __init__(self, model: CLIP, encoding: Encoding) -> None:
        self._model, self._encoding = model, encoding
        self._repeats: dict[tuple[str, bool], bool] = {}

    def train_mode(self) -> None:
        """What learns draws at random; a tower that does not is as it is in use."""
        towers = {"visual": not self._encoding.masks, "bert": True}
        for name, may_rest in towers.items():
            tower = self._tower(name)
            if may_rest and not any(parameter.requires_grad for parameter in tower.parameters()):
                tower.eval()
        self._repeats.clear()

    def inputs(self, part: PairBatch, step: int) -> Inputs:
        """Of a micro-batch of optimizer step `step`, the same each time."""
        encoding, mask_ratio = self._encoding, self._encoding.mask_ratio(step)
        tokens_TL = _all_tokens(part, self._model.bert.pad_id)
        options: dict[str, Any] = {"mask_ratio": mask_ratio}
        if encoding.keyed:
            options["keys_B"] = pair_keys(stable_seed(encoding.seed, step), part.positions_B)
        if encoding.text_groups > 1:
            options["text_groups"] = encoding.text_groups
        images = part.images_BCHW
        if encoding.same_pictures and (found := self._distinct("visual", mask_ratio, part.image_ids_B)):
            images, options["image_rows"] = images[found.first_U], found.rows_B
        if found := self._distinct("bert", 0.0, tokens_TL):
            tokens_TL, options["text_rows"] = tokens_TL[found.first_U], found.rows_B
        return Inputs(images, tokens_TL, options)

    def longest(self, part: PairBatch) -> PairBatch:
        """The same with captions as long as any that may come, for its memory alone."""
        tokens_BL = part.tokens_BL
        missing = self._encoding.longest - tokens_BL.shape[1]
        filled = F.pad(tokens_BL, (0, max(missing, 0)), value=self._model.bert.pad_id)
        any_token = self._model.bert.pad_id + 1
        return replace(part, tokens_BL=filled.masked_fill(filled == self._model.bert.pad_id, any_token))

    def _distinct(self, tower: str, mask_ratio: float, what: Tensor) -> Distinct | None:
        """None where the tower might say different things of equal inputs, or where none are equal."""
        if not self._encoding.once or not self._is_repeatable(tower, mask_ratio):
            return None
        found = distinct_ids(what) if what.ndim == 1 else distinct_rows(what)
        return found if found.saves else None

    def _is_repeatable(self, tower: str, mask_ratio: float) -> bool:
        key = (tower, mask_ratio > 0)
        if key not in self._repeats:
            self._repeats[key] = is_repeatable(self._tower(tower), mask_ratio)
        return self._repeats[key]

    def _tower(self, name: str) -> nn.Module:
        # every tower is one; a Protocol cannot say so
        return cast(nn.Module, getattr(self._model, name))


def _all_tokens(part: PairBatch, pad_id: int) -> Tensor:
    """(T, L) captions of the pairs, then their hard negatives."""
    if part.negatives is None:
        return part.tokens_BL
    both = (part.tokens_BL, part.negatives.tokens_KL)
    longest = max(tokens.shape[1] for tokens in both)
    return torch.cat([F.pad(tokens, (0, longest - tokens.shape[1]), value=pad_id) for tokens in both])
