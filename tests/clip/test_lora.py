"""Adapters: where they stand, that they learn, and that files look as if there were none."""

from __future__ import annotations

import builtins
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cn_clip.clip.lora import add_adapters, is_adapter, merged
from cn_clip.clip.model import CLIP, build_model
from cn_clip.config.schema import Lora, Model
from cn_clip.errors import ConfigError
from cn_clip.parallel.recompute import recompute_blocks
from cn_clip.towers.split_attention import SplitAttention
from cn_clip.training.freezing import freeze_towers

BOTH = Lora(image_rank=4, text_rank=2)
TOWERS = ["tiny-vit", "tiny-resnet"]


def trained_model(image: str) -> CLIP:
    """With weights as after some training: a fresh ResNet's blocks end in a norm of zero, and teach nothing before it."""
    torch.manual_seed(0)
    model = build_model(image, "tiny-bert").eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.05)
    return model


def adapted(image: str, settings: Lora = BOTH, *, moved: bool = True) -> CLIP:
    """A model with adapters, fresh ones or as after some training."""
    model = trained_model(image)
    add_adapters(model, settings, seed=3)
    model.eval()
    if moved:
        with torch.no_grad():
            for name, p in model.named_parameters():
                if is_adapter(name):
                    p.add_(torch.randn_like(p), alpha=0.1)
    return model


def with_merged(live: CLIP, image: str) -> CLIP:
    """A model without adapters and with their weights: the very names and shapes."""
    plain = build_model(image, "tiny-bert").eval()
    plain.load_state_dict(merged(live.state_dict()))
    return plain


def pairs(model: CLIP) -> tuple[Tensor, Tensor]:
    px = model.visual.image_px
    torch.manual_seed(1)
    return torch.randn(5, 3, px, px), torch.randint(1, 1000, (5, 9))


def features(model: CLIP) -> tuple[Tensor, Tensor]:
    image, text = pairs(model)
    with torch.no_grad():
        return model.encode_image(image), model.encode_text(text)


@pytest.mark.parametrize("image", TOWERS)
def test_fresh_adapters_change_nothing(image: str) -> None:
    for ours, before in zip(
        features(adapted(image, moved=False)), features(trained_model(image)), strict=True
    ):
        torch.testing.assert_close(ours, before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("image", TOWERS)
def test_merged_weights_compute_what_the_adapters_do(image: str) -> None:
    live = adapted(image)
    plain = with_merged(live, image)
    for ours, theirs, before in zip(
        features(live), features(plain), features(trained_model(image)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        assert (ours - before).abs().max() > 0.01  # the adapters do something


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("image", TOWERS)
def test_every_adapter_learns_and_nothing_else_of_the_towers(image: str, recompute: bool) -> None:
    model = adapted(image).train()
    if recompute:
        recompute_blocks([*model.visual.blocks(), *model.bert.blocks()])
    image_BE, text_BE, scale = model(*pairs(model))
    (scale * image_BE @ text_BE.T).logsumexp(1).sum().backward()
    learning = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert learning == {name for name in dict(model.named_parameters()) if is_adapter(name)} | {"logit_scale"}


def test_the_gradient_of_an_adapter_is_that_of_the_weight_it_stands_beside() -> None:
    """d/dB of (W + s B A) is s dW Aᵀ: for query, key and value apart, from the whole attention's own gradient."""
    live = adapted("tiny-vit", Lora(image_rank=4))
    plain = with_merged(live, "tiny-vit")
    for model in (live, plain):
        image_BE = model.encode_image(pairs(model)[0])
        (image_BE * torch.linspace(-1, 1, image_BE.shape[1])).sum().backward()
    name = "visual.transformer.resblocks.1.attn"
    whole, split = plain.get_submodule(name), live.get_submodule(name)
    assert isinstance(whole, nn.MultiheadAttention)
    assert isinstance(split, SplitAttention)
    assert whole.in_proj_weight.grad is not None
    weights = dict(zip(("q_proj", "k_proj", "v_proj"), whole.in_proj_weight.grad.chunk(3), strict=True))
    assert whole.out_proj.weight.grad is not None
    for name, gradient in {**weights, "out_proj": whole.out_proj.weight.grad}.items():
        layer: Any = split.get_submodule(name)  # peft's own class
        down, up = (getattr(layer, f"lora_{part}")["default"].weight for part in "AB")
        torch.testing.assert_close(up.grad, 2 * gradient @ down.detach().T, rtol=1e-4, atol=1e-6)


def test_which_layers_have_adapters() -> None:
    model = adapted("tiny-vit")
    layers = {
        name.partition(".lora_")[0]
        for name, _ in model.named_parameters()
        if is_adapter(name) and (".resblocks.0." in name or ".layer.0." in name)
    }
    vit, bert = "visual.transformer.resblocks.0", "bert.encoder.layer.0"
    assert layers == {f"{vit}.attn.{part}_proj" for part in ("q", "k", "v", "out")} | {
        f"{vit}.mlp.c_fc",
        f"{vit}.mlp.c_proj",
        f"{bert}.attention.self.query",
        f"{bert}.attention.self.key",
        f"{bert}.attention.self.value",
        f"{bert}.attention.output.dense",
        f"{bert}.intermediate.dense",
        f"{bert}.output.dense",
    }


def test_a_layer_that_is_never_called_gets_none() -> None:
    model = trained_model("tiny-vit")
    model.bert.blocks()[0].register_module("spare", nn.Linear(4, 4))
    add_adapters(model, Lora(text_rank=2), seed=0)
    assert not [name for name, _ in model.named_parameters() if is_adapter(name) and "spare" in name]
    assert not [name for name, _ in model.named_parameters() if is_adapter(name) and "visual" in name]


def test_one_tower_alone_leaves_the_other_as_it_was() -> None:
    model = trained_model("tiny-vit")
    add_adapters(model, Lora(image_rank=2), seed=0)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {"text_projection", "bert.embeddings.word_embeddings.weight", "logit_scale"} <= trained
    assert all(is_adapter(name) for name in trained if name.startswith("visual."))


def test_no_adapters() -> None:
    model = trained_model("tiny-vit")
    before = model.state_dict()
    assert add_adapters(model, Lora(), seed=0) == []
    assert model.state_dict().keys() == before.keys()
    assert merged(before) == dict(before)
    assert merged({}) == {}


def test_batchnorms_of_an_adapted_resnet_are_told() -> None:
    model = trained_model("tiny-resnet")
    norms = add_adapters(model, Lora(image_rank=2), seed=0)
    assert set(norms) == {module for module in model.modules() if isinstance(module, nn.BatchNorm2d)}


@pytest.mark.parametrize(("alpha", "scaling"), [(None, 2.0), (6.0, 1.5)])
def test_what_adapters_count(alpha: float | None, scaling: float) -> None:
    model = adapted("tiny-vit", Lora(text_rank=4, alpha=alpha))
    layer: Any = model.get_submodule("bert.encoder.layer.0.output.dense")  # peft's own class
    assert layer.scaling["default"] == float(model.state_dict()["bert.lora_scaling"]) == scaling


def test_the_draw_depends_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    one = adapted("tiny-vit", moved=False).state_dict()
    other = adapted("tiny-vit", moved=False).state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    model = trained_model("tiny-vit")
    before = torch.get_rng_state()
    add_adapters(model, BOTH, seed=4)
    assert torch.equal(before, torch.get_rng_state())
    name = "bert.encoder.layer.0.output.dense.lora_A.default.weight"
    assert not torch.equal(model.state_dict()[name], one[name])


@pytest.mark.parametrize("settings", [Lora(image_rank=3, text_rank=2), Lora(text_rank=4, alpha=1.0), Lora()])
def test_other_adapters_begin_from_the_merged_weights(settings: Lora) -> None:
    live = adapted("tiny-vit")
    model = with_merged(live, "tiny-vit")
    add_adapters(model, settings, seed=3)
    for ours, theirs in zip(features(model.eval()), features(live), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_merging_in_half_precision_rounds_once() -> None:
    live = {
        name: t.bfloat16() if t.is_floating_point() else t
        for name, t in adapted("tiny-vit").state_dict().items()
    }
    layer = "bert.encoder.layer.0.output.dense"
    found = merged(live)[f"{layer}.weight"]
    up, down = (live[f"{layer}.lora_{part}.default.weight"].double() for part in "BA")
    exact = live[f"{layer}.base_layer.weight"].double() + 2 * up @ down
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-6)


def test_dropout_of_adapters_follows_the_pairs() -> None:
    model = adapted("tiny-vit", Lora(image_rank=4, text_rank=2, dropout=0.5))
    model.key_dropout()
    model.train()
    image, text = pairs(model)
    keys_B = torch.arange(5) * 7919
    together = model(image, text, keys_B=keys_B)
    again = model(image, text, keys_B=keys_B)
    alone = model(image[2:3], text[2:3], keys_B=keys_B[2:3])
    plain = model.eval()(image, text)
    for feature, same, one, without in zip(together[:2], again[:2], alone[:2], plain[:2], strict=True):
        assert torch.equal(feature, same)
        torch.testing.assert_close(feature[2:3], one, rtol=0, atol=1e-5)
        assert (feature - without).abs().max() > 1e-3


def test_first_blocks_keep_adapters_that_are_zero() -> None:
    model = trained_model("tiny-vit")
    add_adapters(model, BOTH, seed=0)
    freeze_towers(model, Model(freeze_image_blocks=1))
    trained = {name for name, p in model.named_parameters() if p.requires_grad and name.startswith("visual.")}
    assert trained
    assert all("resblocks.1." in name for name in trained)


def test_a_frozen_tower_cannot_have_adapters() -> None:
    model = trained_model("tiny-vit")
    add_adapters(model, BOTH, seed=0)
    with pytest.raises(ConfigError, match=r"lora\.image_rank trains adapters in the image tower, which"):
        freeze_towers(model, Model(freeze_image=True))


def test_peft_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_import = builtins.__import__

    def without_peft(name: str, *rest: Any) -> Any:  # Any: as the built-in
        if name == "peft":
            raise ImportError("No module named 'peft'")
        return plain_import(name, *rest)

    monkeypatch.delitem(sys.modules, "peft", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_peft)
    with pytest.raises(ConfigError, match=r"pip install 'cn_clip\[lora\]'"):
        add_adapters(trained_model("tiny-vit"), BOTH, seed=0)


def test_a_model_that_is_only_planned() -> None:
    with torch.device("meta"):
        model = build_model("tiny-vit", "tiny-bert")
    add_adapters(model, BOTH, seed=0)
    real = adapted("tiny-vit")
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in real.named_parameters()
    }
