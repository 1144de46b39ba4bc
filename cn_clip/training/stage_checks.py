"""What the settings of a stage alone tell to be wrong: said of every stage before the first is trained."""

from __future__ import annotations

from cn_clip.config.schema import TrainConfig
from cn_clip.training.average import check_average
from cn_clip.training.distillation import check_distillation
from cn_clip.training.feature_cache import check_feature_cache
from cn_clip.training.freezing import check_freezing
from cn_clip.training.registry import module_of
from cn_clip.training.schedule import Schedule


def check_stage(config: TrainConfig) -> None:
    """ConfigError for what cannot be trained, in a stage or in a run without stages."""
    check_feature_cache(config)
    check_distillation(config)
    check_freezing(config.model, config.lora)
    check_average(config.ema, config.parallel)
    Schedule(config.optim, total_steps=1)
    # its options are checked where it is built
    module_of("augment", config.data.augment.type).build(config.data.augment.options)
