import copy
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cn_clip.clip.model import CLIP, _mean_and_std, build_model, convert_models_to_fp32, convert_weights
from cn_clip.clip.presets import MODEL_CONFIGS
from cn_clip.clip.transform import MEAN, STD
from cn_clip.errors import ConfigError


@pytest.fixture(params=["tiny-vit", "tiny-resnet"])
def model(request: pytest.FixtureRequest) -> CLIP:
    torch.manual_seed(0)
    return build_model(request.param, "tiny-bert").eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tokens() -> Tensor:
    tokens = torch.randint(1, 21128, (3, 10), generator=torch.Generator().manual_seed(2))
    tokens[0, 6:] = 0
    return tokens


def test_forward_gives_what_its_arguments_ask_for(model: CLIP, images: Tensor, tokens: Tensor) -> None:
    assert torch.equal(model(images, None), model.encode_image(images))
    assert torch.equal(model(None, tokens), model.encode_text(tokens))
    image_BE, text_BE, scale = model(images, tokens)
    torch.testing.assert_close(image_BE.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(text_BE.norm(dim=-1), torch.ones(3))
    assert scale.item() == pytest.approx(1 / 0.07)
    with pytest.raises(AssertionError):
        model(None, None)


def test_kept_features_stand_for_pictures(model: CLIP, images: Tensor, tokens: Tensor) -> None:
    expected = model(images, tokens)
    kept = model.encode_image(images).detach()
    found = model(kept, tokens)
    assert all(torch.equal(*both) for both in zip(found, expected, strict=True))
    assert torch.equal(model(kept, None), kept)


def test_what_comes_twice_is_encoded_once(model: CLIP, images: Tensor, tokens: Tensor) -> None:
    image_rows, text_rows = torch.tensor([0, 1, 1, 2]), torch.tensor([2, 0, 1, 0])
    expected = model(images[image_rows], tokens[text_rows])
    found = model(images, tokens, image_rows=image_rows, text_rows=text_rows, text_groups=2)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        model(images, None, image_rows=image_rows), model.encode_image(images)[image_rows]
    )


def test_hard_negatives_stand_after_the_captions(model: CLIP, images: Tensor, tokens: Tensor) -> None:
    """Two for each pair; their dropout goes with their pair, so a cut of the pairs changes nothing."""
    model.train()
    model.visual.eval()  # type: ignore[attr-defined]  # a Protocol does not say that it is a module
    keys = torch.tensor([4, 5, 6])
    negatives = torch.randint(1, 21128, (6, 10), generator=torch.Generator().manual_seed(3))
    _, whole_ME, _ = model(images, torch.cat([tokens, negatives]), keys_B=keys)
    assert whole_ME.shape == (9, 16)
    _, pair_ME, _ = model(images[1:2], torch.cat([tokens[1:2], negatives[2:4]]), keys_B=keys[1:2])
    torch.testing.assert_close(pair_ME, whole_ME[[1, 5, 6]], rtol=0, atol=1e-6)
    _, same_ME, _ = model(images, torch.cat([tokens, tokens]), keys_B=keys)
    assert (same_ME[:3] - same_ME[3:]).abs().max() > 1e-3, "a negative's dropout is its own"
    with pytest.raises(AssertionError, match="4 captions under the keys of 3 pairs"):
        model(images, torch.cat([tokens, negatives[:1]]), keys_B=keys)


def test_the_sigmoid_loss_s_bias(model: CLIP, images: Tensor, tokens: Tensor) -> None:
    names = list(model.state_dict())
    assert "logit_bias" not in names
    model.add_logit_bias(-10.0)
    *features, bias = model(images, tokens)
    assert len(features) == 3 and bias is model.logit_bias and bias.item() == -10
    assert [name for name, _ in model.named_parameters()][:3] == [
        "text_projection",
        "logit_scale",
        "logit_bias",
    ]
    assert set(model.state_dict()) == {*names, "logit_bias"}
    assert copy.deepcopy(model).logit_bias is not bias


def test_features_of_one_tower_are_not_normalised(model: CLIP, images: Tensor, tokens: Tensor) -> None:
    with torch.no_grad():
        assert (model.encode_image(images).norm(dim=-1) - 1).abs().min() > 1e-3
        assert (model.encode_text(tokens).norm(dim=-1) - 1).abs().min() > 1e-3


def test_similarity(model: CLIP, images: Tensor, tokens: Tensor) -> None:
    per_image, per_text = model.get_similarity(images, tokens)
    image_BE, text_BE, scale = model(images, tokens)
    assert per_image.shape == (3, 3)
    assert torch.equal(per_text, per_image.T)
    torch.testing.assert_close(per_image, scale * image_BE @ text_BE.T)


def test_raw_pictures_are_normalised_on_the_device(model: CLIP) -> None:
    raw = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    floats = (raw.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(model.encode_image(raw), model.encode_image(floats), rtol=0, atol=1e-6)


def test_raw_pictures_without_memory_leave_nothing_to_later_ones(model: CLIP) -> None:
    _mean_and_std.cache_clear()
    raw = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    shape = (2, model.text_projection.shape[1])
    for _ in range(2):  # the second time after real ones
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert model.encode_image(mode.from_tensor(raw)).shape == shape
        assert type(model.encode_image(raw)) is Tensor


def test_the_state_dict_keys_begin_as_the_checkpoint_s(model: CLIP) -> None:
    assert {name.split(".")[0] for name in model.state_dict()} == {
        "visual",
        "bert",
        "text_projection",
        "logit_scale",
    }
    assert model.logit_scale.shape == ()


def test_fresh_weights_depend_on_the_caller_s_seed_only() -> None:
    def build(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return build_model("tiny-vit", "tiny-bert").state_dict()

    first, again, other = build(1), build(1), build(2)
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not torch.equal(first["text_projection"], other["text_projection"])


def test_initial_values() -> None:
    torch.manual_seed(0)
    model = build_model("tiny-resnet", "tiny-bert")
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert model.text_projection.std().item() == pytest.approx(32**-0.5, rel=0.1)
    assert all(
        p.abs().sum() == 0
        for n, p in model.visual.named_parameters()
        if "layer" in n and n.endswith("bn3.weight")
    )
    assert model.visual.attnpool.q_proj.weight.std().item() == pytest.approx(256**-0.5, rel=0.05)


def test_built_from_the_reference_s_arguments(images: Tensor, tokens: Tensor) -> None:
    settings: dict[str, object] = {}
    for name in ("tiny-vit", "tiny-bert"):
        settings |= json.loads((MODEL_CONFIGS / f"{name}.json").read_text())
    torch.manual_seed(0)
    named = build_model("tiny-vit", "tiny-bert").eval()
    torch.manual_seed(0)
    spelt = CLIP(**settings).eval()  # type: ignore[arg-type]  # from JSON
    assert torch.equal(named(images, tokens)[0], spelt(images, tokens)[0])


def test_another_picture_size() -> None:
    model = build_model("tiny-vit", "tiny-bert", image_px=48)
    assert model.visual.image_px == 48
    assert model.encode_image(torch.randn(1, 3, 48, 48)).shape == (1, 16)


@pytest.mark.parametrize("image", ["tiny-vit", "tiny-resnet"])
def test_added_dropout_follows_the_keys(image: str, images: Tensor, tokens: Tensor) -> None:
    """As LoRA adds it, in both towers."""
    model = build_model(image, "tiny-bert").train()
    for block in (model.visual.blocks()[0], model.bert.blocks()[0]):
        block.register_module("lora_dropout", nn.Dropout(0.5))
        block.register_forward_pre_hook(lambda module, args: (module.lora_dropout(args[0]), *args[1:]))
    model.key_dropout()
    keys = torch.tensor([1, 2, 3])
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    image_BE, text_BE, _ = model(images, tokens, keys_B=keys)
    again = model(images[1:], tokens[1:], keys_B=keys[1:])
    torch.testing.assert_close(again[0], image_BE[1:], rtol=0, atol=1e-6)
    torch.testing.assert_close(again[1], text_BE[1:], rtol=0, atol=1e-6)
    other = model(images, tokens, keys_B=keys + 9)
    assert (other[0] - image_BE).abs().max() > 1e-3 and (other[1] - text_BE).abs().max() > 1e-3


def test_the_tokenizer_is_there(model: CLIP) -> None:
    assert model.tokenizer.vocab["[PAD]"] == model.bert.pad_id


def test_a_copy_is_a_model_of_its_own(model: CLIP, images: Tensor) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.visual.conv1.weight.zero_()
    assert not torch.equal(model.encode_image(images), other.encode_image(images))


def test_unknown_tower_module_and_option(tmp_path: Path) -> None:
    preset = {"tower": "nonesuch", "embed_dim": 8, "image_resolution": 32}
    (tmp_path / "a.json").write_text(json.dumps(preset))
    with pytest.raises(ConfigError, match="no tower module cn_clip/towers/image/nonesuch.py"):
        build_model(str(tmp_path / "a.json"), "tiny-bert")
    (tmp_path / "b.json").write_text(
        json.dumps({**preset, "tower": "timm_tower", "options": {"archtecture": "x"}})
    )
    with pytest.raises(ConfigError, match="timm_tower has no option archtecture; it has architecture"):
        build_model(str(tmp_path / "b.json"), "tiny-bert")


def test_half_weights_and_back(model: CLIP) -> None:
    parameter = model.text_projection
    convert_weights(model)
    half = {name for name, p in model.named_parameters() if p.dtype == torch.float16}
    assert {"text_projection", "visual.conv1.weight", "bert.encoder.layer.0.output.LayerNorm.weight"} <= half
    full = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    kept = ("ln_", "bn", "downsample.1", "logit_scale", "class_embedding", "positional_embedding")
    assert full and all(any(part in name for part in kept) for name in full)
    assert model.dtype == torch.float16
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    convert_models_to_fp32(model)
    assert all(p.dtype == torch.float32 and p.grad.dtype == torch.float32 for p in model.parameters())
    assert model.text_projection is parameter, "an optimizer holds the same parameters"


def test_other_half_type(model: CLIP) -> None:
    convert_weights(model, torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.logit_scale.dtype == torch.float32


def test_dropout_only_in_train_mode(tokens: Tensor) -> None:
    model = build_model("tiny-vit", "tiny-bert").eval()
    assert torch.equal(model.encode_text(tokens), model.encode_text(tokens))
    model.train()
    assert not torch.equal(model.encode_text(tokens), model.encode_text(tokens))


def test_blocks_are_those_of_both_towers(model: CLIP) -> None:
    blocks: list[nn.Module] = [*model.visual.blocks(), *model.bert.blocks()]
    assert len(set(map(id, blocks))) == len(blocks) >= 4
    assert set(map(id, blocks)) <= set(map(id, model.modules()))


def test_unit_features_are_fp32_inside_autocast(model: CLIP, images: Tensor, tokens: Tensor) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image_BE, text_BE, scale = model(images, tokens)
    assert (image_BE.dtype, text_BE.dtype, scale.dtype) == (torch.float32,) * 3
    torch.testing.assert_close(image_BE.norm(dim=-1), torch.ones(3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_weights_compute(model: CLIP, images: Tensor, tokens: Tensor, dtype: torch.dtype) -> None:
    full = model(images, tokens)
    half_model = copy.deepcopy(model)
    convert_weights(half_model, dtype)
    half = half_model(images, tokens)
    for ours, expected in zip(half[:2], full[:2], strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.float(), expected, rtol=0, atol=0.03)


def test_another_tokenizer_can_be_set(model: CLIP) -> None:
    from cn_clip.clip.bert_tokenizer import FullTokenizer

    model.tokenizer = mine = FullTokenizer()
    assert model.tokenizer is mine
