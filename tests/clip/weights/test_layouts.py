"""What a change of layout says."""

from __future__ import annotations

import logging

import pytest

from cn_clip.clip.model import build_model, resize_pos_embed


def test_a_resize_is_logged_as_the_reference_does(caplog: pytest.LogCaptureFixture) -> None:
    weights = build_model("tiny-vit", "tiny-bert").state_dict()
    with caplog.at_level(logging.INFO):
        resize_pos_embed(weights, build_model("tiny-vit", "tiny-bert", image_px=48))
    assert caplog.messages == ["Resizing position embedding grid-size from (4, 4) to (6, 6)"]
