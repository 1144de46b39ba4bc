"""ResNet of CLIP: three-convolution stem, anti-aliased strides, attention pooling (arXiv:2103.00020, section 2.4).

Built on open_clip's `ModifiedResNet`; state-dict keys are those of OpenAI CLIP and Chinese-CLIP.
Shapes: B pictures, C H W picture, P positions of the last feature map, D its channels, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from cn_clip.errors import ConfigError
from cn_clip.towers.image import ImageTower
from cn_clip.towers.keyed_dropout import key_dropout
from cn_clip.towers.sites import Sites

_STRIDE = 32  # of the last feature map, in pixels


@dataclass(frozen=True, kw_only=True)
class Options:
    image_px: int = 224
    """Side of the square pictures, a multiple of 32."""
    width: int = 64
    """Channels after the stem; the last feature map has 32 times as many."""
    layers: tuple[int, ...] = (3, 4, 6, 3)
    """Bottleneck blocks of each of the four stages."""
    head_width: int = 64
    """Channels of a head of the attention pooling."""
    embed_dim: int = 1024
    """Channels of the features."""


def build(options: Options) -> ImageTower:
    return ResNetTower(options)


class ResNetTower(ModifiedResNet):
    masks_patches = False

    def __init__(self, options: Options) -> None:
        if options.image_px < _STRIDE or options.image_px % _STRIDE == _STRIDE - 1:
            # the stem rounds up and the rest down, so one size in 32 has another grid than its position embedding
            raise ConfigError(
                f"pictures of {options.image_px} px do not fit a ResNet: set model.image_px to a multiple of {_STRIDE}"
            )
        super().__init__(
            layers=list(options.layers),
            output_dim=options.embed_dim,
            heads=options.width * 32 // options.head_width,
            image_size=options.image_px,
            width=options.width,
        )
        self.image_px = options.image_px
        self.sites = Sites()
        key_dropout(self)

    @property
    def dtype(self) -> torch.dtype:
        return self.conv1.weight.dtype

    def forward(self, images_BCHW: Tensor, mask_ratio: float = 0.0) -> Tensor:
        # FLIP leaves out patches, which a ResNet has not: the ratio changes nothing.
        return super().forward(images_BCHW)

    def patches(self, images_BCHW: Tensor) -> Tensor:
        features = self.stem(images_BCHW)
        for stage in self._stages():
            features = stage(features)
        return features.flatten(2).transpose(1, 2)

    def blocks(self) -> list[nn.Module]:
        return [block for stage in self._stages() for block in stage]

    def _stages(self) -> list[nn.Sequential]:
        return [self.layer1, self.layer2, self.layer3, self.layer4]
