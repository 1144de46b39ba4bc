"""Teachers: whatever tells of a picture what a student should learn. Which kind one is, its setting's value tells.

Contract of a module: `open_teacher(setting, device) -> Teacher`. A teacher is frozen, sees whole pictures at its own size, and
knows no ranks. Shapes: B pictures, C H W picture, F width of the teacher's features.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from cn_clip.data.batches import PairBatch
from cn_clip.errors import WeightsError

MODELSCOPE = {
    "damo/multi-modal_team-vit-large-patch14_multi-modal-similarity": "model",
    "damo/multi-modal_rleg-vit-large-patch14": "model",
    "damo/multi-modal_clip-vit-huge-patch14_zh": "clip_model",
    "damo/multi-modal_clip-vit-large-patch14_zh": "clip_model",
}
"""The reference's teachers: name on ModelScope -> where in the package's wrapper the model with `encode_image` is."""


@dataclass(frozen=True)
class Taught:
    """What a teacher says of a batch; unit length, in fp32."""

    image_BF: Tensor
    text_BF: Tensor | None = None
    scale: Tensor | None = None
    """() factor of its cosines."""

    def part(self, rows: slice) -> Taught:
        """Of some of the pairs."""
        return Taught(self.image_BF[rows], None if self.text_BF is None else self.text_BF[rows], self.scale)


class Teacher(Protocol):
    @property
    def width(self) -> int:
        """F."""
        ...

    @property
    def knows_captions(self) -> bool:
        """Whether it says something of the student's captions as well."""
        ...

    @property
    def needs_pictures(self) -> bool:
        """Whether it looks at the batch's pictures, not at their ids alone."""
        ...

    def __call__(self, batch: PairBatch, *, captions: bool) -> Taught:
        """Of the batch's pictures, and of its `captions` where asked for; carries no gradient."""
        ...


def open_teacher(setting: str, device: torch.device, *, writes: bool = True) -> Teacher:
    """The teacher that `distill.teacher` names; WeightsError for what is none.

    writes: whether it may make files to read from; without, it may be looked at and not be asked.
    """
    kind = kind_of(setting)
    options = {"writes": writes} if kind == "feature_folder" else {}
    teacher: Teacher = importlib.import_module(f"{__name__}.{kind}").open_teacher(setting, device, **options)
    return teacher


def kind_of(setting: str) -> str:
    """The module that opens it; WeightsError where there is nothing of the kind."""
    path = Path(setting)
    tests: Mapping[str, bool] = {
        "feature_folder": (path / "features.npy").is_file() or (path.suffix == ".jsonl" and path.is_file()),
        "hf_folder": (path / "config.json").is_file(),
        "checkpoint": path.is_file(),
        "modelscope_model": setting in MODELSCOPE,
    }
    for kind, is_one in tests.items():
        if is_one:
            return kind
    raise WeightsError(
        f"distill.teacher is {setting!r}, which is no checkpoint file, no Hugging Face folder (config.json), no folder or .jsonl "
        f"of features, and none of {', '.join(MODELSCOPE)}: correct the path"
    )
