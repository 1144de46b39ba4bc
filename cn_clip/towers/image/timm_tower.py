"""Any image model of timm, from a local folder or with fresh weights, with a linear map to the embedding.

Its dropout and its stochastic depth follow the keys of the pairs where features lie picture by picture. The rest (dropout
inside windows of Swin, of attention weights, patch dropout) draws from torch's generators, so that there a step depends on
how its batch is cut. timm's models drop nothing unless their `config.json` says so in `model_args`.

Shapes: B pictures, C H W picture, P patches, D model width, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.layers import DropPath, PatchEmbed
from torch import Tensor, nn

from cn_clip.errors import ConfigError, WeightsError
from cn_clip.towers.image import ImageTower
from cn_clip.towers.keyed_dropout import dropped, key_dropout, replace
from cn_clip.towers.sites import Site, Sites


@dataclass(frozen=True, kw_only=True)
class Options:
    folder: str | None = None
    """timm folder (`config.json` and weights) to take architecture and weights from."""
    architecture: str | None = None
    """timm's name of the model, for fresh weights; used when there is no folder."""
    image_px: int = 224
    """Side of the square pictures."""
    embed_dim: int = 512
    """Channels of the features."""
    given_mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    """Mean by which the pictures come normalised; the tower passes them on normalised as its model was trained."""
    given_std: tuple[float, ...] = (1.0, 1.0, 1.0)
    """Deviation, likewise."""


def build(options: Options) -> ImageTower:
    return TimmTower(options)


class TimmTower(nn.Module):
    trunk: Any  # timm's models share their methods by convention, not by a class
    sites: Sites
    masks_patches = False

    def __init__(self, options: Options) -> None:
        super().__init__()
        source = f"local-dir:{options.folder}" if options.folder else options.architecture or "none"
        try:
            self.trunk = timm.create_model(source, pretrained=options.folder is not None, num_classes=0)
        except (RuntimeError, FileNotFoundError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise WeightsError(f"timm cannot build the image tower {source}: {reason}") from error
        self._take_pictures_of(options.image_px)
        self.image_px = options.image_px
        self.proj = nn.Linear(self.trunk.num_features, options.embed_dim, bias=False)
        own_mean, own_std = (torch.tensor(self.trunk.pretrained_cfg[key]) for key in ("mean", "std"))
        given_mean, given_std = torch.tensor(options.given_mean), torch.tensor(options.given_std)
        self._gain = (given_std / own_std).tolist()
        self._shift = ((given_mean - own_mean) / own_std).tolist()
        self.sites = Sites()
        replace(self, DropPath, lambda old, name: KeyedDropPath(old, self.sites.add(name)))
        key_dropout(self)

    def _take_pictures_of(self, image_px: int) -> None:
        """Stretch the position embedding of a model that takes pictures of one size only."""
        stems = [module for module in self.trunk.modules() if isinstance(module, PatchEmbed)]
        own_px = stems[0].img_size[0] if stems and stems[0].img_size else image_px
        if own_px == image_px or not self.trunk.pretrained_cfg["fixed_input_size"]:
            return
        try:
            self.trunk.set_input_size(img_size=(image_px, image_px))
        except (AttributeError, AssertionError) as error:
            raise ConfigError(
                f"{type(self.trunk).__name__} of timm cannot be resized from {own_px} px to {image_px} px pictures: "
                f"set model.image_px to {own_px}"
            ) from error

    @property
    def dtype(self) -> torch.dtype:
        return self.proj.weight.dtype

    def forward(self, images_BCHW: Tensor, mask_ratio: float = 0.0) -> Tensor:
        return self.proj(self.trunk(self._renormalised(images_BCHW)))

    def patches(self, images_BCHW: Tensor) -> Tensor:
        features = self.trunk.forward_features(self._renormalised(images_BCHW))
        if features.ndim == 3:
            return features[:, self.trunk.num_prefix_tokens :]
        channels_first = features.shape[1] == self.trunk.num_features  # Swin and its kin keep channels last
        return features.flatten(2).transpose(1, 2) if channels_first else features.flatten(1, 2)

    def blocks(self) -> list[nn.Module]:
        children = dict(self.trunk.named_children())
        for name in ("blocks", "stages", "layers"):  # timm's names for the repeated part
            if name in children:
                return list(children[name].children())
        return []

    def _renormalised(self, images_BCHW: Tensor) -> Tensor:
        gain, shift = (images_BCHW.new_tensor(v).view(-1, 1, 1) for v in (self._gain, self._shift))
        return images_BCHW * gain + shift


class KeyedDropPath(nn.Module):
    """Stochastic depth (arXiv:1603.09382): in training a residual branch is left out for some pictures, by their keys."""

    def __init__(self, stock: DropPath, site: Site) -> None:
        super().__init__()
        self.stock, self.site = stock, site

    def forward(self, features: Tensor) -> Tensor:
        keys_B, drop = self.site.keys_B, self.stock.drop_prob
        if not self.training or drop == 0 or keys_B is None or len(features) != len(keys_B):
            return self.stock(features)
        gains_B = dropped(features.new_ones(len(features), 1), keys_B, drop)
        if not self.stock.scale_by_keep:
            gains_B = gains_B.sign()
        return features * gains_B.view(-1, *(1 for _ in features.shape[1:]))
