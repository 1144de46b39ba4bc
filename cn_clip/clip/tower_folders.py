"""Presets of local tower folders: open_clip, timm and Hugging Face, told by the files in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cn_clip.clip.presets import ImagePreset, Json, TextPreset, image_preset_of
from cn_clip.errors import ConfigError

DEFAULT_EMBED_DIM = 512  # of towers that bring no embedding of their own

_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
_OPEN_CLIP_FIELDS = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}


def image_folder(folder: Path) -> ImagePreset:
    """Preset of an image tower's folder, which brings its own weights."""
    if (folder / "open_clip_config.json").is_file():
        return _open_clip(folder)
    config = _config(folder)
    if "architecture" in config:
        return _timm(folder, config)
    raise ConfigError(
        f"{folder}/config.json names no architecture of timm: image towers are read from open_clip and timm folders"
    )


def _open_clip(folder: Path) -> ImagePreset:
    path = folder / "open_clip_config.json"
    config = _object(path)
    config = config.get("model_cfg", config)
    vision = config.get("vision_cfg", {})
    unknown = sorted(set(vision) - _OPEN_CLIP_FIELDS)
    if unknown or vision.get("mlp_ratio", 4.0) != 4.0:
        raise ConfigError(
            f"{path}: vision_cfg.{(unknown or ['mlp_ratio'])[0]} is not among what is built here"
        )
    settings = {
        "embed_dim": config.get("embed_dim"),
        "image_resolution": vision.get("image_size", 224),
        "vision_layers": vision.get("layers", 12),
        "vision_width": vision.get("width", 768),
        "vision_patch_size": vision.get("patch_size", 16),
        "vision_head_width": vision.get("head_width", 64),
        "vision_activation": "quick_gelu" if config.get("quick_gelu") else "gelu",
    }
    preset = image_preset_of(str(folder), settings, str(path))
    return ImagePreset(**{**vars(preset), "weights": _weights(folder)})


def _timm(folder: Path, config: Json) -> ImagePreset:
    from cn_clip.clip.transform import MEAN, STD

    image_px = int(config.get("pretrained_cfg", config).get("input_size", (3, 224, 224))[-1])
    options = {"folder": str(folder), "image_px": image_px, "embed_dim": DEFAULT_EMBED_DIM}
    options |= {"given_mean": MEAN, "given_std": STD}
    return ImagePreset(
        name=str(folder), tower="timm_tower", options=options, image_px=image_px, embed_dim=DEFAULT_EMBED_DIM
    )


def text_folder(folder: Path) -> TextPreset:
    """Preset of a Hugging Face text tower's folder, which brings its own weights and tokenizer."""
    config = _config(folder)
    if "model_type" not in config:
        raise ConfigError(f"{folder}/config.json names no model_type: it is not a Hugging Face text model")
    tokenizer = _tokenizer(folder)
    if config["model_type"] == "bert" and config.get("pad_token_id", 0) == 0:
        return TextPreset(
            name=str(folder),
            tower="roberta",
            options=_bert_options(config),
            weights=_weights(folder),
            tokenizer=tokenizer,
        )
    if not isinstance(config.get("pad_token_id"), int):
        raise ConfigError(f"{folder}/config.json has no pad_token_id: add the id that fills up captions")
    return TextPreset(
        name=str(folder),
        tower="hf_text",
        options={"folder": str(folder)},
        tokenizer=tokenizer,
        pad_id=config["pad_token_id"],
    )


def _bert_options(config: Json) -> dict[str, Any]:  # Any: fields of the tower's Options
    """Fields the config leaves out are BERT-base's, as transformers has them."""
    return {
        "vocab_size": config.get("vocab_size", 30522),
        "width": config.get("hidden_size", 768),
        "layers": config.get("num_hidden_layers", 12),
        "heads": config.get("num_attention_heads", 12),
        "mlp_width": config.get("intermediate_size", 3072),
        "max_positions": config.get("max_position_embeddings", 512),
        "token_types": config.get("type_vocab_size", 2),
        "activation": config.get("hidden_act", "gelu"),
        "dropout": config.get("hidden_dropout_prob", 0.1),
        "attention_dropout": config.get("attention_probs_dropout_prob", 0.1),
        "init_std": config.get("initializer_range", 0.02),
    }


def _tokenizer(folder: Path) -> Path | None:
    """The folder's `tokenizer.json`; None where its vocabulary is the Chinese one of this package."""
    own = folder / "tokenizer.json"
    if own.is_file():
        return own
    from cn_clip.clip.tokenizer import VOCAB_PATH

    vocabulary = folder / "vocab.txt"
    if (
        vocabulary.is_file()
        and vocabulary.read_text("utf-8").split() == VOCAB_PATH.read_text("utf-8").split()
    ):
        return None
    raise ConfigError(
        f"{folder} has no tokenizer.json: save one there with transformers' "
        "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    )


def _weights(folder: Path) -> Path:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise ConfigError(f"{folder} has no weights: none of {', '.join(_WEIGHTS)}")


def _config(folder: Path) -> Json:
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(
            f"{folder} is no tower folder: it has neither config.json nor open_clip_config.json"
        )
    return _object(path)


def _object(path: Path) -> Json:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path} must hold one JSON object")
    return config
