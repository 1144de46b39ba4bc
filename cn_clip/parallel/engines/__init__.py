"""Engines: what joins the gradients of the ranks and applies them. `parallel.engine` picks a module here.

Contract: a module has `build(model, settings, precision, ranks, blocks) -> Engine`; `blocks` are the repeated modules
that an engine may treat one by one. Whatever an engine does inside (sum, mean, shards), the gradients it applies are
those of the *sum over ranks* of what `backward` was given.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from cn_clip.config.schema import Parallel
from cn_clip.parallel.precision import Precision
from cn_clip.parallel.ranks import Ranks
from cn_clip.parallel.statistics import share_statistics

Model = TypeVar("Model", bound=nn.Module)


class Engine(ABC, Generic[Model]):
    """A model under an engine. Methods called collective must be called by every rank."""

    optimizer: torch.optim.Optimizer
    passes_are_local = True
    """Whether a pass under `without_sync` involves this rank alone, so that it can fail there and tell the others."""

    saves_shards = True
    """Whether `sharded_files` can write its parts."""

    def __init__(self, model: Model, settings: Parallel, precision: Precision, ranks: Ranks) -> None:
        self.module = model.to(ranks.device)
        """The bare model: the names of its state dict are the checkpoint's."""
        self.settings, self.precision, self.ranks = settings, precision, ranks
        self.parameter_names: list[str] = []
        """Of the parameters by their number in `optimizer_state`."""

    @abstractmethod
    def __call__(self, *inputs: Any, **options: Any) -> Any:  # Any: the model's own forward
        """Forward pass. Collective where passes are not local, in training and in validation."""

    @abstractmethod
    def without_sync(self) -> AbstractContextManager[Any]:  # Any: what an engine's context yields is not used
        """Forward and backward inside leave this rank's gradients its own; the next backward outside joins all."""

    @abstractmethod
    def backward(self, scalar: Tensor) -> None:
        """Add the gradients of the sum over ranks of `scalar`; call it outside autocast."""

    def set_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer that `step` moves; built over the parameters of `module` as they are now."""
        name_of = {id(parameter): name for name, parameter in self.module.named_parameters()}
        self.parameter_names = [name_of[id(p)] for group in optimizer.param_groups for p in group["params"]]
        self.optimizer = optimizer

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, max_norm: float | None) -> float:
        """Apply the gradients, scaled down to `max_norm` where they are longer. Collective.

        Returns their L2 norm before that, the same on every rank. One that is not finite applies nothing.
        """
        share_statistics(self.module, self.ranks)
        gradients, scale = self._own_gradients(), self.precision.loss_scale
        norm = self._length(gradients) / scale.value
        if math.isfinite(norm):
            factor = clipping_factor(norm, max_norm) / scale.value
            if factor != 1:
                torch._foreach_mul_(gradients, factor)
            self._apply()
        scale.update(applied=math.isfinite(norm))
        return norm

    def _parameters(self) -> dict[str, nn.Parameter]:
        """By name, as the optimizer has them."""
        return dict(self.module.named_parameters())

    def _own_gradients(self) -> list[Tensor]:
        """This rank's part of the joined gradients, in the memory that the optimizer reads."""
        return [p.grad for p in self._parameters().values() if p.grad is not None]

    def _length(self, gradients: Sequence[Tensor]) -> float:
        """L2 norm of the joined gradients, the same on every rank."""
        return float(length_of(gradients))

    def _apply(self) -> None:
        self.optimizer.step()

    def clamp(self, name: str, low: float, high: float) -> float:
        """Keep a parameter of one value between two bounds, wherever the engine holds it. Collective; returns the value."""
        parameter = self._parameters()[name].detach()
        parameter.clamp_(low, high)
        return float(parameter)

    def shapes(self) -> dict[str, torch.Size]:
        """Of the whole parameters by name, as files have them, however the engine cuts them up."""
        return {name: parameter.shape for name, parameter in self._parameters().items()}

    @abstractmethod
    def model_state(self) -> dict[str, Tensor]:
        """Whole tensors under the names of the module's state dict, on the main rank; empty elsewhere. Collective.

        They may be the live ones: copy what must outlast the next step.
        """

    @abstractmethod
    def optimizer_state(self) -> dict[str, Any]:  # Any: torch's own layout
        """Layout of `Optimizer.state_dict()` with whole tensors, on the main rank; empty elsewhere. Collective."""

    @abstractmethod
    def load_optimizer_state(self, state: Mapping[str, Any]) -> None:  # Any: as above
        """Take over such a state, the same on every rank."""

    @abstractmethod
    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors cut like the parameters of their names, whole, on the main rank; empty elsewhere. Collective."""

    def gradients(self) -> dict[str, Tensor]:
        """Joined gradients by parameter, whole and unscaled, on the main rank; empty elsewhere. Collective.

        Between the backward pass that joins them and `step`.
        """
        found = {name: p.grad for name, p in self._parameters().items() if p.grad is not None}
        return {name: grad / self.precision.loss_scale.value for name, grad in self.whole(found).items()}


def length_of(gradients: Iterable[Tensor]) -> Tensor:
    """() L2 norm of all gradients together, fp32."""
    # of fp16 gradients too in fp32, where their squares have room
    norms = torch._foreach_norm(list(gradients), 2.0, torch.float32)
    return torch.stack(norms).norm() if norms else torch.zeros(())


def clipping_factor(norm: float, max_norm: float | None) -> float:
    """What gradients of this norm are multiplied by so that they are no longer than `max_norm`."""
    return max_norm / norm if max_norm is not None and norm > max_norm else 1.0
