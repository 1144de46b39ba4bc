"""The order in which a model is wrapped, known here alone: SyncBatchNorm, recompute, compile, engine. No wrapper changes a key."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from cn_clip.config.schema import Parallel
from cn_clip.errors import DeviceError
from cn_clip.parallel.engines import Engine, Model
from cn_clip.parallel.precision import Precision
from cn_clip.parallel.ranks import Ranks
from cn_clip.parallel.recompute import recompute_blocks

MODULES = {"ddp": "ddp", "fsdp": "fsdp", "zero1": "zero", "zero2": "zero", "zero3": "zero"}
"""`parallel.engine` -> module of `cn_clip/parallel/engines/`."""


def wrap(
    model: Model,
    settings: Parallel,
    precision: Precision,
    ranks: Ranks,
    *,
    blocks: Sequence[nn.Module] = (),
    recompute: bool = False,
    compile: bool = False,
) -> Engine[Model]:
    """The model under the engine of the settings; its `blocks` recomputed and compiled one by one where asked."""
    if settings.sync_batchnorm:
        check_sync_batchnorm(ranks.device)
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # replaces the norms inside the model it is given
    if recompute:
        recompute_blocks(blocks)
    if compile:
        for block in blocks:
            # not torch.compile(block): that adds `_orig_mod.` to the keys
            block.compile()
    engine = importlib.import_module(f"cn_clip.parallel.engines.{MODULES[settings.engine]}")
    built: Engine[Model] = engine.build(model, settings, precision, ranks, blocks)
    return built


def check_sync_batchnorm(device: torch.device) -> None:
    """DeviceError where torch has no SyncBatchNorm."""
    if device.type != "cuda":
        raise DeviceError(
            "parallel.sync_batchnorm (--use-bn-sync) needs GPUs: torch has no SyncBatchNorm for the CPU"
        )


@contextmanager
def batch_statistics_only(model: nn.Module) -> Iterator[None]:
    """BatchNorm in training mode normalises by the batch inside, and leaves its running statistics as they are.

    For the first of two passes over the same pictures: each picture must enter the statistics once.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    tracked = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, track in zip(norms, tracked, strict=True):
            norm.track_running_stats = track


def set_training_mode(model: nn.Module, frozen: Sequence[nn.Module]) -> None:
    """Training mode for all, except BatchNorm of the frozen modules."""
    model.train()
    for module in frozen:
        for norm in module.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.eval()
