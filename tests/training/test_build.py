"""A model from its settings, and what is said about them."""

from __future__ import annotations

import logging

import pytest

from cn_clip.config.schema import Model
from cn_clip.training.build import build_clip


@pytest.mark.parametrize(
    ("image", "ratio", "num_notes"), [("resnet", 0.5, 1), ("resnet", 0.0, 0), ("vit", 0.5, 0)]
)
def test_masking_that_does_nothing_is_noted_once(
    image: str, ratio: float, num_notes: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        build_clip(Model(image=f"tiny-{image}", text="tiny-bert", mask_ratio=ratio), seed=1)
    assert sum("mask_ratio" in message for message in caplog.messages) == num_notes
