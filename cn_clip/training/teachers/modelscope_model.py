"""The reference's four teachers, through the `modelscope` package, which downloads them. Untested here: no network."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cn_clip.data.batches import PairBatch
from cn_clip.errors import ConfigError
from cn_clip.training.teachers import MODELSCOPE, Taught, Teacher
from cn_clip.training.teachers.pictures import shown_to_teacher

IMAGE_PX = 224
"""All four are models of pictures of this side."""


def open_teacher(setting: str, device: torch.device) -> Teacher:
    try:
        from modelscope.models import Model
    except ImportError as error:
        raise ConfigError(
            f"distill.teacher={setting} needs the modelscope package: pip install 'cn_clip[modelscope]'; or give the path of a "
            "checkpoint (cn_clip_vit-l-14.pt, ...)"
        ) from error
    wrapper = Model.from_pretrained(setting)
    return ModelScopeTeacher(
        getattr(wrapper, MODELSCOPE[setting]).eval().requires_grad_(False).to(device), device
    )


class ModelScopeTeacher:
    knows_captions, needs_pictures = False, True

    def __init__(self, model: Any, device: torch.device) -> None:  # Any: a class of the package
        self._model = model
        self.width = int(self._features(torch.zeros(1, 3, IMAGE_PX, IMAGE_PX, device=device)).shape[1])

    @torch.no_grad()
    def __call__(self, batch: PairBatch, *, captions: bool) -> Taught:
        return Taught(F.normalize(self._features(shown_to_teacher(batch.images_BCHW, IMAGE_PX)), dim=-1))

    @torch.no_grad()
    def _features(self, images_BCHW: Tensor) -> Tensor:
        said = self._model.encode_image(images_BCHW)
        # some of them give the patches' features as well
        features: Tensor = said[0] if isinstance(said, tuple) else said
        return features.float()
