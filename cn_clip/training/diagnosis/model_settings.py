"""What only a model tells of a stage's settings, without its weights and its memory."""

from __future__ import annotations

from cn_clip.clip.model import CLIP
from cn_clip.config.schema import TrainConfig
from cn_clip.errors import CnClipError
from cn_clip.parallel.precision import Precision
from cn_clip.parallel.ranks import Ranks
from cn_clip.parallel.wrap import check_sync_batchnorm
from cn_clip.towers.attention_kernel import choose_attention
from cn_clip.training.average import WeightAverage
from cn_clip.training.diagnosis.fake_model import meta_model
from cn_clip.training.freezing import check_blocks
from cn_clip.training.stages import Stage


def check_model_settings(stage: Stage, ranks: Ranks) -> None:
    """The error that a later stage would end in when its model is built; before the first is trained."""
    try:
        check_towers(meta_model(stage.config.model, stage.config.loss), stage.config, ranks)
    except CnClipError as error:
        raise type(error)(f"stages[{stage.number}]: {error}") from error


def check_towers(model: CLIP, config: TrainConfig, ranks: Ranks) -> None:
    """What a run would find out only when it wraps its model."""
    precision = Precision(config.train.precision, ranks.device)
    check_blocks(model, config.model)
    if config.parallel.sync_batchnorm:
        check_sync_batchnorm(ranks.device)
    choose_attention(
        model.visual,
        config.model.attention,
        device=ranks.device,
        dtype=precision.autocast_dtype or precision.weights_dtype,
    )
    if config.ema.decay is not None:
        WeightAverage(model, config.ema, config.parallel)
