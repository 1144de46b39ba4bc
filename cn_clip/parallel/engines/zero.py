"""Optimizer state (stage 1), gradients (2) and weights (3) cut up over the ranks by DeepSpeed's ZeRO (arXiv:1910.02054).

DeepSpeed is imported only here, when it is chosen. It wraps the optimizer that it is given, so it begins with
`set_optimizer`. Learning rates are still those of `optimizer.param_groups`; whole weights, gradients and moments are read
and written through the functions that DeepSpeed has for it, one tensor at a time.

Stage 1 sends gradients once a step, stages 2 and 3 after each micro-batch: that is how they save memory.
"""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from cn_clip.config.schema import Parallel
from cn_clip.errors import ConfigError
from cn_clip.parallel.engines import Engine, Model
from cn_clip.parallel.engines.zero_settings import (
    Plain,
    check_optimizer,
    check_precision,
    deepspeed_settings,
)
from cn_clip.parallel.precision import Precision
from cn_clip.parallel.ranks import Ranks
from cn_clip.parallel.statistics import share_statistics

OLDEST = (0, 19)
"""Release from which a step whose gradients are not finite is left out in fp32, too."""


def build(
    model: Model, settings: Parallel, precision: Precision, ranks: Ranks, blocks: Sequence[nn.Module] = ()
) -> Engine[Model]:
    check_precision(settings, precision)
    return ZeroEngine(model, settings, precision, ranks, _import_deepspeed(settings, ranks))


class ZeroEngine(Engine[Model]):
    saves_shards = False

    def __init__(
        self, model: Model, settings: Parallel, precision: Precision, ranks: Ranks, deepspeed: ModuleType
    ) -> None:
        super().__init__(model, settings, precision, ranks)
        self._deepspeed = deepspeed
        self._stage = int(settings.engine.removeprefix("zero"))
        self.passes_are_local = self._stage == 1
        self._named = dict(model.named_parameters())
        self._shapes = {name: parameter.shape for name, parameter in self._named.items()}
        for parameter in self._named.values():
            if parameter.dim() == 0:  # DeepSpeed cannot send those
                parameter.data = parameter.data.reshape(1)
        self._engine: Any = None  # Any: DeepSpeed has no types; made by set_optimizer
        self._groups: list[int] = []
        """Parameters of each group of the optimizer."""

    def set_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        check_optimizer(optimizer, self.settings)
        super().set_optimizer(optimizer)
        self._groups = [len(group["params"]) for group in optimizer.param_groups]
        num_trained = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
        config = deepspeed_settings(self.settings, self.precision, num_trained=num_trained)
        self._engine = self._initialized(optimizer, config)

    def _initialized(self, optimizer: torch.optim.Optimizer, config: Plain) -> Any:  # Any: no types there
        try:
            return self._deepspeed.initialize(
                model=self.module, optimizer=optimizer, config=config, dist_init_required=False
            )[0]
        except (ValueError, TypeError, AttributeError, KeyError, AssertionError) as error:
            if self.settings.deepspeed_config is None:
                raise
            reason = " ".join(str(error).split("For further information")[0].split()) or type(error).__name__
            raise ConfigError(
                f"parallel.deepspeed_config {self.settings.deepspeed_config} is not what DeepSpeed takes ({reason}): mend "
                "that setting, or leave it out"
            ) from error

    def __call__(self, *inputs: Any, **options: Any) -> Any:  # Any: the model's own forward
        # its own forward pass switches autocast as in training, where a validation may want full precision
        forward = self._engine if self.module.training else self.module
        outputs = forward(*inputs, **options)
        return tuple(map(_number, outputs)) if isinstance(outputs, tuple) else outputs

    @contextmanager
    def without_sync(self) -> Iterator[None]:
        self._engine.set_gradient_accumulation_boundary(False)
        try:
            yield
        finally:
            self._engine.set_gradient_accumulation_boundary(True)

    def backward(self, scalar: Tensor) -> None:
        # DeepSpeed averages over the ranks; the sum is asked for
        self._engine.backward(self.ranks.world_size * scalar)

    def zero_grad(self) -> None:
        self._engine.optimizer.zero_grad()

    def step(self, max_norm: float | None) -> float:
        share_statistics(self.module, self.ranks)
        self._engine.optimizer.clip_grad = max_norm or 0.0
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def clamp(self, name: str, low: float, high: float) -> float:
        parameter: Any = self._named[name]  # Any: DeepSpeed hangs its own on a parameter
        # each rank its own part: the copy that the optimizer moves, then the one that the model reads
        for part in self._own_masters(parameter):
            part.data.clamp_(low, high)
        parameter.data.clamp_(low, high)
        if self._stage == 3:
            parameter.ds_tensor.data.clamp_(low, high)
        return float(self._whole_parameter(parameter))

    def _own_masters(self, parameter: Any) -> list[Tensor]:  # Any: DeepSpeed hangs its own on a parameter
        """This rank's part of the copy that the optimizer moves."""
        if self._stage == 3:
            return [self._deepspeed.utils.safe_get_local_fp32_param(parameter)]
        mapping = parameter._hp_mapping
        return [] if mapping is None else [mapping.get_hp_fragment()]

    def shapes(self) -> dict[str, torch.Size]:
        return dict(self._shapes)

    def model_state(self) -> dict[str, Tensor]:
        found = {}
        for name, value in self.module.state_dict(keep_vars=True).items():
            whole = self._whole_parameter(value) if isinstance(value, nn.Parameter) else value.detach()
            if self.ranks.is_main:
                found[name] = whole.reshape(self._shapes.get(name, whole.shape)).cpu()
        return found

    def _whole_parameter(self, parameter: nn.Parameter) -> Tensor:
        if self._stage < 3:
            return parameter.detach()
        with self._deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()

    def optimizer_state(self) -> dict[str, Any]:  # Any: torch's own layout
        self._link_states()
        read = self._deepspeed.utils.safe_get_full_optimizer_state
        state: dict[int, dict[str, Any]] = {}  # Any: as above
        for number, name in enumerate(self.parameter_names):
            entry = dict(self._shared_entries())
            for key in self._cut_keys():
                whole = read(self._named[name], key)
                entry[key] = whole.reshape(self._shapes[name]).cpu() if self.ranks.is_main else None
            if entry:
                state[number] = entry
        return {"state": state, "param_groups": self._group_settings()} if self.ranks.is_main else {}

    def load_optimizer_state(self, state: Mapping[str, Any]) -> None:  # Any: as above
        for group, saved in zip(self.optimizer.param_groups, state["param_groups"], strict=True):
            group.update({key: value for key, value in saved.items() if key != "params"})
        entries: Mapping[int, Mapping[str, Any]] = state["state"]  # Any: tensors and numbers
        if not entries:
            return
        # not of a single number, which looks like the count of steps
        self._make_states(next(e for e in entries.values() if any(_has_shape(value) for value in e.values())))
        for number, entry in entries.items():
            parameter = self._named[self.parameter_names[number]]
            for key in self._cut_keys():
                self._write_state(parameter, entry[key].to(self.ranks.device, torch.float32), key)

    def _write_state(
        self, parameter: Any, whole: Tensor, key: str
    ) -> None:  # Any: DeepSpeed hangs its own on it
        if self._stage < 3:
            self._deepspeed.utils.safe_set_full_optimizer_state(parameter, whole, key)
            return
        # its function for whole tensors knows none whose size the ranks do not divide
        size = parameter.partition_numel()
        padded = F.pad(whole.flatten(), (0, size * self.ranks.world_size - whole.numel()))
        own = padded[size * self.ranks.rank : size * (self.ranks.rank + 1)]
        self._deepspeed.utils.safe_set_local_optimizer_state(parameter, own, key)

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # an average of the weights: whole on each rank, since it is refused under stage 3
        if not self.ranks.is_main:
            return {}
        return {name: t.reshape(self._shapes.get(name, t.shape)) for name, t in tensors.items()}

    def gradients(self) -> dict[str, Tensor]:
        found = {}
        for name, parameter in self._named.items():
            if parameter.requires_grad:
                whole = self._deepspeed.utils.safe_get_full_grad(parameter)
                if self.ranks.is_main:
                    found[name] = whole.reshape(self._shapes[name]).clone()
        return found

    def _flats(self) -> list[Tensor]:
        """This rank's parts of the weights as the optimizer has them: one or more flat tensors."""
        zero = self._engine.optimizer
        return list(
            zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups
        )

    def _cut_keys(self) -> list[str]:
        """Names of what the optimizer keeps of each number of the weights."""
        flat = self._flats()[0]
        return [key for key, value in self.optimizer.state[flat].items() if _is_like(value, flat)]

    def _shared_entries(self) -> dict[str, Any]:  # Any: numbers and flags
        """What it keeps once for all weights: the steps it has counted."""
        flat = self._flats()[0]
        return {key: value for key, value in self.optimizer.state[flat].items() if not _is_like(value, flat)}

    def _make_states(self, like: Mapping[str, Any]) -> None:  # Any: as above
        """States as after a first step, zero where the weights are cut up, for `load_optimizer_state` to fill."""
        for flat in self._flats():
            self.optimizer.state[flat] = {
                key: torch.zeros_like(flat) if _has_shape(value) else copy.deepcopy(value)
                for key, value in like.items()
            }
        self._link_states()

    def _link_states(self) -> None:
        """Stages 1 and 2 look each parameter's part of the state up once, after the first group's first step only."""
        if self._stage == 3:
            return
        zero = self._engine.optimizer
        for parameters, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            self._deepspeed.utils.lazy_init_hp_params_optimizer_state(parameters, flat, self.optimizer.state)

    def _group_settings(self) -> list[dict[str, Any]]:  # Any: as torch keeps them
        groups, start = [], 0
        for group, size in zip(self.optimizer.param_groups, self._groups, strict=True):
            settings = {key: value for key, value in group.items() if key != "params"}
            groups.append({**settings, "params": list(range(start, start + size))})
            start += size
        return groups


def _is_like(value: Any, flat: Tensor) -> bool:  # Any: an entry of an optimizer's state
    return isinstance(value, Tensor) and value.shape == flat.shape


def _has_shape(value: Any) -> bool:  # Any: as above
    return isinstance(value, Tensor) and value.dim() > 0


def _number(output: Any) -> Any:  # Any: what a model returns
    """A number of shape (1,), as it is inside, of shape (), as the caller knows it."""
    return output.reshape(()) if isinstance(output, Tensor) and output.shape == (1,) else output


def _import_deepspeed(settings: Parallel, ranks: Ranks) -> ModuleType:
    if ranks.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when it is imported
    try:
        import deepspeed
    except ImportError as error:
        raise ConfigError(
            f"parallel.engine={settings.engine} needs DeepSpeed, which cannot be imported ({error}): "
            "pip install 'cn_clip[deepspeed]', or take parallel.engine=fsdp"
        ) from error
    version = tuple(int(part) for part in deepspeed.__version__.split("+")[0].split(".")[:2])
    if version < OLDEST:
        raise ConfigError(
            f"parallel.engine={settings.engine} needs DeepSpeed {'.'.join(map(str, OLDEST))} or newer, this is "
            f"{deepspeed.__version__}: pip install -U deepspeed, or take parallel.engine=fsdp"
        )
    deepspeed.utils.logger.setLevel(logging.WARNING)
    # it calls torch by names for which torch 2.14 has others, at every step
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
    if not dist.is_initialized():  # one process without torchrun: DeepSpeed wants a group all the same
        backend = "nccl" if ranks.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    os.environ.setdefault(
        "LOCAL_RANK", str(ranks.local_rank)
    )  # it reads torchrun's variable without torchrun, too
    if ranks.device.type == "cpu":
        # else it compiles an operator for inference over shared memory, which takes a minute, g++ and ninja
        deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    module: ModuleType = deepspeed
    return module
