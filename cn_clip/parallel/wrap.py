"""The order in which a model is wrapped, known here alone: SyncBatchNorm, recompute, DDP. No wrapper changes a key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Generic, TypeVar

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cn_clip.config.schema import Parallel
from cn_clip.errors import DeviceError
from cn_clip.parallel.ranks import Ranks

Model = TypeVar("Model", bound=nn.Module)


class ParallelModel(Generic[Model]):
    """A model and the engine that averages its gradients over ranks."""

    def __init__(self, model: Model, settings: Parallel, ranks: Ranks) -> None:
        if settings.sync_batchnorm:
            _sync_batchnorm(model, ranks)
        self.module = model.to(ranks.device)
        self.ranks = ranks
        self._engine: nn.Module = self.module
        if ranks.world_size > 1:
            self._engine = DistributedDataParallel(
                self.module, device_ids=[ranks.local_rank] if ranks.device.type == "cuda" else None
            )

    def __call__(self, *inputs: Any, **options: Any) -> Any:  # Any: the model's own forward
        return self._engine(*inputs, **options)

    def without_sync(self) -> AbstractContextManager[Any]:  # Any: what DDP's context yields is not used
        """Forward and backward inside leave this rank's gradients its own; the next backward outside averages all."""
        if isinstance(self._engine, DistributedDataParallel):
            return self._engine.no_sync()
        return nullcontext()


def _sync_batchnorm(model: nn.Module, ranks: Ranks) -> None:
    if ranks.device.type != "cuda":
        raise DeviceError(
            "parallel.sync_batchnorm (--use-bn-sync) needs GPUs: torch has no SyncBatchNorm for the CPU"
        )
    nn.SyncBatchNorm.convert_sync_batchnorm(model)  # replaces the norms inside the model it is given


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


def freeze(module: nn.Module) -> None:
    """Take a module out of training: no gradients, and BatchNorm keeps the statistics it has."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def set_training_mode(model: nn.Module, frozen: list[nn.Module]) -> None:
    """Training mode for all, except BatchNorm of the frozen modules."""
    model.train()
    for module in frozen:
        for norm in module.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.eval()
