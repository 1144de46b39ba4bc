"""Named towers: what `ViT-B-16` or `RBT3-chinese` means. No torch here, so that settings are read fast.

A preset is a JSON of `model_configs/` (the reference's field names), the path of such a JSON, or a folder of open_clip,
timm or Hugging Face (see `tower_folders`). A JSON may name its tower module with `tower`; without it a list of
`vision_layers` means `resnet`, a number `vit`, and `text_hidden_size` means `roberta`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cn_clip.errors import ConfigError

MODEL_CONFIGS = Path(__file__).parent / "model_configs"

Json = Mapping[str, Any]
"""One JSON object; `Any` since its values are numbers, strings, lists or null."""


@dataclass(frozen=True)
class TrainingDefaults:
    """AdamW settings an image tower is trained with when nobody says otherwise."""

    lr: float
    beta1: float
    beta2: float
    eps: float


# arXiv:2103.00020, tables 19 and 20, as Chinese-CLIP uses them
RESNET_TRAINING = TrainingDefaults(lr=5e-4, beta1=0.9, beta2=0.999, eps=1e-8)
VIT_TRAINING = TrainingDefaults(lr=5e-4, beta1=0.9, beta2=0.98, eps=1e-6)


@dataclass(frozen=True, kw_only=True)
class ImagePreset:
    name: str
    """As it was asked for."""
    tower: str
    """Module of `cn_clip.towers.image`."""
    options: Json
    """Fields of that module's `Options`."""
    image_px: int
    """Side of the square pictures."""
    embed_dim: int
    """Channels of both towers' features."""
    training: TrainingDefaults = VIT_TRAINING
    """Optimizer settings when none are given."""
    weights: Path | None = None
    """File the tower starts from (a folder preset's own)."""


@dataclass(frozen=True, kw_only=True)
class TextPreset:
    name: str
    """As it was asked for."""
    tower: str
    """Module of `cn_clip.towers.text`."""
    options: Json = field(default_factory=dict)
    """Fields of that module's `Options`."""
    weights: Path | None = None
    """File the tower starts from (a folder preset's own)."""
    tokenizer: Path | None = None
    """The tower's own `tokenizer.json`; None is the Chinese vocabulary of this package."""
    pad_id: int = 0
    """Token id that fills up a caption."""


def image_preset(name_or_path: str | Path) -> ImagePreset:
    """Preset of an image tower; a name nobody knows is a ConfigError with the nearest ones."""
    if Path(name_or_path).is_dir():
        from cn_clip.clip.tower_folders import image_folder

        return image_folder(Path(name_or_path))
    path, settings = _read(name_or_path, image_preset_names())
    return image_preset_of(str(name_or_path), settings, str(path))


def text_preset(name_or_path: str | Path) -> TextPreset:
    """Preset of a text tower; a name nobody knows is a ConfigError with the nearest ones."""
    if Path(name_or_path).is_dir():
        from cn_clip.clip.tower_folders import text_folder

        return text_folder(Path(name_or_path))
    path, settings = _read(name_or_path, text_preset_names())
    return text_preset_of(str(name_or_path), settings, str(path))


def image_preset_names() -> list[str]:
    """Names of the image towers of `model_configs/`, sorted."""
    return _names("embed_dim")


def text_preset_names() -> list[str]:
    """Names of the text towers of `model_configs/`, sorted."""
    return _names("text_hidden_size")


def _names(key: str) -> list[str]:
    return sorted(path.stem for path in MODEL_CONFIGS.glob("*.json") if key in _parse(path))


def _read(name_or_path: str | Path, known: Iterable[str]) -> tuple[Path, Json]:
    given = Path(name_or_path)
    path = given if given.suffix == ".json" else MODEL_CONFIGS / f"{str(name_or_path).replace('/', '-')}.json"
    if not path.is_file():
        near = difflib.get_close_matches(str(name_or_path), list(known), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
        raise ConfigError(f"there is no tower preset {name_or_path}; {hint}")
    return path, _parse(path)


def _parse(path: Path) -> Json:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the tower preset {path}: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"the tower preset {path} must hold one JSON object")
    return settings


class _Fields:
    """Typed reading of one preset's settings, whose errors say which file and field."""

    def __init__(self, settings: Json, where: str) -> None:
        self._settings, self._where = settings, where

    def number(self, name: str, default: float | None = None) -> float:
        value = self._settings.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{self._where}: {name} must be a number, not {value!r}")
        return value

    def whole(self, name: str, default: int | None = None) -> int:
        value = self.number(name, default)
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{self._where}: {name} must be a whole number above 0, not {value!r}")
        return value

    def layers(self, name: str) -> int | tuple[int, ...]:
        """A number of blocks or a list of them, the list also as a string like "[3,4,6,3]"."""
        value = self._settings.get(name)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                value = None
        if isinstance(value, list) and value and all(type(item) is int and item > 0 for item in value):
            return tuple(value)
        if type(value) is int and value > 0:
            return value
        raise ConfigError(
            f"{self._where}: {name} must be a whole number or a list of them, not {self._settings.get(name)!r}"
        )


def image_preset_of(name: str, settings: Json, where: str) -> ImagePreset:
    """Preset from settings with the reference's field names; `where` names their source in errors."""
    fields = _Fields(settings, where)
    image_px, embed_dim = fields.whole("image_resolution", 224), fields.whole("embed_dim")
    options: dict[str, Any] = {"image_px": image_px, "embed_dim": embed_dim}
    if "vision_layers" not in settings:
        tower = str(settings.get("tower"))
        options |= settings.get("options", {})
    else:
        layers = fields.layers("vision_layers")
        options |= {"layers": layers, "width": fields.whole("vision_width")}
        options["head_width"] = fields.whole("vision_head_width", 64)
        tower = str(settings.get("tower", "resnet" if isinstance(layers, tuple) else "vit"))
        if tower == "vit":
            options["patch_px"] = fields.whole("vision_patch_size")
            options["activation"] = settings.get("vision_activation", "quick_gelu")
    base = RESNET_TRAINING if tower == "resnet" else VIT_TRAINING
    training = TrainingDefaults(**{**vars(base), **settings.get("training", {})})
    return ImagePreset(
        name=name, tower=tower, options=options, image_px=image_px, embed_dim=embed_dim, training=training
    )


def text_preset_of(name: str, settings: Json, where: str) -> TextPreset:
    """Preset from settings with the reference's field names; `where` names their source in errors."""
    tower = str(settings.get("tower", "roberta"))
    if tower != "roberta":
        return TextPreset(name=name, tower=tower, options=settings.get("options", {}))
    fields = _Fields(settings, where)
    options = {
        "vocab_size": fields.whole("vocab_size"),
        "width": fields.whole("text_hidden_size"),
        "layers": fields.whole("text_num_hidden_layers"),
        "heads": fields.whole("text_num_attention_heads"),
        "mlp_width": fields.whole("text_intermediate_size"),
        "max_positions": fields.whole("text_max_position_embeddings"),
        "token_types": fields.whole("text_type_vocab_size"),
        "activation": str(settings.get("text_hidden_act", "gelu")),
        "dropout": fields.number("text_hidden_dropout_prob"),
        "attention_dropout": fields.number("text_attention_probs_dropout_prob"),
        "init_std": fields.number("text_initializer_range"),
    }
    return TextPreset(name=name, tower=tower, options=options)
