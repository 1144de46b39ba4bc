import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cn_clip.clip.model import CLIP, build_model, restore_model
from cn_clip.clip.weights import (
    describe_towers,
    guess_image_px,
    guess_towers,
    load_image_tower,
    load_into,
    load_text_tower,
    model_weights,
    trained_image_px,
)
from cn_clip.clip.weights.layouts import convert_state_dict, to_plain_layout
from cn_clip.errors import WeightsError

Weights = dict[str, Tensor]


def build(image: str = "tiny-vit", seed: int = 0) -> CLIP:
    torch.manual_seed(seed)
    return build_model(image, "tiny-bert")


@pytest.fixture
def weights() -> Weights:
    return build().state_dict()


def assert_loaded(model: CLIP, weights: Weights, prefix: str = "") -> None:
    for name, tensor in model.state_dict().items():
        if name.startswith(prefix):
            assert torch.equal(tensor, weights[name]), name


@pytest.mark.parametrize("image", ["tiny-vit", "tiny-resnet"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_layouts_of_one_model(image: str, prefix: str) -> None:
    weights = build(image).state_dict()
    flash = convert_state_dict(dict(weights))
    assert any("Wqkv" in name for name in flash)
    extra = {"bert.pooler.dense.weight": torch.ones(1), "bert.embeddings.position_ids": torch.arange(3)}
    for layout in (weights, flash, {**weights, **extra}):
        file = {prefix + name: tensor for name, tensor in layout.items()}
        for checkpoint in (file, {"state_dict": file, "epoch": 1}):
            model = build(image, seed=1)
            load_into(model, model_weights(checkpoint), "x")
            assert_loaded(model, weights)


def test_converting_leaves_the_input_as_it_is(weights: Weights) -> None:
    flash = convert_state_dict(dict(weights))
    names = list(flash)
    to_plain_layout(flash)
    assert list(flash) == names


def test_an_empty_state_dict_converts_to_itself() -> None:
    assert convert_state_dict({}) == {}


@pytest.mark.parametrize("image", ["tiny-vit", "tiny-resnet"])
def test_position_embedding_of_another_picture_size(image: str) -> None:
    weights = build(image).state_dict()
    torch.manual_seed(1)
    model = build_model(image, "tiny-bert", image_px=96)
    load_into(model, weights, "x")
    key = next(name for name in weights if name.endswith("positional_embedding"))
    assert torch.equal(model.state_dict()[key][0], weights[key][0]), "the class token's row is kept"
    corner = 1 if image == "tiny-vit" else 0
    torch.testing.assert_close(model.state_dict()[key][corner], weights[key][corner], rtol=1e-5, atol=1e-6)
    assert torch.equal(weights[key], build(image).state_dict()[key]), "the caller's weights are left alone"


def test_position_embedding_of_a_timm_model(tmp_path: Path) -> None:
    preset = {"tower": "timm_tower", "embed_dim": 16, "options": {"architecture": "vit_tiny_patch16_224"}}
    (tmp_path / "timm.json").write_text(json.dumps(preset))
    small, large = (build_model(str(tmp_path / "timm.json"), "tiny-bert", px) for px in (32, 64))
    key = "visual.trunk.pos_embed"
    weights = small.state_dict()
    load_into(large, weights, "x")
    found = large.state_dict()[key]
    assert (weights[key].shape[1], found.shape[1]) == (1 + 2 * 2, 1 + 4 * 4)
    torch.testing.assert_close(found[0, [0, 1, 4, 13, 16]], weights[key][0])  # class token and corners
    assert large.encode_image(torch.randn(1, 3, 64, 64)).shape == (1, 16)


def test_the_sigmoid_loss_s_bias_may_be_missing_or_in_excess() -> None:
    """A run of it starts from a model of the softmax; features and rankings do without the bias."""
    with_bias, without = build(), build(seed=1)
    with_bias.add_logit_bias(-10.0)
    load_into(with_bias, without.state_dict(), "x")
    assert with_bias.logit_bias.item() == -10
    assert_loaded(with_bias, {**without.state_dict(), "logit_bias": torch.tensor(-10.0)})
    other = build(seed=2)
    other.add_logit_bias(-3.0)
    load_into(with_bias, other.state_dict(), "x")
    assert with_bias.logit_bias.item() == -3
    load_into(without, other.state_dict(), "x")
    assert_loaded(without, other.state_dict())


@pytest.mark.parametrize("image", ["tiny-vit", "tiny-resnet", "quickstart-resnet"])
@pytest.mark.parametrize("image_px", [None, 96])
def test_the_size_of_the_pictures_is_told_from_the_weights(image: str, image_px: int | None) -> None:
    model = build_model(image, "tiny-bert", image_px)
    assert trained_image_px(image, model.state_dict()) == model.visual.image_px


def test_the_size_of_weights_for_another_tower_is_not_taken() -> None:
    """The load that follows says what is wrong."""
    weights = build_model("tiny-vit", "tiny-bert", 96).state_dict()
    assert trained_image_px("tiny-resnet", weights) == 32
    assert trained_image_px("ViT-B-16", weights) == 224
    assert trained_image_px("tiny-vit", {}) == 32


def test_missing_and_unexpected_names(weights: Weights) -> None:
    del weights["text_projection"]
    weights["visual.extra"] = torch.ones(1)
    with pytest.raises(WeightsError) as caught:
        load_into(build(), weights, "/w/a.pt")
    message = str(caught.value)
    assert message.startswith(
        "/w/a.pt does not fit the model: it lacks text_projection and has in excess visual.extra"
    )
    assert "\n" not in message


def test_batchnorm_counters_may_be_missing() -> None:
    weights = build("tiny-resnet").state_dict()
    counters = [name for name in weights if name.endswith("num_batches_tracked")]
    assert counters
    for name in counters:
        del weights[name]
    model = build("tiny-resnet", seed=1)
    load_into(model, weights, "x")
    assert torch.equal(model.state_dict()["visual.conv1.weight"], weights["visual.conv1.weight"])


def test_a_model_that_did_not_fit_is_unchanged(weights: Weights) -> None:
    model = build(seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    del weights["text_projection"]
    with pytest.raises(WeightsError):
        load_into(model, weights, "x")
    assert_loaded(model, before)


def test_weights_of_other_towers_are_named(weights: Weights) -> None:
    with pytest.raises(
        WeightsError,
        match="seem.* image tower tiny-vit and text tower tiny-bert, the model has image tower tiny-resnet",
    ):
        load_into(build("tiny-resnet"), weights, "x")


def test_other_shapes_are_named(weights: Weights) -> None:
    weights["text_projection"] = torch.ones(8, 4)
    with pytest.raises(WeightsError, match=r"text_projection \[8, 4\] where the model has \[32, 16\]"):
        load_into(build(), weights, "x")


@pytest.mark.parametrize(
    "checkpoint", [{}, {"state_dict": {}}, {"state_dict": 3}, {"epoch": 3, "step": 1}, {"a": [1]}]
)
def test_a_checkpoint_without_weights(checkpoint: dict[str, object]) -> None:
    with pytest.raises(WeightsError, match="holds no weights"):
        model_weights(checkpoint)


# --- one tower


@pytest.fixture
def save(tmp_path: Path) -> Callable[[object], Path]:
    def save(content: object) -> Path:
        torch.save(content, tmp_path / "tower.pt")
        return tmp_path / "tower.pt"

    return save


Save = Callable[[object], Path]


class OpenAI(nn.Module):
    """A stand-in for the published archive: fp16, with the text tower's parts beside the image tower."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual
        self.token_embedding = nn.Embedding(10, 4)
        self.positional_embedding = nn.Parameter(torch.zeros(7, 4))
        self.logit_scale = nn.Parameter(torch.tensor(4.5))

    def forward(self, images: Tensor) -> Tensor:
        return self.visual(images) * self.logit_scale


@pytest.mark.filterwarnings(
    "ignore"
)  # tracing is deprecated and talkative, and the only way to such an archive
@pytest.mark.parametrize("image", ["tiny-vit", "tiny-resnet"])
@pytest.mark.parametrize("jit", [True, False])
def test_image_tower_of_openai(tmp_path: Path, image: str, jit: bool) -> None:
    source = OpenAI(build(image).visual.eval())  # type: ignore[arg-type]  # the tower is a module
    if jit:
        torch.jit.trace(source, torch.randn(1, 3, 32, 32), check_trace=False).half().save(
            tmp_path / "openai.pt"
        )
    else:
        torch.save(source.half().state_dict(), tmp_path / "openai.pt")
    model = build(image, seed=1)
    text = {name: tensor.clone() for name, tensor in model.state_dict().items() if name.startswith("bert.")}
    load_image_tower(model, tmp_path / "openai.pt")
    expected = {name: tensor.half().to(tensor.dtype) for name, tensor in build(image).state_dict().items()}
    assert_loaded(model, expected, "visual.")
    assert_loaded(model, text, "bert.")
    assert model.logit_scale.item() == 4.5


def test_image_tower_of_a_whole_checkpoint_at_another_size(save: Save) -> None:
    torch.manual_seed(0)
    path = save({"state_dict": {f"module.{n}": t for n, t in build().state_dict().items()}})
    torch.manual_seed(1)
    model = build_model("tiny-vit", "tiny-bert", image_px=64)
    load_image_tower(model, path)
    assert torch.equal(model.visual.proj, build().visual.proj)


def test_image_tower_of_the_wrong_kind(save: Save, weights: Weights) -> None:
    with pytest.raises(WeightsError, match="lacks visual.*the file seems to have image tower tiny-vit"):
        load_image_tower(build("tiny-resnet"), save(weights))
    with pytest.raises(WeightsError, match="no image tower"):
        load_image_tower(build(), save({n: t for n, t in weights.items() if n.startswith("bert.")}))


@pytest.mark.parametrize("prefix", ["bert.", "", "module.bert."])
@pytest.mark.parametrize("tensorflow", [True, False])
def test_text_tower_of_bert_files(save: Save, weights: Weights, prefix: str, tensorflow: bool) -> None:
    bert = {n.removeprefix("bert."): t for n, t in weights.items() if n.startswith("bert.")}
    if tensorflow:
        bert = {
            n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
            for n, t in bert.items()
        }
    bert |= {"pooler.dense.weight": torch.ones(2, 2), "embeddings.position_ids": torch.arange(512)[None]}
    file = {prefix + name: tensor for name, tensor in bert.items()}
    if prefix:
        file["cls.predictions.bias"] = torch.ones(3)
    model = build(seed=1)
    image = {n: t.clone() for n, t in model.state_dict().items() if n.startswith("visual.")}
    load_text_tower(model, save(file))
    assert_loaded(model, weights, "bert.")
    assert_loaded(model, image, "visual.")


def test_text_tower_of_a_whole_checkpoint(save: Save, weights: Weights) -> None:
    model = build("tiny-resnet", seed=1)
    load_text_tower(model, save({"state_dict": {f"module.{n}": t for n, t in weights.items()}}))
    assert_loaded(model, weights, "bert.")


def test_a_bert_file_that_would_leave_random_weights(save: Save, weights: Weights) -> None:
    bert = {n: t for n, t in weights.items() if n.startswith("bert.")}
    other = {n.replace("bert.", "roberta."): t for n, t in bert.items()}
    with pytest.raises(WeightsError, match="no text tower"):
        load_text_tower(build(), save(other))
    part = {n: t for n, t in bert.items() if ".layer.1." not in n}
    with pytest.raises(WeightsError, match="lacks bert.encoder.layer.1.*and 13 more"):
        load_text_tower(build(), save(part))
    more = bert | {n.replace(".layer.1.", ".layer.2."): t for n, t in bert.items()}
    with pytest.raises(WeightsError, match="has in excess bert.encoder.layer.2"):
        load_text_tower(build(), save(more))


def test_weights_keep_their_precision(weights: Weights) -> None:
    model = build(seed=1)
    restore_model(model.train(), weights, {n: t for n, t in weights.items() if n.startswith("bert.")}, True)
    assert not model.training
    assert_loaded(model, weights, "visual.")
    assert_loaded(model, weights, "bert.")


# --- telling towers


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ("ViT-B-32", "RBT3-chinese"),
        ("ViT-B-16", "RoBERTa-wwm-ext-base-chinese"),
        ("ViT-L-14", "RoBERTa-wwm-ext-large-chinese"),
        ("ViT-L-14-336", "RBT3-chinese"),
        ("ViT-H-14", "tiny-bert"),
        ("RN50", "RBT3-chinese"),
        ("quickstart-resnet", "quickstart-bert"),
        ("tiny-vit", "tiny-bert"),
    ],
)
def test_towers_are_told_from_shapes(image: str, text: str) -> None:
    with torch.device("meta"):
        model = build_model(image, text)
    weights = model_weights(model.state_dict())
    assert guess_towers(weights) == (image, text)
    assert guess_image_px(weights) == model.visual.image_px


def test_a_tower_trained_at_another_picture_size() -> None:
    with torch.device("meta"):
        model = build_model("ViT-B-16", "RBT3-chinese", image_px=384)
    assert guess_towers(model.state_dict()) == ("ViT-B-16", "RBT3-chinese")
    assert guess_image_px(model.state_dict()) == 384


def test_towers_nobody_knows(weights: Weights) -> None:
    weights["visual.proj"] = torch.ones(32, 99)
    with pytest.raises(
        WeightsError, match="image tower a vit with width 32, patch_px 8, layers 2, embed_dim 99"
    ):
        guess_towers(weights)
    assert describe_towers({"fc.weight": torch.ones(1)}) == "image tower none and text tower none"
