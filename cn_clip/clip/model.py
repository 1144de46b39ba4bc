"""The two-tower model: pictures and captions into one space (arXiv:2103.00020; Chinese-CLIP, arXiv:2211.01335).

Shapes: B pairs, M captions (those of the B pairs, then hard negatives), C H W picture, L tokens, D width of the text tower,
E embedding.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cn_clip.clip.length_groups import encode_in_groups
from cn_clip.clip.precision import convert_models_to_fp32, convert_weights
from cn_clip.clip.presets import (
    ImagePreset,
    TextPreset,
    image_preset,
    image_preset_of,
    text_preset,
    text_preset_of,
)
from cn_clip.clip.weights.layouts import (
    convert_state_dict,
    resize_pos_embed,
    to_1tuple,
    to_2tuple,
    to_3tuple,
    to_4tuple,
    to_ntuple,
)
from cn_clip.clip.weights.loading import load_image_tower, load_text_tower, restore_model
from cn_clip.errors import ConfigError
from cn_clip.parallel.recompute import keep_activations, recompute_blocks
from cn_clip.parallel.rng import seeded, stable_seed
from cn_clip.towers.keyed_dropout import key_dropout
from cn_clip.towers.pair_random import part_keys

if TYPE_CHECKING:
    from cn_clip.clip.bert_tokenizer import FullTokenizer
    from cn_clip.towers.image import ImageTower
    from cn_clip.towers.text import TextTower

__all__ = [
    "CLIP",
    "build_model",
    "convert_models_to_fp32",
    "convert_state_dict",
    "convert_weights",
    "resize_pos_embed",
    "restore_model",
    "to_1tuple",
    "to_2tuple",
    "to_3tuple",
    "to_4tuple",
    "to_ntuple",
]

INITIAL_TEMPERATURE = 0.07  # arXiv:2103.00020, section 2.5


def build_model(image: str, text: str, image_px: int | None = None) -> CLIP:
    """Model of two presets with fresh weights under the caller's torch seed; a folder preset brings its own weights.

    `image_px` replaces the preset's picture size.
    """
    images, texts = image_preset(image), text_preset(text)
    if image_px is not None:
        options = {**images.options, "image_px": image_px}
        images = dataclasses.replace(images, image_px=image_px, options=options)
    model = CLIP.from_presets(images, texts)
    if images.weights is not None:
        load_image_tower(model, images.weights)
    if texts.weights is not None:
        load_text_tower(model, texts.weights)
    return model


class CLIP(nn.Module):
    """Towers `visual` and `bert`, `text_projection` [D, E] and `logit_scale` (ln of the inverse temperature).

    A model for the sigmoid loss has a `logit_bias` too (`add_logit_bias`). The order of parameters is the reference's: its optimizer files count on it.
    """

    visual: ImageTower
    bert: TextTower
    logit_bias: nn.Parameter | None
    teacher_projection: nn.Linear | None

    def __init__(
        self,
        embed_dim: int,
        image_resolution: int,
        vision_layers: int | Sequence[int] | str,
        vision_width: int,
        vision_patch_size: int | None,
        vocab_size: int,
        text_attention_probs_dropout_prob: float,
        text_hidden_act: str,
        text_hidden_dropout_prob: float,
        text_hidden_size: int,
        text_initializer_range: float,
        text_intermediate_size: int,
        text_max_position_embeddings: int,
        text_num_attention_heads: int,
        text_num_hidden_layers: int,
        text_type_vocab_size: int,
        tokenizer: FullTokenizer | None = None,
        vision_head_width: int = 64,
        use_flash_attention: bool = False,
    ) -> None:
        """Fresh model of the reference's arguments, the fields of two JSON presets together.

        `use_flash_attention` changes nothing: torch picks a fused kernel where one fits, with the same parameters.
        """
        settings: Mapping[str, Any] = {  # Any: the presets check each field
            name: list(value) if isinstance(value, tuple) else value
            for name, value in locals().items()
            if name not in ("self", "tokenizer", "__class__")
        }
        image = image_preset_of("CLIP", settings, "the arguments of CLIP")
        text = text_preset_of("CLIP", settings, "the arguments of CLIP")
        super().__init__()
        self._assemble(image, text, tokenizer)

    @classmethod
    def from_presets(cls, image: ImagePreset, text: TextPreset) -> CLIP:
        """Fresh model of two presets."""
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        model._assemble(image, text, tokenizer=None)
        return model

    def _assemble(self, image: ImagePreset, text: TextPreset, tokenizer: FullTokenizer | None) -> None:
        self.visual = _tower("image", image)
        self.bert = _tower("text", text)
        self.text_projection = nn.Parameter(torch.empty(self.bert.width, image.embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / INITIAL_TEMPERATURE)))
        self.register_parameter("logit_bias", None)
        self.register_module("teacher_projection", None)
        nn.init.normal_(self.text_projection, std=self.bert.width**-0.5)
        self._tokenizer = tokenizer

    def add_logit_bias(self, value: float) -> None:
        """A learned number added to all logits (SigLIP, arXiv:2303.15343, which begins at -10); `forward` returns it too."""
        self.logit_bias = nn.Parameter(torch.tensor(value, device=self.logit_scale.device))

    def add_teacher_projection(self, width: int, seed: int) -> None:
        """A learned map of image features to `width` channels of a teacher's; only training has it, and `forward` gives it."""
        with seeded(stable_seed(seed, width), torch.device("cpu")):
            projection = nn.Linear(self.text_projection.shape[1], width, bias=False)
        self.teacher_projection = projection.to(self.logit_scale.device)

    @property
    def tokenizer(self) -> FullTokenizer:
        """The one that was given, else that of the Chinese vocabulary (for towers with their own see `tower_tokenizer`)."""
        if self._tokenizer is None:
            from cn_clip.clip import _tokenizer

            return _tokenizer
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: FullTokenizer) -> None:
        self._tokenizer = tokenizer

    @property
    def dtype(self) -> torch.dtype:
        """Type of the image tower's first weights; pictures and text features are cast to it."""
        return self.visual.dtype

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every block of both towers in the backward pass, or stop doing so."""
        blocks = [*self.visual.blocks(), *self.bert.blocks()]
        (recompute_blocks if enable else keep_activations)(blocks)

    def key_dropout(self) -> None:
        """Let dropout that was added to the towers (LoRA's) follow the keys of the pairs, as their own does."""
        key_dropout(self.visual)
        key_dropout(self.bert)

    def encode_image(self, image: Tensor, mask_ratio: float = 0, *, keys_B: Tensor | None = None) -> Tensor:
        """Features [B, E], not normalised, of normalised float pictures or of raw uint8 ones [B, C, H, W].

        Features [B, E] that were kept of a frozen tower are returned as they are.
        """
        if image.ndim == 2:
            return image.to(self.dtype)
        if image.dtype == torch.uint8:
            image = _normalised(image)
        with self.visual.sites.lent(keys_B):
            return self.visual(image.to(self.dtype), mask_ratio)

    def encode_text(self, text: Tensor, *, keys_B: Tensor | None = None, groups: int = 1) -> Tensor:
        """Features [B, E], not normalised, of captions' token ids [B, L].

        With several `groups`, captions of like length are encoded together, each group without the others' padding.
        """
        if groups == 1:
            features_BD = self._encode_padded(text, keys_B)
        else:
            features_BD = encode_in_groups(
                self._encode_padded, text, keys_B, num_groups=groups, pad_id=self.bert.pad_id
            )
        return features_BD.to(self.dtype) @ self.text_projection

    def _encode_padded(self, tokens_BL: Tensor, keys_B: Tensor | None) -> Tensor:
        with self.bert.sites.lent(keys_B):
            return self.bert.features(tokens_BL, tokens_BL.ne(self.bert.pad_id))

    def forward(
        self,
        image: Tensor | None,
        text: Tensor | None,
        mask_ratio: float = 0,
        *,
        keys_B: Tensor | None = None,
        text_groups: int = 1,
        image_rows: Tensor | None = None,
        text_rows: Tensor | None = None,
    ) -> Tensor | tuple[Tensor | None, ...]:
        """Raw features of the one that is given; of both: unit image [B, E] and text features [M, E], the scale (not its log)
        and the bias of a model that has one; of a model with a teacher, the bias or None, and the image features mapped to
        the teacher's width.

        In training, dropout and masked patches of a pair depend on its key (int64) alone; without keys on torch's
        generators. Hard negatives stand after the pairs' captions, as many for each pair, those of pair 0 first.
        `image_rows` and `text_rows` say which encoded row stands for which pair (`cn_clip.clip.encode_once`); their towers
        get no keys.
        """
        assert image is not None or text is not None, "image and text are both None: give at least one"
        image_BE = text_ME = None
        if image is not None:
            keys = keys_B if image_rows is None else None
            image_BE = _of_rows(self.encode_image(image, mask_ratio, keys_B=keys), image_rows)
        if text is not None:
            keys = _caption_keys(keys_B, len(text)) if text_rows is None else None
            text_ME = _of_rows(self.encode_text(text, keys_B=keys, groups=text_groups), text_rows)
        if text_ME is None:
            assert image_BE is not None
            return image_BE
        if image_BE is None:
            return text_ME
        unit_BE = _unit(image_BE)
        further: tuple[Tensor | None, ...] = () if self.logit_bias is None else (self.logit_bias,)
        if self.teacher_projection is not None:
            further = (self.logit_bias, self.teacher_projection(unit_BE))
        return unit_BE, _unit(text_ME), self.logit_scale.exp(), *further

    def get_similarity(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled cosines [images, texts] and their transpose."""
        image_BE, text_BE = _unit(self.encode_image(image)), _unit(self.encode_text(text))
        logits_per_image = self.logit_scale.exp() * image_BE @ text_BE.t()
        return logits_per_image, logits_per_image.t()


def _tower(kind: str, preset: ImagePreset | TextPreset) -> Any:  # Any: ImageTower or TextTower, by `kind`
    name = f"cn_clip.towers.{kind}.{preset.tower}"
    if not preset.tower.isidentifier() or importlib.util.find_spec(name) is None:
        raise ConfigError(
            f"preset {preset.name}: there is no tower module cn_clip/towers/{kind}/{preset.tower}.py"
        )
    module = importlib.import_module(name)
    known = {field.name for field in dataclasses.fields(module.Options)}
    unknown = sorted(set(preset.options) - known)
    if unknown:
        raise ConfigError(
            f"preset {preset.name}: {preset.tower} has no option {unknown[0]}; it has {', '.join(sorted(known))}"
        )
    return module.build(module.Options(**preset.options))


def _of_rows(features_UE: Tensor, rows: Tensor | None) -> Tensor:
    return features_UE if rows is None else features_UE[rows]


def _caption_keys(keys_B: Tensor | None, num_captions: int) -> Tensor | None:
    """(M,) keys of the pairs' captions and of the hard negatives after them."""
    if keys_B is None or num_captions == len(keys_B):
        return keys_B
    num_negatives, rest = divmod(num_captions - len(keys_B), len(keys_B))
    assert num_negatives > 0 and rest == 0, f"{num_captions} captions under the keys of {len(keys_B)} pairs"
    return torch.cat([keys_B, part_keys(keys_B, num_negatives)])


def _unit(features_BE: Tensor) -> Tensor:
    if torch.is_autocast_enabled(features_BE.device.type):
        features_BE = features_BE.float()  # CUDA's autocast takes norms in fp32, the CPU's would not
    return features_BE / features_BE.norm(dim=-1, keepdim=True)


def _normalised(image_BCHW: Tensor) -> Tensor:
    # real tensors are kept for later; those of a mode without memory (`FakeTensorMode`) must stay inside it
    mean_and_std = _mean_and_std if type(image_BCHW) is Tensor else _mean_and_std.__wrapped__
    mean, std = mean_and_std(image_BCHW.device)
    return (image_BCHW.float() / 255 - mean) / std


@lru_cache(maxsize=8)  # to make them on a GPU is to wait for it
def _mean_and_std(device: torch.device) -> tuple[Tensor, Tensor]:
    from cn_clip.clip.transform import MEAN, STD

    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (MEAN, STD))
    return mean, std
