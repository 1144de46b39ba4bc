"""What one micro-batch of a run costs: bytes kept for the backward pass, most bytes at once, FLOPs; without doing it.

Shapes: B pairs, C H W picture, L tokens.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils.flop_counter import FlopCounterMode

from cn_clip.clip.lora import add_adapters
from cn_clip.clip.model import CLIP
from cn_clip.clip.precision import convert_weights
from cn_clip.config.schema import TrainConfig
from cn_clip.parallel.recompute import recompute_blocks
from cn_clip.parallel.wrap import set_training_mode
from cn_clip.training.diagnosis.fake_model import AttentionCall, OnDevice, fake_model, meta_model
from cn_clip.training.diagnosis.live_bytes import LiveBytes
from cn_clip.training.freezing import freeze_towers
from cn_clip.training.optimizer import build_optimizer

WEIGHTS_TYPE = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""`train.precision` that holds weights in the type it computes in; the others hold fp32."""


@dataclass(frozen=True)
class Weights:
    """Parameters of a model, in elements and bytes."""

    count: int
    bytes: int
    trained: int
    """Elements that take gradients."""
    trained_bytes: int
    matrix_bytes: int
    """Of parameters of two and more dimensions: what FSDP2 cuts up here."""
    largest_block_bytes: int
    """Of the repeated modules: what an engine that shards them has whole at one time."""
    outside_blocks_bytes: int
    """Embeddings, projections, first and last norms."""
    optimizer_bytes: int
    """Of the optimizer's state, when every rank holds all of it."""
    buffer_bytes: int


@dataclass(frozen=True)
class MicroBatchCost:
    """One forward and backward pass over the pairs of a micro-batch."""

    pairs: int
    kept_bytes: int
    """Alive between forward and backward, beside weights and the batch itself."""
    peak_bytes: int
    """Most that was alive at once, beside weights, their gradients and the batch itself."""
    fresh_peak_bytes: int
    """The same with the gradients, of which there were none at the beginning."""
    forward_flops: int
    """Of matrix products, convolutions and attention; 2 a multiply and add."""
    flops: int
    """Forward and backward, with what is recomputed."""


@dataclass(frozen=True)
class StepCost:
    weights: Weights
    micro_batch: MicroBatchCost
    batch_bytes: int
    """Of the pictures and tokens of one micro-batch on the device."""
    embed_dim: int


def step_cost(
    config: TrainConfig, device_type: str, *, pairs: int | None = None, world_size: int = 1
) -> StepCost:
    """Cost of micro-batches of `pairs` (`train.batch_size`) with captions of the longest length, on such a device."""
    pairs = config.train.batch_size if pairs is None else pairs
    gathers_cast = world_size > 1 and config.parallel.engine == "fsdp"
    model, frozen = _prepared(config)
    with fake_model(model, device_type) as observed:
        set_training_mode(model, frozen)
        weights = _weights(model, config)
        if gathers_cast:
            _cast_matrices(model, config)
        images_BCHW, tokens_BL = _batch(model, config, pairs)
        micro_batch = _Run(model, images_BCHW, tokens_BL, config).cost(observed)
    return StepCost(
        weights=weights,
        micro_batch=micro_batch,
        batch_bytes=images_BCHW.nbytes + tokens_BL.nbytes,
        embed_dim=model.text_projection.shape[1],
    )


def tower_attention(config: TrainConfig) -> dict[str, list[AttentionCall]]:
    """Calls of `scaled_dot_product_attention` that one forward pass of each tower makes in training."""
    model, frozen = _prepared(config)
    found = {}
    with fake_model(model, "cuda") as observed, torch.no_grad():
        set_training_mode(model, frozen)
        images_BCHW, tokens_BL = _batch(model, config, 2)
        keys_B = torch.zeros(2, dtype=torch.int64) if config.train.randomness == "pair" else None
        model.encode_image(images_BCHW, config.model.mask_ratio, keys_B=keys_B)
        found["image"], observed.calls = observed.calls, []
        model.encode_text(tokens_BL[:2], keys_B=keys_B)
        found["text"] = observed.calls
    return found


def _prepared(config: TrainConfig) -> tuple[CLIP, list[nn.Module]]:
    model = meta_model(config.model, config.loss)
    with torch.device("meta"):
        adapted = add_adapters(model, config.lora, config.run.seed)
    model.key_dropout()
    frozen = [*adapted, *freeze_towers(model, config.model)]
    if config.train.precision in WEIGHTS_TYPE:
        convert_weights(model, WEIGHTS_TYPE[config.train.precision])
    if config.model.recompute:
        recompute_blocks([*model.visual.blocks(), *model.bert.blocks()])
    return model, frozen


def _batch(model: CLIP, config: TrainConfig, pairs: int) -> tuple[Tensor, Tensor]:
    px = model.visual.image_px
    as_stored = torch.float32 if config.data.transform == "exact" else torch.uint8
    images_BCHW = torch.empty(pairs, 3, px, px, dtype=as_stored)
    captions = pairs * (1 + config.data.hard_negatives)
    return images_BCHW, torch.ones(captions, config.data.context_length, dtype=torch.int64)


class _Run:
    """One fake forward and backward pass."""

    def __init__(self, model: CLIP, images_BCHW: Tensor, tokens_BL: Tensor, config: TrainConfig) -> None:
        self._model, self._images_BCHW, self._tokens_BL, self._config = model, images_BCHW, tokens_BL, config

    def cost(self, observed: OnDevice) -> MicroBatchCost:
        # FLOPs first, since gradients are counted as they come; and apart, since torch's counter holds on to tensors
        forward, whole = self._flops(observed)
        for parameter in self._model.parameters():
            parameter.grad = None
        with LiveBytes() as live:
            live.hold([*self._model.parameters(), *self._model.buffers()])
            live.hold([self._images_BCHW, self._tokens_BL])
            for parameter in self._model.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(partial(_put_gradient_aside, live))
            surrogate = self._forward()
            kept = live.now
            self._backward(surrogate)
        return MicroBatchCost(
            pairs=len(self._images_BCHW),
            kept_bytes=kept,
            peak_bytes=live.peak_beside,
            fresh_peak_bytes=live.peak,
            forward_flops=forward,
            flops=whole,
        )

    def _flops(self, observed: OnDevice) -> tuple[int, int]:
        """(of the forward pass, of both)."""
        with FlopCounterMode(display=False) as counter:
            surrogate = self._forward()
            forward, first = counter.get_total_flops(), observed.fused_flops
            self._backward(surrogate)
        # of each call two products forward and four backward; recomputed ones are further calls
        return forward + first, counter.get_total_flops() + observed.fused_flops + 2 * first

    def _forward(self) -> Tensor:
        keyed = self._config.train.randomness == "pair"
        with _autocast(self._config.train.precision):
            image_BE, text_BE, scale, *_ = self._model(
                self._images_BCHW,
                self._tokens_BL,
                mask_ratio=self._config.model.mask_ratio,
                keys_B=torch.zeros(len(self._images_BCHW), dtype=torch.int64) if keyed else None,
            )
        inner = (image_BE.float() * torch.empty_like(image_BE, dtype=torch.float32)).sum()
        return inner + (text_BE.float() * torch.empty_like(text_BE, dtype=torch.float32)).sum() + scale

    @staticmethod
    def _backward(surrogate: Tensor) -> None:
        if surrogate.requires_grad:  # else everything is frozen
            surrogate.backward()


def _cast_matrices(model: CLIP, config: TrainConfig) -> None:
    """FSDP2 gathers them in autocast's type: autocast then keeps no copies of its own."""
    if config.train.precision.startswith("amp"):
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data = parameter.data.bfloat16()


def _put_gradient_aside(live: LiveBytes, parameter: Tensor) -> None:
    assert parameter.grad is not None
    live.put_aside(parameter.grad)


def _autocast(precision: str) -> AbstractContextManager[Any]:  # Any: what torch.autocast yields is not used
    # bf16 for fp16 too: as many bytes, and the CPU knows both
    return torch.autocast("cpu", torch.bfloat16) if precision.startswith("amp") else nullcontext()


def _weights(model: CLIP, config: TrainConfig) -> Weights:
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    blocks = [_bytes(block.parameters()) for block in (*model.visual.blocks(), *model.bert.blocks())]
    everything = _bytes(parameters)
    return Weights(
        count=sum(parameter.numel() for parameter in parameters),
        bytes=everything,
        trained=sum(parameter.numel() for parameter in trained),
        trained_bytes=_bytes(trained),
        matrix_bytes=_bytes(parameter for parameter in parameters if parameter.dim() > 1),
        largest_block_bytes=max(blocks),
        outside_blocks_bytes=everything - sum(blocks),
        optimizer_bytes=_optimizer_bytes(model, config),
        buffer_bytes=_bytes(model.buffers()),
    )


def _bytes(tensors: Any) -> int:  # Any: an iterable of tensors or parameters
    return sum(tensor.nbytes for tensor in tensors)


def _optimizer_bytes(model: CLIP, config: TrainConfig) -> int:
    """Of the state that the run's own optimizer makes at its first step."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = build_optimizer(model, config.optim)
    try:
        optimizer.step()
    except DataDependentOutputException:
        # an optimizer that looks at numbers, which fake tensors lack: two moments in fp32, as AdamW
        return 8 * sum(parameter.numel() for parameter in trained)
    finally:
        for parameter in trained:
            parameter.grad = None
    states = optimizer.state.values()
    return _bytes(value for state in states for value in state.values() if isinstance(value, Tensor))
