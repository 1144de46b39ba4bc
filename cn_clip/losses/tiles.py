"""Logits a tile at a time: no rank ever holds more of the N x N matrix, forward or backward.

A rank holds its own rows of pictures against the captions of all ranks. One tile S = s·I·Tᵀ (+ b) serves both directions;
given dLoss/dS of a tile, the derivatives of the features and of s are summed up. Prior art: Inf-CL (arXiv:2410.17243) and
the memory-efficient CLIP loss of DINOv3.

Shapes: R rows of this rank, M columns of all ranks, E embedding; i, j rows and columns of one tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

DEFAULT_TILE = 2048
"""Rows and columns: as fast as larger ones on CPU (tests/benchmarks/loss.py) with a quarter of the memory of 4096."""


@dataclass(frozen=True)
class Tile:
    """A piece of the logits; its buffers are used again for the next one."""

    i: slice
    j: slice
    logits: Tensor
    """(i, j)"""
    spare: Tensor
    """(i, j) to compute in."""
    scaled_iE: Tensor
    """s·I of its rows."""


@contextmanager
def plain_arithmetic(device: torch.device) -> Iterator[None]:
    """Without autograd and outside autocast: sums over a whole batch need the features' full precision."""
    has_autocast = torch.amp.is_autocast_available(device.type)
    with (
        torch.no_grad(),
        torch.autocast(device.type, enabled=False) if has_autocast else nullcontext(),
    ):
        yield


class Tiles:
    """Walks over the tiles of the logits and adds up what flows back; computes in fp32, in fp64 for fp64 features."""

    def __init__(
        self,
        image_RE: Tensor,
        text_ME: Tensor,
        scale: Tensor,
        tile: int,
        *,
        num_paired: int | None = None,
        bias: Tensor | None = None,
    ) -> None:
        """No tile has columns on both sides of column `num_paired`."""
        is_double = image_RE.dtype == text_ME.dtype == torch.float64
        self.dtype = torch.float64 if is_double else torch.float32
        self.image_RE, self.text_ME = image_RE.to(self.dtype), text_ME.to(self.dtype)
        self.scale = scale.to(self.dtype).reshape(())
        self._bias = None if bias is None else bias.to(self.dtype).reshape(())
        self._scale_shape = scale.shape
        num_rows, num_columns = len(image_RE), len(text_ME)
        num_paired = num_columns if num_paired is None else num_paired
        self.row_blocks = _blocks(0, num_rows, tile)
        self.column_blocks = [*_blocks(0, num_paired, tile), *_blocks(num_paired, num_columns, tile)]
        cells = min(tile, num_rows) * min(tile, num_columns)
        self._logits, self._spare = self.image_RE.new_empty(2, cells)
        self._image_gradient_RE: Tensor | None = None
        self._text_gradient_ME: Tensor | None = None

    def walk(self) -> Iterator[Tile]:
        """All tiles, row block by row block."""
        for i in self.row_blocks:
            scaled_iE = self.image_RE[i] * self.scale
            for j in self.column_blocks:
                shape = (i.stop - i.start, j.stop - j.start)
                logits, spare = (
                    buffer[: shape[0] * shape[1]].view(shape) for buffer in (self._logits, self._spare)
                )
                torch.mm(scaled_iE, self.text_ME[j].T, out=logits)
                if self._bias is not None:
                    logits.add_(self._bias)
                yield Tile(i, j, logits, spare, scaled_iE)

    def back(self, tile: Tile, d_logits_ij: Tensor) -> None:
        """Take in dLoss/dS of a tile."""
        if self._image_gradient_RE is None or self._text_gradient_ME is None:
            self._image_gradient_RE = torch.zeros_like(self.image_RE)
            self._text_gradient_ME = torch.zeros_like(self.text_ME)
        self._image_gradient_RE[tile.i].addmm_(d_logits_ij, self.text_ME[tile.j])
        self._text_gradient_ME[tile.j].addmm_(d_logits_ij.T, tile.scaled_iE)

    def gradients(self, factor: float) -> tuple[Tensor, Tensor, Tensor]:
        """`factor` times the derivatives of images (R, E), texts (M, E) and scale. Ends this object's work."""
        image_RE, text_ME = self._image_gradient_RE, self._text_gradient_ME
        assert image_RE is not None and text_ME is not None, "`back` comes first"
        # Still without the scale: ds = Σ dS·cos = Σ I·(dS·T), so no tile of cosines is needed.
        scale = sum((self.image_RE[i] * image_RE[i]).sum() for i in self.row_blocks)
        assert isinstance(scale, Tensor)
        image_RE *= self.scale * factor
        text_ME *= factor
        return image_RE, text_ME, (scale * factor).reshape(self._scale_shape)


def _blocks(start: int, stop: int, size: int) -> list[slice]:
    return [slice(at, min(at + size, stop)) for at in range(start, stop, size)]
