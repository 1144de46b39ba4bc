"""A rank's own part of tensors that an engine has sharded (torch's DTensor), and back; whole tensors are their own part."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeGuard

from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether ranks hold parts of it."""
    if "torch.distributed.tensor" not in sys.modules:  # a second to import, and nobody has made such a tensor
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def own_part(tensor: Tensor) -> Tensor:
    """What this rank holds of the tensor, in the same memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def shard_like(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same on every rank, cut up as `like` is; of the type it has. No rank sends anything."""
    if not is_sharded(like):
        return whole.to(like.device)
    from torch.distributed.tensor import DTensor, Shard

    mesh, own = like.device_mesh, whole.to(like.to_local().device)
    for axis, placement in enumerate(like.placements):
        if isinstance(placement, Shard):
            parts = own.chunk(mesh.size(axis), placement.dim)
            place = mesh.get_local_rank(axis)
            # short tensors leave nothing for the last ranks
            own = parts[place] if place < len(parts) else own.narrow(placement.dim, 0, 0)
    # a copy, or it would keep the whole tensor in memory
    return DTensor.from_local(
        own.clone(), mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def drop_gathered(model: nn.Module) -> None:
    """Free whole weights that FSDP2 still holds after a forward pass: the next one gathers them anew.

    To be called when sharded weights were changed by hand: FSDP2 would go on with the ones it has.
    """
    # not by the parameters: while they are gathered, they are whole
    if "torch.distributed.fsdp" not in sys.modules:
        return
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
