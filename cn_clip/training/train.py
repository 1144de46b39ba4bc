"""Old names: cn-clip kept its loop here. The loop is another now, and an import of the old one says where to look."""

from __future__ import annotations

from typing import NoReturn

REPLACEMENTS = {
    "train": "cn_clip.training.run.train(config), or Trainer.fit of cn_clip.training.trainer",
    "evaluate": "cn_clip.training.validation.validate",
    "get_loss": "cn_clip.training.global_loss.global_loss with a loss of cn_clip.losses.pair",
    "freeze_vision_bn": "cn_clip.parallel.wrap.set_training_mode",
    "cosineSimilarityLoss": "cn_clip.losses.distillation.feature_distances",
    "is_master": "cn_clip.training.main.is_master",
}


def __getattr__(name: str) -> NoReturn:
    if name in REPLACEMENTS:
        raise ImportError(
            f"cn_clip.training.train.{name} is not kept; use {REPLACEMENTS[name]} (docs/migration.md)"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
