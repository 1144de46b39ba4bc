"""The model of a run in tensors that have shapes and no memory: any size is built in a moment, on any machine.

A step of it goes through the very code of a real step, so what is counted on the way (bytes, FLOPs, calls of attention)
is that of the run. Shapes: B pairs, H heads, L queries, S keys, D head width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cn_clip.clip.model import CLIP
from cn_clip.clip.presets import image_preset, text_preset
from cn_clip.config.schema import Model, Part
from cn_clip.losses.pair import sigmoid


def meta_model(settings: Model, loss: Part | None = None) -> CLIP:
    """Model of the settings on torch's meta device; no weights are read."""
    image, text = image_preset(settings.image), text_preset(settings.text)
    if settings.image_px is not None:
        options = {**image.options, "image_px": settings.image_px}
        image = dataclasses.replace(image, image_px=settings.image_px, options=options)
    with torch.device("meta"):
        model = CLIP.from_presets(image, text)
        if loss is not None and isinstance(loss.options, sigmoid.Options):
            model.add_logit_bias(loss.options.initial_bias)
    return model


def in_fake_memory(model: nn.Module) -> None:
    """Make parameters and buffers fake CPU tensors; call it inside the `FakeTensorMode` they belong to.

    CPU, and not meta, since autocast and the choice of kernels ask for the device.
    """
    model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu"))


@dataclass(frozen=True)
class AttentionCall:
    """One call of `scaled_dot_product_attention`."""

    query_BHLD: tuple[int, ...]
    key_BHSD: tuple[int, ...]
    dtype: torch.dtype
    masked: bool
    dropout: float
    is_fused: bool = True
    """Whether one kernel does it all; else it is written out in products."""


class OnDevice:
    """Lets a model of CPU tensors keep what it would keep on `device_type`, and writes down its calls of attention.

    On CUDA a fused kernel keeps queries, keys, values, output and a log-sum-exp per query, where the CPU may keep all
    weights of attention; dropout keeps a byte per element, and autocast computes norms in fp32.
    """

    def __init__(self, device_type: str) -> None:
        self._cuda = device_type == "cuda"
        self.calls: list[AttentionCall] = []

    @property
    def fused_flops(self) -> int:
        """Of the calls so far, forward: two matrix products, 2 FLOPs a multiply and add, where torch counts none itself."""
        return sum(4 * math.prod(call.query_BHLD) * call.key_BHSD[-2] for call in self.calls if call.is_fused)

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Inside, torch's functions are ours: not by a `TorchFunctionMode`, which is off while a backward pass runs and
        would leave what is recomputed there to another kernel."""
        attention, layer_norm, dropout = F.scaled_dot_product_attention, F.layer_norm, F.dropout

        def observed_attention(
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attn_mask: Tensor | None = None,
            dropout_p: float = 0.0,
            *more: Any,
            **options: Any,
        ) -> Tensor:
            self.calls.append(
                AttentionCall(
                    tuple(query.shape),
                    tuple(key.shape),
                    query.dtype,
                    masked=attn_mask is not None,
                    dropout=dropout_p,
                    # the CPU's fused kernel drops nothing
                    is_fused=self._cuda or dropout_p == 0,
                )
            )
            if self._cuda:
                return _FusedAttention.apply(query, key, value)
            return attention(query, key, value, attn_mask, dropout_p, *more, **options)

        def fp32_norm(inputs: Tensor, *arguments: Any, **options: Any) -> Tensor:
            if self._cuda and torch.is_autocast_enabled("cpu"):
                inputs = inputs.float()
            return layer_norm(inputs, *arguments, **options)

        def masked_dropout(
            inputs: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
        ) -> Tensor:
            if self._cuda and training and p > 0:
                return torch.native_dropout(inputs, p, True)[0]
            return dropout(inputs, p, training, inplace)

        ours = (observed_attention, fp32_norm, masked_dropout)
        names = ("scaled_dot_product_attention", "layer_norm", "dropout")
        vars(F).update(zip(names, ours, strict=True))
        try:
            yield
        finally:
            vars(F).update(zip(names, (attention, layer_norm, dropout), strict=True))


class _FusedAttention(torch.autograd.Function):
    """The memory of a fused kernel, not its numbers."""

    @staticmethod
    def forward(context: Any, query_BHLD: Tensor, key_BHSD: Tensor, value_BHSD: Tensor) -> Tensor:
        output_BHLD = torch.empty_like(query_BHLD)
        lse_BHL = query_BHLD.new_empty(query_BHLD.shape[:-1], dtype=torch.float32)
        context.save_for_backward(query_BHLD, key_BHSD, value_BHSD, output_BHLD, lse_BHL)
        return output_BHLD

    @staticmethod
    def backward(context: Any, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # Any: as torch has it
        query_BHLD, key_BHSD, value_BHSD = context.saved_tensors[:3]
        return torch.empty_like(query_BHLD), torch.empty_like(key_BHSD), torch.empty_like(value_BHSD)


@contextmanager
def fake_model(model: CLIP, device_type: str) -> Iterator[OnDevice]:
    """Inside, `model` (of the meta device) has fake tensors and behaves as on `device_type`."""
    on_device = OnDevice(device_type)
    with FakeTensorMode(), on_device.standing_in():
        in_fake_memory(model)
        yield on_device
