"""Text towers: the folder is the list that a preset's `tower` accepts.

Each module has a frozen dataclass `Options` and `build(options) -> TextTower`. A tower with weights of the published
models keeps their key names below `bert.`. Shapes: B captions, L tokens, D tower width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor, nn

from cn_clip.towers.sites import Sites


class TextTower(Protocol):
    """What the two-tower model asks of a text tower, which is also an `nn.Module`."""

    @property
    def width(self) -> int:
        """Channels of the sentence feature."""

    @property
    def pad_id(self) -> int:
        """Token id that fills up a caption; the mask is where tokens differ from it."""

    @property
    def sites(self) -> Sites:
        """The places where it draws at random."""

    def features(self, tokens_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """One feature [B, D] per caption; `mask_BL` is true (or 1) for tokens that count."""

    def blocks(self) -> list[nn.Module]:
        """The repeated modules, in order: what is recomputed, sharded or compiled one by one."""

    # of nn.Module, named here since a Protocol cannot inherit from it
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def modules(self) -> Iterator[nn.Module]: ...
