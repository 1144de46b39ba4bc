"""Learning from a teacher beside the captions: what it says of a batch, and what that adds to the loss.

A teacher is asked once a step for each micro-batch; both passes of an accumulated step use its answer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cn_clip.clip.model import CLIP
from cn_clip.clip.presets import text_preset
from cn_clip.config.schema import Distill, TrainConfig
from cn_clip.data.batches import PairBatch
from cn_clip.errors import ConfigError
from cn_clip.losses.distillation import feature_distances
from cn_clip.parallel.gather import any_rank
from cn_clip.parallel.ranks import Ranks
from cn_clip.training.teachers import Taught, Teacher, kind_of, open_teacher

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Distillation:
    """A teacher and how much it counts."""

    teacher: Teacher
    settings: Distill

    def taught(self, part: PairBatch) -> Taught:
        """What the teacher says of a micro-batch."""
        return self.teacher(part, captions=self.compares_similarities)

    @property
    def compares_similarities(self) -> bool:
        return self.settings.type == "similarity"

    def own_loss(self, student_mE: Tensor, taught: Taught, num_pairs: int) -> Tensor:
        """() share that these pairs have in the weighted mean distance over `num_pairs` of the global batch."""
        distances_m = feature_distances(
            student_mE, taught.image_BF, interpolate=self.settings.width == "interpolate"
        )
        return self.settings.weight * distances_m.sum() / num_pairs


def open_distillation(
    config: TrainConfig, model: CLIP, ranks: Ranks, *, writes: bool = True
) -> Distillation | None:
    """The teacher of the settings; gives the model a map to the teacher's width where theirs differ and it is to learn one.

    writes: whether the teacher may make files to read from; without, it may be looked at and not be asked.
    """
    settings = config.distill
    if not settings.enabled:
        return None
    assert settings.teacher is not None  # check_distillation refuses that
    teacher = _opened(settings.teacher, ranks, writes=writes)
    if settings.type == "similarity" and not teacher.knows_captions:
        raise ConfigError(_knows_no_captions(settings.teacher))
    if settings.type == "similarity" and text_preset(config.model.text).tower != "roberta":
        raise ConfigError(
            f"distill.type is similarity, but the teacher reads the ids of the Chinese vocabulary, and {config.model.text} has its "
            "own: set distill.type=features"
        )
    if config.data.feature_cache is not None and teacher.needs_pictures:
        raise ConfigError(
            "data.feature_cache leaves no pictures for the teacher to look at: give a folder of its features as distill.teacher, "
            "or leave data.feature_cache out"
        )
    own_width = model.text_projection.shape[1]
    if settings.type == "features" and settings.width == "project" and teacher.width != own_width:
        model.add_teacher_projection(teacher.width, config.run.seed)
    if writes and ranks.is_main:
        logger.info(
            "Learning from %s too: %s.", settings.teacher, _what_is_taught(settings, teacher.width, own_width)
        )
    return Distillation(teacher, settings)


def _what_is_taught(settings: Distill, width: int, own_width: int) -> str:
    if settings.type == "similarity":
        return "its similarities of all pairs of a batch"
    if width == own_width:
        return f"features of width {width}, as wide as the student's"
    how = "mapped" if settings.width == "project" else "resized"
    return f"features of width {width}, to which the student's {own_width} are {how}"


def check_distillation(config: TrainConfig) -> None:
    """ConfigError where a teacher is asked for and none is named."""
    if config.distill.enabled and config.distill.teacher is None:
        raise ConfigError(
            "distill.teacher (--teacher-model-name) is not set: give a checkpoint, a Hugging Face folder, or a folder of features"
        )


def find_teacher(config: TrainConfig) -> None:
    """WeightsError or ConfigError where there is no such teacher, or none that could teach this; nothing is loaded."""
    settings = config.distill
    if not settings.enabled or settings.teacher is None:
        return
    if kind_of(settings.teacher) == "feature_folder" and settings.type == "similarity":
        raise ConfigError(_knows_no_captions(settings.teacher))


def _knows_no_captions(teacher: str) -> str:
    return (
        f"distill.type is similarity, but {teacher} says nothing of captions: give a checkpoint of two towers, or set "
        "distill.type=features"
    )


def _opened(setting: str, ranks: Ranks, *, writes: bool) -> Teacher:
    """By the main rank first, which may have files to make that the others read."""
    first: Sequence[Teacher] = [open_teacher(setting, ranks.device, writes=writes)] if ranks.is_main else []
    any_rank([False], ranks)
    return first[0] if first else open_teacher(setting, ranks.device, writes=writes)


def taught_by(features: Sequence[Taught]) -> Taught:
    """Of all micro-batches of a rank together."""
    texts = [taught.text_BF for taught in features if taught.text_BF is not None]
    return Taught(
        torch.cat([taught.image_BF for taught in features]),
        torch.cat(texts) if texts else None,
        features[0].scale,
    )
