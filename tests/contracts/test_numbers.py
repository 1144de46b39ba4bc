"""Facts of the published models that a small difference in output would not show."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cn_clip.clip.model import CLIP, build_model
from cn_clip.clip.presets import text_preset


@pytest.fixture
def model() -> CLIP:
    torch.manual_seed(0)
    return build_model("tiny-vit", "tiny-bert").eval()


def test_norms_of_the_image_tower_compute_in_fp32_and_give_the_type_they_got(model: CLIP) -> None:
    norms = [module for module in model.visual.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 6  # before and after the blocks, two in each of two blocks
    for norm in norms:
        tokens = torch.randn(2, 3, norm.normalized_shape[0], dtype=torch.float64)
        with torch.no_grad():
            given = norm(tokens)
        assert given.dtype is torch.float64
        in_fp32 = F.layer_norm(tokens.float(), norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        assert torch.equal(given, in_fp32.double())


def test_norms_of_the_text_tower(model: CLIP) -> None:
    norms = [module for module in model.bert.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 5
    assert {norm.eps for norm in norms} == {1e-12}


def test_the_text_tower_s_gelu_is_the_exact_one_and_the_image_tower_s_the_quick_one(model: CLIP) -> None:
    x = torch.linspace(-4, 4, 33)
    (text,) = {type(layer.intermediate.intermediate_act_fn) for layer in model.bert.blocks()}
    assert torch.allclose(text()(x), x * (1 + torch.erf(x / 2**0.5)) / 2, atol=1e-6)
    assert torch.allclose(model.visual.blocks()[0].mlp.gelu(x), x * torch.sigmoid(1.702 * x), atol=1e-6)


@pytest.mark.parametrize(
    "name", ["RoBERTa-wwm-ext-base-chinese", "RoBERTa-wwm-ext-large-chinese", "RBT3-chinese"]
)
def test_published_text_towers_have_512_positions_and_21128_pieces(name: str) -> None:
    options = text_preset(name).options
    assert (options["max_positions"], options["vocab_size"], options["token_types"]) == (512, 21128, 2)


def test_every_caption_is_of_the_first_segment(model: CLIP) -> None:
    tokens = torch.tensor([[101, 678, 102]])
    segments = model.bert.embeddings.token_type_embeddings.weight
    with torch.no_grad():
        before = model.encode_text(tokens)
        segments[1] += 1
        assert torch.equal(before, model.encode_text(tokens))
        segments[1] -= 1
        segments[0] += torch.arange(len(segments[0]))
        assert not torch.allclose(before, model.encode_text(tokens))
