"""Vision transformer of CLIP (arXiv:2103.00020) with FLIP masking (arXiv:2212.00794).

Built on open_clip's `VisionTransformer`; state-dict keys are those of OpenAI CLIP and Chinese-CLIP.
Shapes: B pictures, C H W picture, L tokens with the class token first, P patches, D tower width, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from open_clip.transformer import LayerNormFp32, VisionTransformer
from torch import Tensor, nn

from cn_clip.errors import ConfigError
from cn_clip.towers.image import ImageTower
from cn_clip.towers.keyed_dropout import key_dropout
from cn_clip.towers.pair_random import random_words
from cn_clip.towers.quick_gelu import QuickGELU
from cn_clip.towers.sites import Site, Sites
from cn_clip.towers.whole_attention import take_over_attentions


@dataclass(frozen=True, kw_only=True)
class Options:
    image_px: int = 224
    """Side of the square pictures."""
    patch_px: int = 16
    """Side of a patch."""
    width: int = 768
    """Channels of a token."""
    layers: int = 12
    """Transformer blocks."""
    head_width: int = 64
    """Channels of an attention head (ViT-H-14: 80)."""
    embed_dim: int = 512
    """Channels of the features."""
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    """`quick_gelu` for OpenAI's and the Chinese models, `gelu` for most of open_clip's own."""


def build(options: Options) -> ImageTower:
    return VitTower(options)


class VitTower(VisionTransformer):
    """Class-token ViT; `proj` maps its width to the embedding."""

    masks_patches = True

    def __init__(self, options: Options) -> None:
        if options.image_px % options.patch_px:
            raise ConfigError(
                f"pictures of {options.image_px} px cannot be cut into patches of {options.patch_px} px: "
                f"set model.image_px to a multiple of {options.patch_px}"
            )
        super().__init__(
            image_size=options.image_px,
            patch_size=options.patch_px,
            width=options.width,
            layers=options.layers,
            heads=options.width // options.head_width,
            mlp_ratio=4.0,
            output_dim=options.embed_dim,
            act_layer=QuickGELU if options.activation == "quick_gelu" else nn.GELU,
            norm_layer=LayerNormFp32,  # the published models normalise in fp32 whatever the weights' type
        )
        take_over_attentions(self.blocks())
        self.image_px = options.image_px
        self.sites = Sites()
        # the library's own rounds the number of kept patches differently
        self.patch_dropout = KeepPatches(self.sites.add("patches"))
        key_dropout(self)

    @property
    def dtype(self) -> torch.dtype:
        return self.conv1.weight.dtype

    def forward(self, images_BCHW: Tensor, mask_ratio: float = 0.0) -> Tensor:
        self.patch_dropout.ratio = mask_ratio
        tokens_BLD = self.transformer(self._embeds(images_BCHW))
        return self.ln_post(tokens_BLD[:, 0]) @ self.proj

    def patches(self, images_BCHW: Tensor) -> Tensor:
        self.patch_dropout.ratio = 0.0
        return self.ln_post(self.transformer(self._embeds(images_BCHW)))[:, 1:]

    def blocks(self) -> list[nn.Module]:
        return list(self.transformer.resblocks)


class KeepPatches(nn.Module):
    """In training, keeps the class token and `int((L - 1) * (1 - ratio))` patches drawn at random, in random order."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site
        self.ratio = 0.0

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        if not self.training or self.ratio == 0:
            return tokens_BLD
        batch, length, width = tokens_BLD.shape
        num_kept = int((length - 1) * (1 - self.ratio))
        if self.site.keys_B is None:
            noise_BP = torch.rand(batch, length - 1, device=tokens_BLD.device)
        else:
            noise_BP = random_words(self.site.keys_B, [length - 1])
        kept_BK = noise_BP.argsort(dim=1, stable=True)[:, :num_kept] + 1  # 0 is the class token
        patches_BKD = tokens_BLD.gather(1, kept_BK[:, :, None].expand(-1, -1, width))
        return torch.cat([tokens_BLD[:, :1], patches_BKD], dim=1)
