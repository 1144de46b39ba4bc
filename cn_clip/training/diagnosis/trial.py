"""Steps of training outside any run: a model under the engine of the settings, made-up pairs, nothing written."""

from __future__ import annotations

from dataclasses import replace

import torch

from cn_clip.clip.lora import add_adapters
from cn_clip.clip.model import CLIP
from cn_clip.config.schema import TrainConfig
from cn_clip.data.batches import PairBatch
from cn_clip.losses.pair import PairLoss
from cn_clip.parallel.precision import Precision
from cn_clip.parallel.ranks import Ranks
from cn_clip.training.build import build_clip, parallelize
from cn_clip.training.contrastive_task import ContrastiveTask
from cn_clip.training.encoding import Encoding
from cn_clip.training.freezing import freeze_towers
from cn_clip.training.optimizer import build_optimizer
from cn_clip.training.registry import module_of

TINY_IMAGE, TINY_TEXT = "tiny-vit", "tiny-bert"
"""Towers that any machine trains in a moment."""
MANY_TOKENS = 1000
"""Made-up captions use so many of the first entries of a vocabulary."""


def trial_task(config: TrainConfig, ranks: Ranks) -> ContrastiveTask:
    """The model of a config with fresh weights, wrapped and given its optimizer as a run would."""
    unread = replace(config.model, init_from=None, image_weights=None, text_weights=None)
    config = replace(config, model=unread)
    model: CLIP = build_clip(config.model, config.run.seed, config.loss)
    adapted = add_adapters(model, config.lora, config.run.seed)
    model.key_dropout()
    frozen = [*adapted, *freeze_towers(model, config.model)]
    engine = parallelize(model, config, Precision(config.train.precision, ranks.device), ranks)
    engine.set_optimizer(build_optimizer(model, config.optim))
    pair_loss: PairLoss = module_of("pair_loss", config.loss.type).build(config.loss.options)
    encoding = Encoding(
        seed=config.run.seed,
        mask_ratio=lambda step: config.model.mask_ratio,
        keyed=config.train.randomness == "pair",
        text_groups=config.train.text_groups,
        once=False,
        survives_shortage=False,
    )
    task = ContrastiveTask(engine, pair_loss, config.loss.options, encoding, frozen=frozen)
    task.train_mode()
    return task


def made_up_pairs(model: CLIP, num_pairs: int, num_tokens: int, *, seed: int = 7) -> PairBatch:
    """Random pictures and captions, no two of them equal, captions of any length up to `num_tokens`."""
    generator = torch.Generator().manual_seed(seed)
    px, pad = model.visual.image_px, model.bert.pad_id
    tokens = torch.randint(pad + 1, pad + 1 + MANY_TOKENS, (num_pairs, num_tokens), generator=generator)
    lengths = torch.randint(min(4, num_tokens), num_tokens + 1, (num_pairs,), generator=generator)
    tokens[torch.arange(num_tokens) >= lengths[:, None]] = pad
    ids = torch.arange(num_pairs)
    images = torch.randint(0, 256, (num_pairs, 3, px, px), dtype=torch.uint8, generator=generator)
    return PairBatch(
        images_BCHW=images,
        tokens_BL=tokens,
        image_ids_B=ids,
        text_ids_B=ids,
        caption_keys_B=ids,
        pair_ids_B=ids,
        positions_B=ids,
    )
