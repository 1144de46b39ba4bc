"""Which fused kernels of attention fit the calls that the towers of a run make, on this device and type."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from cn_clip.config.schema import TrainConfig
from cn_clip.parallel.precision import Precision
from cn_clip.parallel.ranks import Ranks
from cn_clip.training.diagnosis.fake_model import AttentionCall
from cn_clip.training.diagnosis.finding import Finding, Number
from cn_clip.training.diagnosis.step_cost import tower_attention

KERNELS: Mapping[str, SDPBackend] = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
}
"""Fused kernels of `scaled_dot_product_attention` that hold no table of all weights."""


def check_kernels(config: TrainConfig, ranks: Ranks) -> list[Finding]:
    """One finding for each tower."""
    dtype = Precision(config.train.precision, ranks.device).autocast_dtype
    return [
        _judged(
            tower,
            calls,
            dtype,
            ranks.device,
            wants_flash=tower == "image" and _wants_flash(config),
            is_keyed=config.train.randomness == "pair",
        )
        for tower, calls in tower_attention(config).items()
    ]


def _wants_flash(config: TrainConfig) -> bool:
    return config.model.flash_attention or config.model.attention == "flash"


def _judged(
    tower: str,
    calls: list[AttentionCall],
    dtype: torch.dtype | None,
    device: torch.device,
    *,
    wants_flash: bool,
    is_keyed: bool,
) -> Finding:
    if not calls:
        return _no_call(tower, is_keyed)
    call = calls[0] if dtype is None else replace(calls[0], dtype=dtype)
    fitting = fitting_kernels(call, device)
    return judge(tower, call, fitting, device.type, wants_flash=wants_flash)


def _no_call(tower: str, is_keyed: bool) -> Finding:
    says = f"{tower} tower: its attention is written out in products, no fused kernel is involved"
    if not is_keyed or tower != "text":
        return Finding(check="kernels", says=says, numbers={"tower": tower})
    return Finding(
        check="kernels",
        says=f"{says}: its dropout follows the pairs (train.randomness=pair), which no fused kernel can do",
        numbers={"tower": tower},
        next_step="for speed on a GPU set train.randomness=micro_batch; gradients then depend on how the batch is cut",
    )


def judge(
    tower: str, call: AttentionCall, fitting: list[str], device_type: str, *, wants_flash: bool
) -> Finding:
    """Verdict on the kernels that fit a call."""
    heads, length, width = call.query_BHLD[-3:]
    what = (
        f"{tower} tower, {heads} heads of {width}, up to {length} tokens, {str(call.dtype).removeprefix('torch.')}, "
        f"{'padded' if call.masked else 'no mask'}"
    )
    numbers: dict[str, Number] = {
        "tower": tower,
        "kernels": ", ".join(fitting),
        "heads": heads,
        "head_width": width,
        "tokens": length,
    }
    if wants_flash and "flash" not in fitting:
        return Finding(
            check="kernels",
            says=f"{what}: flash attention is asked for and does not fit ({', '.join(fitting) or 'no fused kernel'} does)",
            verdict="slow",
            numbers=numbers,
            next_step="train in amp or amp_bf16 on a GPU of compute capability 8.0 or more, or leave out "
            "--use-flash-attention (model.attention=auto)",
        )
    if not fitting and device_type == "cuda":
        return Finding(
            check="kernels",
            says=f"{what}: no fused kernel fits, torch multiplies tables of {length} x {length}",
            verdict="slow",
            numbers=numbers,
            next_step="train in amp or amp_bf16 (train.precision); fp32 has no flash kernel",
        )
    return Finding(check="kernels", says=f"{what}: {', '.join(fitting) or 'plain products'}", numbers=numbers)


def fitting_kernels(call: AttentionCall, device: torch.device) -> list[str]:
    """Names of `KERNELS` that take such a call of few pairs, forward and backward, tried one by one."""
    return [name for name, kernel in KERNELS.items() if _fits(call, kernel, device)]


def _fits(call: AttentionCall, kernel: SDPBackend, device: torch.device) -> bool:
    def random(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(2, *shape[-3:], device=device, dtype=call.dtype, requires_grad=True)

    query, key, value = random(call.query_BHLD), random(call.key_BHSD), random(call.key_BHSD)
    mask = None
    if call.masked:
        mask = torch.ones(2, 1, query.shape[-2], key.shape[-2], dtype=torch.bool, device=device)
        mask[:, :, :, -1] = False
    with warnings.catch_warnings(), sdpa_kernel([kernel]):
        warnings.simplefilter(
            "ignore"
        )  # torch says there why a kernel does not fit, one warning for each reason
        try:
            F.scaled_dot_product_attention(query, key, value, mask, call.dropout).sum().backward()
        except RuntimeError:  # "No available kernel", or no such kernel in this build
            return False
    return True
