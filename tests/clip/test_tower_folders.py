"""Towers from the folders that open_clip, timm and transformers write themselves."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cn_clip.clip.model import build_model
from cn_clip.clip.presets import image_preset, text_preset
from cn_clip.clip.tokenizer import VOCAB_PATH
from cn_clip.clip.tower_tokenizer import TowerTokenizer
from cn_clip.clip.transform import MEAN, STD
from cn_clip.errors import ConfigError, WeightsError


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


# --- open_clip


def save_open_clip(folder: Path, vision: dict[str, object], quick_gelu: bool) -> torch.nn.Module:
    import open_clip

    torch.manual_seed(0)
    config = {"embed_dim": 24, "quick_gelu": quick_gelu, "vision_cfg": vision}
    text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    model = open_clip.CLIP(**config, text_cfg=text).eval()
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**config, "text_cfg": text}}))
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return model


VIT = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "patch_size": None}


@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize("vision", [VIT, RESNET])
def test_open_clip_folder(
    tmp_path: Path, images: Tensor, vision: dict[str, object], quick_gelu: bool
) -> None:
    theirs = save_open_clip(tmp_path / "tower", vision, quick_gelu)
    model = build_model(str(tmp_path / "tower"), "tiny-bert").eval()
    with torch.no_grad():
        torch.testing.assert_close(
            model.encode_image(images), theirs.encode_image(images), rtol=1e-5, atol=1e-6
        )
    assert model.text_projection.shape == (32, 24)


def test_open_clip_folder_of_another_kind_of_tower(tmp_path: Path) -> None:
    save_open_clip(tmp_path / "tower", VIT, False)
    path = tmp_path / "tower" / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["vision_cfg"]["timm_model_name"] = "vit_base"
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="vision_cfg.timm_model_name"):
        image_preset(tmp_path / "tower")


# --- timm


def save_timm(folder: Path, name: str) -> torch.nn.Module:
    import timm
    from timm.models import save_for_hf

    torch.manual_seed(0)
    sizes = (
        {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
        if "vit" in name
        else {}
    )
    model = timm.create_model(name, num_classes=0, **sizes).eval()
    model.pretrained_cfg["input_size"] = (3, 32, 32)
    save_for_hf(model, folder, model_args=sizes)
    return model


@pytest.mark.parametrize(("name", "patches"), [("vit_tiny_patch16_224", 16), ("test_resnet", 1)])
def test_timm_folder(tmp_path: Path, images: Tensor, name: str, patches: int) -> None:
    theirs = save_timm(tmp_path / "tower", name)
    model = build_model(str(tmp_path / "tower"), "tiny-bert").eval()
    assert model.visual.image_px == 32
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    own_mean, own_std = (torch.tensor(theirs.pretrained_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    as_trained = (images * std + mean - own_mean) / own_std
    with torch.no_grad():
        expected = theirs(as_trained) @ model.visual.proj.weight.T
        torch.testing.assert_close(model.encode_image(images), expected, rtol=1e-4, atol=1e-5)
        assert model.visual.patches(images).shape == (2, patches, theirs.num_features)
    assert model.encode_image(images).shape == (2, 512)
    assert len(model.visual.blocks()) == (2 if "vit" in name else 0) or "resnet" in name


def test_timm_architecture_with_fresh_weights(tmp_path: Path, images: Tensor) -> None:
    preset = {
        "tower": "timm_tower",
        "embed_dim": 8,
        "image_resolution": 32,
        "options": {"architecture": "test_resnet"},
    }
    (tmp_path / "mine.json").write_text(json.dumps(preset))
    assert build_model(str(tmp_path / "mine.json"), "tiny-bert").encode_image(images).shape == (2, 8)
    preset["options"] = {"architecture": "no_such_model"}
    (tmp_path / "mine.json").write_text(json.dumps(preset))
    with pytest.raises(WeightsError, match="no_such_model"):
        build_model(str(tmp_path / "mine.json"), "tiny-bert")


# --- Hugging Face text towers

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "一", "只", "猫", "cat"]


def save_tokenizer(folder: Path, pad: str) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = [pad, *(w for w in WORDS if w != "[PAD]")] if pad == "[PAD]" else [*WORDS[1:], pad]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()  # it sets ideographs apart
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ids = {word: words.index(word) for word in ("[CLS]", "[SEP]")}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=list(ids.items())
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def test_bert_folder_becomes_the_roberta_tower(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    theirs = BertModel(config).eval()
    theirs.save_pretrained(tmp_path / "tower")
    save_tokenizer(tmp_path / "tower", "[PAD]")
    preset = text_preset(tmp_path / "tower")
    assert preset.tower == "roberta"
    model = build_model("tiny-vit", str(tmp_path / "tower")).eval()
    tokens = TowerTokenizer.of(preset, 7)(["一只猫", "cat"])
    assert tokens.tolist() == [[2, 4, 5, 6, 3, 0, 0], [2, 7, 3, 0, 0, 0, 0]]
    with torch.no_grad():
        expected = theirs(tokens, attention_mask=tokens.ne(0).long()).last_hidden_state[:, 0]
        torch.testing.assert_close(model.bert.features(tokens, tokens.ne(0)), expected, rtol=1e-5, atol=1e-6)
    assert model.encode_text(tokens).shape == (2, 16)


def save_roberta(folder: Path) -> torch.nn.Module:
    from transformers import RobertaConfig, RobertaModel

    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=20, pad_token_id=7,
    )  # fmt: skip
    model = RobertaModel(config).eval()
    model.save_pretrained(folder)
    save_tokenizer(folder, "<pad>")
    return model


def test_another_text_model_with_its_own_padding_id(tmp_path: Path) -> None:
    theirs = save_roberta(tmp_path / "tower")
    preset = text_preset(tmp_path / "tower")
    assert preset.tower == "hf_text"
    model = build_model("tiny-vit", str(tmp_path / "tower")).eval()
    assert model.bert.pad_id == 7
    tokens = TowerTokenizer.of(preset, 6)(["一只猫", "cat"])
    assert tokens[1, 3:].tolist() == [7, 7, 7]
    with torch.no_grad():
        hidden = theirs(tokens, attention_mask=tokens.ne(7).long()).last_hidden_state
        torch.testing.assert_close(
            model.bert.features(tokens, tokens.ne(7)), hidden[:, 0], rtol=1e-5, atol=1e-6
        )
        assert torch.equal(
            model.encode_text(tokens), model.bert.features(tokens, tokens.ne(7)) @ model.text_projection
        )
    assert len(model.bert.blocks()) == 2


def test_mean_pooling_leaves_padding_out(tmp_path: Path) -> None:
    theirs = save_roberta(tmp_path / "tower")
    options = {"folder": str(tmp_path / "tower"), "pooling": "mean"}
    (tmp_path / "mine.json").write_text(json.dumps({"tower": "hf_text", "options": options}))
    tower = build_model("tiny-vit", str(tmp_path / "mine.json")).eval().bert
    tokens = torch.tensor([[1, 3, 4, 7, 7], [1, 3, 4, 5, 6]])
    with torch.no_grad():
        features = tower.features(tokens, tokens.ne(7))
        hidden = theirs(tokens[:1], attention_mask=tokens[:1].ne(7).long()).last_hidden_state
    torch.testing.assert_close(features[0], hidden[0, :3].mean(0), rtol=1e-5, atol=1e-6)


def test_every_trained_parameter_gets_a_gradient(tmp_path: Path) -> None:
    """Others would stop data-parallel training."""
    save_roberta(tmp_path / "tower")
    model = build_model("tiny-vit", str(tmp_path / "tower"))
    model.encode_text(torch.tensor([[1, 3, 4, 7]])).sum().backward()
    assert [n for n, p in model.bert.named_parameters() if p.requires_grad and p.grad is None] == []


# --- what is no tower folder


def test_folders_that_are_none(tmp_path: Path) -> None:
    for read in (image_preset, text_preset):
        with pytest.raises(ConfigError, match="is no tower folder"):
            read(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="names no architecture of timm"):
        image_preset(tmp_path)
    with pytest.raises(ConfigError, match="has no tokenizer.json"):
        text_preset(tmp_path)
    (tmp_path / "vocab.txt").write_text(VOCAB_PATH.read_text("utf-8"), "utf-8")
    with pytest.raises(ConfigError, match="has no weights"):
        text_preset(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert text_preset(tmp_path).tokenizer is None, "its vocabulary is the package's own"
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="config.json"):
        text_preset(tmp_path)
