"""A rank's own part of tensors that an engine has sharded (torch's DTensor), and back; whole tensors are their own part."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether ranks hold parts of it."""
    return isinstance(tensor, DTensor)


def own_part(tensor: Tensor) -> Tensor:
    """What this rank holds of the tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same on every rank, cut up as `like` is; of the type it has."""
    if not isinstance(like, DTensor):
        return whole.to(like.device)
    # no rank sends: each cuts its part out of its own copy
    whole = whole.to(like.to_local().device)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def drop_gathered(model: nn.Module) -> None:
    """Free whole weights that FSDP2 still holds after a forward pass: the next one gathers them anew.

    To be called when sharded weights were changed by hand: FSDP2 would go on with the ones it has.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
