"""Class names and prompts are prepared like captions: lower case, straight quotes."""

from __future__ import annotations

import torch

from cn_clip.clip.model import build_model
from cn_clip.eval.features.encoder import Encoder
from cn_clip.eval.zeroshot.classifier import class_vectors


def test_prompts_are_prepared_as_training_captions_are() -> None:
    torch.manual_seed(0)
    model = build_model("tiny-vit", "tiny-bert").eval()
    encoder = Encoder(model, 32, "", "tiny-bert", torch.device("cpu"), "fp32")
    typed, plain, other = class_vectors(
        encoder, ["“红色”的 Cat", '"红色"的 cat', "红色的 cat"], ["一张{}", "A {}。"], 24
    )
    assert torch.equal(typed, plain)
    assert not torch.allclose(typed, other)
