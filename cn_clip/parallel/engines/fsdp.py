"""Weights, gradients and optimizer state cut up over the ranks: torch's FSDP2 (`fully_shard`, arXiv:2304.11277).

Each block of both towers is gathered whole before its passes and given back after them; what is outside the blocks is
gathered once and stays until the backward pass has gone through it.

Matrices and tables are cut up. Vectors and single numbers (norms, biases, the logit scale) are whole on every rank:
they are under 0.1 % of the weights, FSDP refuses single numbers anyway, and so a block's weights can travel in the type
that autocast would turn them into, while its norms stay in fp32 as they do under DDP. What is gathered in bf16 is bit
for bit what autocast computes with; gradients are added up in fp32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from cn_clip.config.schema import Parallel
from cn_clip.errors import ConfigError
from cn_clip.parallel.engines import Engine, Model, ddp, length_of
from cn_clip.parallel.precision import Precision
from cn_clip.parallel.ranks import Ranks
from cn_clip.parallel.shards import is_sharded, own_part, shard_like


def build(
    model: Model, settings: Parallel, precision: Precision, ranks: Ranks, blocks: Sequence[nn.Module] = ()
) -> Engine[Model]:
    if ranks.world_size == 1:  # nobody to share with
        return ddp.build(model, settings, precision, ranks)
    return ShardedEngine(model, settings, precision, ranks, blocks)


class ShardedEngine(Engine[Model]):
    passes_are_local = False

    def __init__(
        self,
        model: Model,
        settings: Parallel,
        precision: Precision,
        ranks: Ranks,
        blocks: Sequence[nn.Module],
    ) -> None:
        super().__init__(model, settings, precision, ranks)
        mesh = _mesh(settings, ranks)
        _copy_from_main(model)
        with _left_out(model, _kept_whole(model)):
            for block in blocks:
                fully_shard(
                    block,
                    mesh=mesh,
                    reshard_after_forward=settings.reshard,
                    mp_policy=_policy(precision),
                )
            root = fully_shard(model, mesh=mesh, reshard_after_forward=False)
        assert isinstance(root, FSDPModule)  # the same object: its class is another now
        self._root = root
        self._sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
        self._replicas = ranks.world_size // (settings.shard_ranks or ranks.world_size)
        self._named = dict(model.named_parameters())
        self._joins = True
        model.register_forward_hook(self._after_forward)

    def __call__(self, *inputs: Any, **options: Any) -> Any:  # Any: the model's own forward
        # what is gathered has autocast's type, so the pass needs autocast also where the caller has none
        with self.precision.autocast():
            return self.module(*inputs, **options)

    def _after_forward(self, model: nn.Module, inputs: object, outputs: object) -> None:
        # No backward pass follows a validation, and the whole weights would outlive a change of the shards.
        if not model.training:
            self._give_back()

    def _give_back(self) -> None:
        for module in self._sharded:
            module.reshard()

    @contextmanager
    def without_sync(self) -> Iterator[None]:
        self._set_joining(False)
        try:
            yield
        finally:
            self._set_joining(True)

    def _set_joining(self, joins: bool) -> None:
        self._joins = joins
        if self.settings.sync == "micro_batch":
            # cut up after each backward pass; copies of the shards (HSDP) still meet once
            self._root.set_requires_all_reduce(joins)
        else:
            self._root.set_requires_gradient_sync(joins)
        # weights that stay after the forward pass may as well stay for the next one
        self._root.set_reshard_after_backward(joins, recurse=not self.settings.reshard)

    def backward(self, scalar: Tensor) -> None:
        # FSDP averages over the ranks; the sum is asked for
        self.precision.backward(self.ranks.world_size * scalar)
        if self._joins:
            self._join_whole_gradients()

    def _join_whole_gradients(self) -> None:
        """Those of the parameters that are not cut up, averaged as the others are, all in one message."""
        gradients = [p.grad for p in self._named.values() if p.grad is not None and not is_sharded(p)]
        if gradients:
            flat = torch.cat([gradient.flatten().float() for gradient in gradients])
            dist.all_reduce(flat)
            flat /= self.ranks.world_size
            for gradient, values in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(values.view_as(gradient))

    def zero_grad(self) -> None:
        for parameter in self._named.values():
            parameter.grad = None

    def _parameters(self) -> dict[str, nn.Parameter]:
        return self._named  # while weights are gathered, the module has others

    def _own_gradients(self) -> list[Tensor]:
        return [own_part(p.grad) for p in self._named.values() if p.grad is not None]

    def _length(self, gradients: Sequence[Tensor]) -> float:
        with_gradient = [p for p in self._named.values() if p.grad is not None]
        parts = zip(with_gradient, gradients, strict=True)
        cut_up: dict[bool, list[Tensor]] = {True: [], False: []}
        for parameter, gradient in parts:
            cut_up[is_sharded(parameter)].append(gradient)
        squares = length_of(cut_up[True]).double().square().to(self.ranks.device)
        dist.all_reduce(squares)
        whole = float(length_of(cut_up[False]))
        return (float(squares) / self._replicas + whole**2) ** 0.5

    def _apply(self) -> None:
        self.optimizer.step()
        self._give_back()

    def model_state(self) -> dict[str, Tensor]:
        return self.whole(self.module.state_dict())

    def optimizer_state(self) -> dict[str, Any]:  # Any: torch's own layout
        own = self.optimizer.state_dict()
        state: dict[Any, dict[str, Any]] = {}  # Any: as above
        for number, entry in own["state"].items():
            state[number] = {key: self._joined(value) for key, value in entry.items()}
        return {"state": state, "param_groups": own["param_groups"]} if self.ranks.is_main else {}

    def load_optimizer_state(self, state: Mapping[str, Any]) -> None:  # Any: as above
        likes = [p for group in self.optimizer.param_groups for p in group["params"]]
        cut = {}
        for number, entry in state["state"].items():
            cut[number] = {key: _cut_like(value, likes[number]) for key, value in entry.items()}
        self.optimizer.load_state_dict({"state": cut, "param_groups": state["param_groups"]})

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, tensor in tensors.items():
            # one at a time: no rank ever holds all of them
            joined = self._joined(tensor)
            if self.ranks.is_main:
                found[name] = joined
        return found

    def _joined(self, value: Any) -> Any:  # Any: a tensor, or a number of an optimizer's state
        """Whole, on the main rank's CPU where it was cut up."""
        if not isinstance(value, DTensor):
            return value
        whole = value.full_tensor().detach()
        return whole.cpu() if self.ranks.is_main else None


def _cut_like(value: Any, like: Tensor) -> Any:  # Any: a tensor, or a number of an optimizer's state
    """A whole tensor of a parameter's shape, cut up as the parameter is; all else as it is."""
    if not isinstance(value, Tensor) or is_sharded(value) or value.shape != like.shape:
        return value
    return shard_like(value, like)


def _mesh(settings: Parallel, ranks: Ranks) -> DeviceMesh:
    """Ranks that share one copy of the weights in a row; rows are copies of each other (HSDP)."""
    size = settings.shard_ranks or ranks.world_size
    if ranks.world_size % size:
        raise ConfigError(
            f"parallel.shard_ranks is {size}, but {ranks.world_size} ranks are no multiple of it: set it to the ranks of a "
            "node, or leave it out"
        )
    if size == ranks.world_size:
        return init_device_mesh(ranks.device.type, (size,), mesh_dim_names=("shard",))
    shape = (ranks.world_size // size, size)
    return init_device_mesh(ranks.device.type, shape, mesh_dim_names=("replicate", "shard"))


def _policy(precision: Precision) -> MixedPrecisionPolicy:
    """Weights travel in autocast's type, gradients in fp32; activations are left as autocast makes them."""
    if precision.autocast_dtype is None:
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(
        param_dtype=precision.autocast_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )


def _copy_from_main(model: nn.Module) -> None:
    """Every rank starts from the main rank's weights and statistics, as under DDP."""
    for tensor in (*model.parameters(), *model.buffers()):
        dist.broadcast(tensor.detach(), src=0)


def _kept_whole(model: nn.Module) -> set[nn.Parameter]:
    """Parameters that are not cut up: vectors, numbers, and what has another type than most (FSDP takes one type)."""
    values_of: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        values_of[parameter.dtype] += parameter.numel()
    usual = values_of.most_common(1)[0][0]
    return {p for p in model.parameters() if p.dim() < 2 or p.dtype != usual}


@contextmanager
def _left_out(model: nn.Module, parameters: Collection[nn.Parameter]) -> Iterator[None]:
    """The model has none of these parameters inside; outside, each is in its old place again.

    What `ignored_params` does, which torch has from 2.7 on only.
    """
    before = [(module, dict(module._parameters)) for module in model.modules()]
    for module, own in before:
        for name, parameter in own.items():
            if parameter is not None and parameter in parameters:
                del module._parameters[name]
    try:
        yield
    finally:
        for module, own in before:
            now = dict(module._parameters)  # those that were sharded are other objects now
            module._parameters.clear()
            module._parameters.update({name: now.get(name, parameter) for name, parameter in own.items()})
