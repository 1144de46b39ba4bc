"""Which kernel computes the attention of the image tower; parameters and results stay, up to rounding.

Shapes: B pictures, H heads, L tokens, D channels of a head, W channels of a token.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import warnings
from types import MethodType
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cn_clip.errors import ConfigError, DeviceError
from cn_clip.towers.split_attention import SplitAttention

logger = logging.getLogger(__name__)

Attention = nn.MultiheadAttention | SplitAttention
"""Of a ViT's block; the split one where there are adapters."""


class Tower(Protocol):
    """What of an image tower is needed here."""

    def blocks(self) -> list[nn.Module]: ...


def choose_attention(
    tower: Tower,
    kernel: Literal["auto", "flash", "flash_attn"],
    *,
    device: torch.device,
    dtype: torch.dtype,
    flash_attention: bool = False,
) -> None:
    """Let each block of an image tower attend with a kernel: torch's choice, torch's flash kernel, or the package flash-attn.

    Call it on the bare model with its adapters in. `dtype` is what attention computes in on `device` (autocast's type, else
    that of the weights). A kernel that does not fit them is a DeviceError. `flash_attention` (--use-flash-attention) says once what `auto` comes to.
    """
    attentions = [
        module for block in tower.blocks() for module in block.modules() if isinstance(module, Attention)
    ]
    if kernel == "auto":
        for attention in attentions:
            vars(attention).pop("forward", None)
        if flash_attention:
            _tell(attentions, device, dtype)
        return
    if not attentions:
        raise ConfigError(
            f"model.attention is {kernel}, but {type(tower).__name__} has no attention blocks of its own to choose for: "
            "set model.attention=auto"
        )
    reason = (_why_no_flash if kernel == "flash" else _why_no_package)(attentions[0].head_dim, device, dtype)
    if reason is not None:
        raise DeviceError(f"model.attention is {kernel}, but {reason}; model.attention=auto takes what fits")
    forward = _flash_forward if kernel == "flash" else _package_forward
    for attention in attentions:
        # a bound method, since `copy.deepcopy` binds it to the copy
        vars(attention)["forward"] = MethodType(forward, attention)


def _tell(attentions: list[Attention], device: torch.device, dtype: torch.dtype) -> None:
    if device.type != "cuda":
        reason = "no flash kernel"  # torch has one for the CPU too, and takes it without being asked
    elif not attentions:
        reason = "the image tower has no attention blocks"
    else:
        reason = _why_no_flash(attentions[0].head_dim, device, dtype) or ""
    if reason:
        logger.warning(
            "model.flash_attention (--use-flash-attention) does nothing on this device: %s.", reason
        )
    else:
        logger.info("Using FlashAttention.")


def _why_no_flash(head_dim: int, device: torch.device, dtype: torch.dtype) -> str | None:
    """One clause on why torch has no flash kernel for such heads, or None: found by running one."""
    probe = torch.zeros(1, 1, 8, head_dim, device=device, dtype=dtype, requires_grad=True)
    with warnings.catch_warnings(record=True) as told, sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        warnings.simplefilter("always")
        try:
            F.scaled_dot_product_attention(probe, probe, probe).sum().backward()
        except RuntimeError as error:
            hints = [str(warning.message).splitlines()[0] for warning in told] or [str(error).splitlines()[0]]
            return (
                f"torch has no flash kernel for {dtype} heads of {head_dim} channels on {device.type} "
                f"({hints[-1].partition(' (Triggered')[0].rstrip('. ')})"
            )
    return None


def _why_no_package(head_dim: int, device: torch.device, dtype: torch.dtype) -> str | None:
    if importlib.util.find_spec("flash_attn") is None:
        return "the package is not installed: pip install flash-attn --no-build-isolation"
    if device.type != "cuda":
        return f"the package runs on CUDA only, and this is {device.type}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"the package computes in half precision, not in {dtype}: set train.precision=amp_bf16"
    return None


def _flash_forward(
    attention: Attention, query: Tensor, key: Tensor, value: Tensor, **options: object
) -> tuple[Tensor, None]:
    """(B, L, W) self-attention, with the arguments of `nn.MultiheadAttention.forward`."""
    if not attention.training:
        return _own_forward(attention, query, key, value, **options)
    query_BHLD, key_BHLD, value_BHLD = _heads(attention, query).permute(2, 0, 3, 1, 4).unbind()
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        mixed_BHLD = F.scaled_dot_product_attention(query_BHLD, key_BHLD, value_BHLD)
    return attention.out_proj(mixed_BHLD.transpose(1, 2).flatten(2)), None


def _package_forward(
    attention: Attention, query: Tensor, key: Tensor, value: Tensor, **options: object
) -> tuple[Tensor, None]:
    """The same with flash-attn."""
    if not attention.training:
        return _own_forward(attention, query, key, value, **options)
    mixed_BLHD = importlib.import_module("flash_attn").flash_attn_func(*_heads(attention, query).unbind(2))
    return attention.out_proj(mixed_BLHD.flatten(2)), None


def _own_forward(
    attention: Attention, query: Tensor, key: Tensor, value: Tensor, **options: object
) -> tuple[Tensor, None]:
    """Validation is in full precision, which flash kernels do not know."""
    return type(attention).forward(attention, query, key, value, **options)  # type: ignore[arg-type, return-value]  # the block's own call


def _heads(attention: Attention, tokens_BLW: Tensor) -> Tensor:
    """(B, L, 3, H, D) queries, keys and values of the tokens among themselves."""
    if isinstance(attention, SplitAttention):
        return attention.heads(tokens_BLW)
    projected = F.linear(tokens_BLW, attention.in_proj_weight, attention.in_proj_bias)
    return projected.unflatten(-1, (3, attention.num_heads, attention.head_dim))
