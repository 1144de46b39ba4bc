"""A trained model ready to encode: built, filled with a checkpoint, on its device, in its precision.

Shapes: B pictures or captions, C H W picture, L tokens, E embedding.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cn_clip.clip.model import CLIP, build_model, convert_weights
from cn_clip.clip.presets import text_preset
from cn_clip.clip.tower_tokenizer import TowerTokenizer
from cn_clip.clip.weights import load_into, model_weights, read_checkpoint, trained_image_px
from cn_clip.errors import WeightsError

Precision = Literal["amp", "amp_bf16", "fp16", "fp32"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which model, and how it computes."""

    image: str
    """Image tower: preset name or path."""
    text: str
    """Text tower: preset name or path."""
    weights: str | Path
    """Checkpoint of both towers."""
    device: torch.device
    """Where it runs."""
    precision: Precision = "amp"
    """`amp` and `fp32` compute in fp32, as the reference's `amp` does here; `fp16` casts the weights; `amp_bf16` autocasts."""


@dataclass(frozen=True)
class Encoder:
    """Encodes batches; features come on the CPU in fp32, not normalised."""

    model: CLIP
    image_px: int
    """Side of the pictures the image tower takes."""
    position: str
    """Where in training the checkpoint was written, as in `epoch 3 @ 1200 steps`; empty if it does not say."""
    text_name: str
    device: torch.device
    precision: Precision

    def encode_images(self, images_BCHW: Tensor) -> Tensor:
        """features_BE of normalised float or raw uint8 pictures."""
        with torch.inference_mode(), self._autocast():
            return self.model.encode_image(images_BCHW.to(self.device, non_blocking=True)).float().cpu()

    def encode_texts(self, tokens_BL: Tensor) -> Tensor:
        """features_BE of token ids; columns that only pad are left out, which does not change the features."""
        used_L = tokens_BL.ne(self.model.bert.pad_id).any(dim=0)
        longest = int(used_L.nonzero().max()) + 1 if used_L.any() else 1
        with torch.inference_mode(), self._autocast():
            tokens = tokens_BL[:, :longest].to(self.device, non_blocking=True)
            return self.model.encode_text(tokens).float().cpu()

    def tokenizer(self, context_length: int) -> TowerTokenizer:
        """Captions to ids as the text tower reads them."""
        return TowerTokenizer.of(text_preset(self.text_name), context_length, self.model.bert.pad_id)

    def max_context_length(self) -> int | None:
        """Longest caption the text tower takes, in tokens; None if its preset does not say."""
        length: int | None = text_preset(self.text_name).options.get("max_positions")
        return length

    def _autocast(self) -> AbstractContextManager[Any]:  # Any: what torch.autocast yields is not used
        if self.precision != "amp_bf16":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def open_encoder(choice: Choice) -> Encoder:
    """Model of two presets with the weights of a checkpoint, in eval mode, for pictures of the size it was trained with."""
    checkpoint = read_checkpoint(choice.weights)
    weights = model_weights(checkpoint)
    image_px = trained_image_px(choice.image, weights)
    model = build_model(choice.image, choice.text, image_px)
    load_into(model, weights, str(choice.weights))
    _check_finite(model, choice.weights)
    if choice.precision == "fp16":
        convert_weights(model)
    position = ""
    if "epoch" in checkpoint and "step" in checkpoint:
        position = f"epoch {checkpoint['epoch']} @ {checkpoint['step']} steps"
    return Encoder(
        model.eval().to(choice.device),
        image_px,
        position,
        choice.text,
        choice.device,
        choice.precision,
    )


def _check_finite(model: CLIP, path: str | Path) -> None:
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise WeightsError(f"{path}: {name} holds NaN or infinity; take an earlier checkpoint")
