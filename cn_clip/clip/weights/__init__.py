"""Weights of the two-tower model: `files` reads them, `layouts` knows every key conversion, `guess` tells the towers,
`loading` fits them into a model, `optimizer` maps optimizer state by name."""

from __future__ import annotations

from cn_clip.clip.weights.files import Checkpoint, read_checkpoint
from cn_clip.clip.weights.guess import (
    describe_towers,
    guess_image_px,
    guess_towers,
    trained_image_px,
)
from cn_clip.clip.weights.layouts import Weights
from cn_clip.clip.weights.loading import load_image_tower, load_into, load_text_tower, model_weights
from cn_clip.clip.weights.optimizer import (
    decays_in_reference,
    optimizer_state_from_reference,
    optimizer_state_to_reference,
    parameter_names,
    split_decay,
    state_for_file,
    state_for_run,
)

__all__ = [
    "Checkpoint",
    "Weights",
    "decays_in_reference",
    "describe_towers",
    "guess_image_px",
    "guess_towers",
    "load_image_tower",
    "load_into",
    "load_text_tower",
    "model_weights",
    "optimizer_state_from_reference",
    "optimizer_state_to_reference",
    "parameter_names",
    "read_checkpoint",
    "split_decay",
    "state_for_file",
    "state_for_run",
    "trained_image_px",
]
