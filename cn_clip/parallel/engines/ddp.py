"""Whole copies of the model on every rank, gradients averaged as the backward pass makes them (torch's DDP).

One process needs no engine: the same class then calls the bare model.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cn_clip.config.schema import Parallel
from cn_clip.parallel.engines import Engine, Model
from cn_clip.parallel.precision import Precision
from cn_clip.parallel.ranks import Ranks


def build(
    model: Model, settings: Parallel, precision: Precision, ranks: Ranks, blocks: Sequence[nn.Module] = ()
) -> Engine[Model]:
    return CopiesEngine(model, settings, precision, ranks)


class CopiesEngine(Engine[Model]):
    def __init__(self, model: Model, settings: Parallel, precision: Precision, ranks: Ranks) -> None:
        super().__init__(model, settings, precision, ranks)
        self._copy: nn.Module = self.module
        if ranks.world_size > 1 and any(parameter.requires_grad for parameter in model.parameters()):
            self._copy = _copies(model, ranks)

    def __call__(self, *inputs: Any, **options: Any) -> Any:  # Any: the model's own forward
        return self._copy(*inputs, **options)

    def without_sync(self) -> AbstractContextManager[Any]:  # Any: what DDP's context yields is not used
        if isinstance(self._copy, DistributedDataParallel):
            return self._copy.no_sync()
        return nullcontext()

    def backward(self, scalar: Tensor) -> None:
        # DDP averages over the ranks; the sum is asked for
        self.precision.backward(self.ranks.world_size * scalar)

    def model_state(self) -> dict[str, Tensor]:
        return self.module.state_dict() if self.ranks.is_main else {}

    def optimizer_state(self) -> dict[str, Any]:  # Any: torch's own layout
        return self.optimizer.state_dict() if self.ranks.is_main else {}

    def load_optimizer_state(self, state: Mapping[str, Any]) -> None:  # Any: as above
        self.optimizer.load_state_dict(dict(state))

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(tensors) if self.ranks.is_main else {}


def _copies(model: nn.Module, ranks: Ranks) -> DistributedDataParallel:
    with warnings.catch_warnings():
        # torch 2.14 has another word for `broadcast_buffers`, which 2.6 does not know
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            model,
            device_ids=[ranks.local_rank] if ranks.device.type == "cuda" else None,
            # before each forward pass it would send every buffer, position ids included; see statistics.py
            broadcast_buffers=False,
            gradient_as_bucket_view=True,  # gradients live once, in the buckets that are sent
        )
