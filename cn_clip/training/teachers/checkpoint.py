"""A two-tower checkpoint as teacher: ours or the reference's, whose towers its weights tell."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from cn_clip.clip.model import CLIP, build_model
from cn_clip.clip.weights import load_into, model_weights, read_checkpoint
from cn_clip.clip.weights.guess import guess_towers, trained_image_px
from cn_clip.data.batches import PairBatch
from cn_clip.training.teachers import Taught, Teacher
from cn_clip.training.teachers.pictures import shown_to_teacher


def open_teacher(setting: str, device: torch.device) -> Teacher:
    weights = model_weights(read_checkpoint(Path(setting)))
    image, text = guess_towers(weights)
    image_px = trained_image_px(image, weights)
    model = build_model(image, text, image_px)
    load_into(model, weights, setting)
    return CheckpointTeacher(model.eval().requires_grad_(False).to(device), image_px)


class CheckpointTeacher:
    """Both towers; captions are read by the ids that the student reads, of the same vocabulary."""

    knows_captions = needs_pictures = True

    def __init__(self, model: CLIP, image_px: int) -> None:
        self._model, self._image_px = model, image_px
        self.width = model.text_projection.shape[1]

    @torch.no_grad()
    def __call__(self, batch: PairBatch, *, captions: bool) -> Taught:
        images = shown_to_teacher(batch.images_BCHW, self._image_px)
        image_BF = F.normalize(self._model.encode_image(images).float(), dim=-1)
        if not captions:
            return Taught(image_BF)
        text_BF = F.normalize(self._model.encode_text(batch.tokens_BL).float(), dim=-1)
        return Taught(image_BF, text_BF, self._model.logit_scale.exp().float())
