"""Engines: what joins the gradients of the ranks and applies them. `parallel.engine` picks a module here.

Contract: a module has `build(model, settings, precision, ranks) -> Engine`. Whatever an engine does inside (sum, mean,
shards), the gradients it applies are those of the *sum over ranks* of what `backward` was given.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from cn_clip.config.schema import Parallel
from cn_clip.parallel.precision import Precision
from cn_clip.parallel.ranks import Ranks

Model = TypeVar("Model", bound=nn.Module)


class Engine(ABC, Generic[Model]):
    """A model under an engine. Methods called collective must be called by every rank."""

    optimizer: torch.optim.Optimizer

    def __init__(self, model: Model, settings: Parallel, precision: Precision, ranks: Ranks) -> None:
        self.module = model.to(ranks.device)
        """The bare model: the names of its state dict are the checkpoint's."""
        self.settings, self.precision, self.ranks = settings, precision, ranks

    @abstractmethod
    def __call__(self, *inputs: Any, **options: Any) -> Any:  # Any: the model's own forward
        """Forward pass."""

    @abstractmethod
    def without_sync(self) -> AbstractContextManager[Any]:  # Any: what an engine's context yields is not used
        """Forward and backward inside leave this rank's gradients its own; the next backward outside joins all."""

    @abstractmethod
    def backward(self, scalar: Tensor) -> None:
        """Add the gradients of the sum over ranks of `scalar`; call it outside autocast."""

    def set_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer that `step` moves; built over the parameters of `module` as they are now."""
        self.optimizer = optimizer

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    @abstractmethod
    def step(self, max_norm: float | None) -> float:
        """Apply the gradients, scaled down to `max_norm` where they are longer. Collective.

        Returns their L2 norm before that, the same on every rank. One that is not finite applies nothing.
        """

    @abstractmethod
    def model_state(self) -> dict[str, Tensor]:
        """Whole tensors under the names of the module's state dict, on the main rank; empty elsewhere. Collective."""

    @abstractmethod
    def optimizer_state(self) -> dict[str, Any]:  # Any: torch's own layout
        """Layout of `Optimizer.state_dict()` with whole tensors, on the main rank; empty elsewhere. Collective."""

    @abstractmethod
    def load_optimizer_state(self, state: Mapping[str, Any]) -> None:  # Any: as above
        """Take over such a state, the same on every rank."""

    @abstractmethod
    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors cut like the parameters of their names, whole, on the main rank; empty elsewhere. Collective."""


def length_of(gradients: Iterable[Tensor]) -> Tensor:
    """() L2 norm of all gradients together, fp32."""
    norms = torch._foreach_norm(list(gradients))
    return torch.stack([norm.float() for norm in norms]).norm() if norms else torch.zeros(())


def scale_down(gradients: Iterable[Tensor], norm: float, max_norm: float | None) -> None:
    """Multiply the gradients by `max_norm / norm` where they are too long."""
    if max_norm is not None and max_norm < norm < math.inf:
        torch._foreach_mul_(list(gradients), max_norm / norm)
