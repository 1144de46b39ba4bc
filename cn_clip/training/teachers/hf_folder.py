"""An image encoder of a Hugging Face folder as teacher: a two-tower model's image side, or any vision model's pooled output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModel
from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES

from cn_clip.clip.transform import MEAN, STD
from cn_clip.data.batches import PairBatch
from cn_clip.errors import WeightsError
from cn_clip.training.teachers import Taught, Teacher
from cn_clip.training.teachers.pictures import shown_to_teacher


def open_teacher(setting: str, device: torch.device) -> Teacher:
    try:
        config = AutoConfig.from_pretrained(setting, local_files_only=True)
        model = AutoModel.from_pretrained(
            setting, config=config, local_files_only=True, dtype=torch.float32, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsError(
            f"transformers cannot read the teacher in {setting}: {str(error).splitlines()[0]}"
        ) from error
    return HfTeacher(model.eval().requires_grad_(False).to(device), config, setting)


class HfTeacher:
    """Looks at pictures only: its captions would need its own tokenizer."""

    knows_captions, needs_pictures = False, True

    def __init__(self, model: Any, config: Any, folder: str) -> None:  # Any: whatever the folder holds
        self._model = model
        self._has_two_towers = config.model_type in MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES
        vision = config.vision_config if self._has_two_towers else config
        self._image_px = int(vision.image_size)
        self._mean, self._std = _normalisation(folder)
        blank = torch.zeros(1, 3, self._image_px, self._image_px, device=model.device)
        self.width = int(self._features(blank).shape[1])

    @torch.no_grad()
    def __call__(self, batch: PairBatch, *, captions: bool) -> Taught:
        images = shown_to_teacher(batch.images_BCHW, self._image_px, self._mean, self._std)
        return Taught(F.normalize(self._features(images).float(), dim=-1))

    @torch.no_grad()
    def _features(self, images_BCHW: Tensor) -> Tensor:
        if not self._has_two_towers:
            features: Tensor = self._model(pixel_values=images_BCHW).pooler_output
            return features
        said = self._model.get_image_features(pixel_values=images_BCHW)
        # a tensor up to transformers 4
        features = said if isinstance(said, Tensor) else said.pooler_output
        return features


def _normalisation(folder: str) -> tuple[list[float], list[float]]:
    """Mean and deviation that the model was trained with; CLIP's where the folder does not say."""
    if not (Path(folder) / "preprocessor_config.json").is_file():
        return list(MEAN), list(STD)
    try:
        processor: Any = AutoImageProcessor.from_pretrained(
            folder, local_files_only=True
        )  # Any: one of many classes
        return list(processor.image_mean), list(processor.image_std)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise WeightsError(
            f"{folder}/preprocessor_config.json cannot be read: {str(error).splitlines()[0]}"
        ) from error
