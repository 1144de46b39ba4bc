"""Operations of timm's policies on small uint8 pictures, faster than by PIL and to its pixels.

A picture goes through them as PIL's or as an array, whichever the operation before left. `quick_policies` puts them in the
place of timm's own; what is random timm still draws.

Shapes: H height, W width, P = H·W pixels, N of them taken from inside the picture.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cn_clip.clip.decode import Pixels_HWC

if TYPE_CHECKING:
    from PIL.Image import Image
    from timm.data.auto_augment import AugmentOp, AutoAugment

    Picture = Image | Pixels_HWC
    """Of three colours."""

Numbers = np.ndarray[Any, Any]
"""Any: of integers or floats, as numpy's own hints leave it."""
Operation = Callable[..., Any]
"""(picture, magnitudes, `fillcolor` and `resample` by name) -> picture; Any: of either kind, as timm passes it on."""
Matrix = tuple[float, float, float, float, float, float]
"""a to f: the pixel at (x, y) is taken from (ax + by + c, dx + ey + f), centres at .5, as PIL's AFFINE has it."""
MAX_MOVES = 8
"""Moves whose weights are kept, 128 bytes a pixel each: 51 MB for 224 x 224. The policies `original` have as many."""

LEVELS = np.arange(256, dtype=np.uint8)
FIRST_PLACES = np.array([0, 256, 512], np.int16)
TO_GREY = torch.tensor([19595.0, 38470.0, 7471.0]) / 65536
"""PIL's weights of red, green and blue, in sixteen bits: float32 holds every sum exactly."""


def quick_policies(policies: AutoAugment) -> AutoAugment:
    """The same policies with their operations replaced."""
    operations = [operation for pair in policies.policy for operation in pair]
    moves = {(operation.name, operation.magnitude) for operation in operations if operation.name in MOVES}
    # each goes either way; where not all can be kept, making them anew would cost more than PIL does
    quick = RECOLOURINGS | MOVES if 2 * len(moves) <= MAX_MOVES and can_multiply_sparse() else RECOLOURINGS
    for operation in operations:
        operation.aug_fn = quick.get(operation.name) or _by_pil(operation)
    return policies


def posterize_to_nothing(policies: AutoAugment) -> AutoAugment:
    """The same policies, able to keep no bit of a colour: `v0` asks for it, and Pillow refuses since version 12."""
    for operation in (operation for pair in policies.policy for operation in pair):
        if operation.name == "Posterize":
            operation.aug_fn = lambda picture, bits, **_: as_image(posterize(picture, bits))
    return policies


def can_multiply_sparse() -> bool:
    """Torch multiplies sparse matrices on the CPU by MKL alone, which ARM has not."""
    return torch.backends.mkl.is_available()


def _by_pil(operation: AugmentOp) -> Operation:
    by_timm = operation.aug_fn

    def operate(picture: Picture, *magnitudes: float, **options: object) -> Image:
        return by_timm(as_image(picture), *magnitudes, **options)

    return operate


def as_image(picture: Picture) -> Image:
    from PIL.Image import fromarray

    return fromarray(picture) if isinstance(picture, np.ndarray) else picture


def as_array(picture: Picture) -> Pixels_HWC:
    return picture if isinstance(picture, np.ndarray) else np.array(picture)


def posterize(picture: Picture, bits: int, **_: object) -> Picture:
    """The highest `bits` of each colour."""
    return picture if bits >= 8 else as_array(picture) & np.uint8(256 - (1 << (8 - bits)))


def solarize(picture: Picture, threshold: int, **_: object) -> Pixels_HWC:
    """Colours of `threshold` and above turned to their opposites."""
    pixels_HWC = as_array(picture)
    return pixels_HWC ^ (pixels_HWC >= threshold) * np.uint8(255)


def invert(picture: Picture, **_: object) -> Pixels_HWC:
    return ~as_array(picture)


def equalize(picture: Picture, **_: object) -> Pixels_HWC:
    """Each colour's levels spread so that all are about as frequent."""
    pixels_HWC = as_array(picture)
    places = _places_in_tables(pixels_HWC)
    counts = torch.bincount(places, minlength=3 * 256).view(3, 256).numpy()
    return _look_up([_equalizing(counts_of_one) for counts_of_one in counts], places).reshape(
        pixels_HWC.shape
    )


def _equalizing(counts: Numbers) -> Numbers:
    """New level of each of 256, in PIL's whole numbers."""
    there = counts[counts > 0]
    step = int(there[:-1].sum()) // 255
    if step == 0:
        return LEVELS
    before = np.cumsum(counts) - counts
    return np.minimum((step // 2 + before) // step, 255).astype(np.uint8)


def auto_contrast(picture: Picture, **_: object) -> Pixels_HWC:
    """Each colour's levels stretched until they reach from 0 to 255."""
    pixels_HWC = as_array(picture)
    pixels_HX = pixels_HWC.reshape(len(pixels_HWC), -1)
    lowest, highest = pixels_HX.min(0).reshape(-1, 3).min(0), pixels_HX.max(0).reshape(-1, 3).max(0)
    if ((highest <= lowest) | (highest - lowest == 255)).all():
        return pixels_HWC
    tables = [_stretching(*ends) for ends in zip(lowest.tolist(), highest.tolist(), strict=True)]
    return _look_up(tables, _places_in_tables(pixels_HWC)).reshape(pixels_HWC.shape)


def _stretching(lowest: int, highest: int) -> Numbers:
    if highest <= lowest:
        return LEVELS
    scale = 255.0 / (highest - lowest)
    return np.clip(LEVELS * scale + -lowest * scale, 0, 255).astype(np.uint8)


def _places_in_tables(pixels_HWC: Pixels_HWC) -> Tensor:
    """int16 (3P,) of 0 to 767: where three tables of 256 levels, one after the other, hold each colour's."""
    height, width = pixels_HWC.shape[:2]
    # whole rows: numpy is several times as slow when it repeats three numbers for each pixel
    places_HX = pixels_HWC.reshape(height, 3 * width) + np.tile(FIRST_PLACES, width)
    return torch.from_numpy(places_HX).view(-1)


def _look_up(tables: list[Numbers], places: Tensor) -> Numbers:
    # half the time of numpy's take
    levels: Numbers = torch.from_numpy(np.concatenate(tables)).index_select(0, places.int()).numpy()
    return levels


def contrast(picture: Picture, factor: float, **_: object) -> Pixels_HWC:
    """Distance from the mean grey times `factor`."""
    pixels_HWC = as_array(picture)
    colours_P3 = torch.from_numpy(pixels_HWC).view(-1, 3).float()
    grey_P = (colours_P3 @ TO_GREY).add_(0.5).floor_()
    mean = np.float32(int(grey_P.mean(dtype=torch.float64).item() + 0.5))
    return _blend(mean, colours_P3.numpy(), factor).reshape(pixels_HWC.shape)


def sharpness(picture: Picture, factor: float, **_: object) -> Pixels_HWC:
    """Distance from the smoothed picture times `factor`."""
    pixels_HWC = as_array(picture)
    smooth_HWC = pixels_HWC.copy()
    wide_HWC = pixels_HWC.astype(np.uint16)
    rows = wide_HWC[:-2] + wide_HWC[1:-1] + wide_HWC[2:]
    sums = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * wide_HWC[1:-1, 1:-1]
    # a thirteenth, rounded; the outermost pixels stay
    smooth_HWC[1:-1, 1:-1] = (2 * sums + 13) // 26
    return _blend(smooth_HWC.astype(np.float32), pixels_HWC.astype(np.float32), factor)


def _blend(at_0: Numbers | np.float32, at_1: Numbers, factor: float) -> Pixels_HWC:
    """uint8 of float32 levels, by the operations of PIL's blend in their order; `at_1` is written over."""
    at_1 -= at_0
    at_1 *= np.float32(factor)
    at_1 += at_0
    return np.clip(at_1, 0, 255, out=at_1).astype(np.uint8)


def rotate(picture: Picture, degrees: float, *, fillcolor: tuple[int, ...], **_: object) -> Pixels_HWC:
    """Turned counter-clockwise about the middle."""
    pixels_HWC = as_array(picture)
    height, width = pixels_HWC.shape[:2]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return move(pixels_HWC, (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y), fillcolor)


def shear_x(picture: Picture, factor: float, *, fillcolor: tuple[int, ...], **_: object) -> Pixels_HWC:
    """Rows moved sideways, the further down the more."""
    return move(as_array(picture), (1, factor, 0, 0, 1, 0), fillcolor)


MOVES: dict[str, Operation] = {"Rotate": rotate, "ShearX": shear_x}
RECOLOURINGS: dict[str, Operation] = {
    "AutoContrast": auto_contrast,
    "Contrast": contrast,
    "ContrastIncreasing": contrast,
    "Equalize": equalize,
    "Invert": invert,
    "Posterize": posterize,
    "PosterizeIncreasing": posterize,
    "PosterizeOriginal": posterize,
    "Sharpness": sharpness,
    "SharpnessIncreasing": sharpness,
    "Solarize": solarize,
    "SolarizeIncreasing": solarize,
}
"""By timm's names."""


def move(pixels_HWC: Pixels_HWC, matrix: Matrix, fill: tuple[int, ...]) -> Pixels_HWC:
    """Each pixel from where the matrix says, by PIL's bicubic filter; `fill` where that is outside."""
    weights_PP, from_outside_P3 = _weights(pixels_HWC.shape[:2], matrix, fill)
    colours_P3 = torch.from_numpy(pixels_HWC).view(-1, 3).float()
    moved_P3 = (weights_PP @ colours_P3).add_(from_outside_P3)
    # numpy turns floats to bytes in a quarter of torch's time
    return moved_P3.clamp_(0, 255).numpy().astype(np.uint8).reshape(pixels_HWC.shape)


@lru_cache(maxsize=MAX_MOVES)
def _weights(size: tuple[int, int], matrix: Matrix, fill: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Sparse (P, P): how much of which 16 pixels makes each one; and (P, 3), to be added: `fill` for those from outside."""
    height, width = size
    a, b, c, d, e, f = matrix
    y_HW, x_HW = np.mgrid[:height, :width] + 0.5
    from_x_P, from_y_P = ((a * x_HW + b * y_HW + c).ravel(), (d * x_HW + e * y_HW + f).ravel())
    inside_P = (from_x_P >= 0) & (from_x_P < width) & (from_y_P >= 0) & (from_y_P < height)
    columns_N4, across_N4 = _neighbours(from_x_P[inside_P], width)
    rows_N4, down_N4 = _neighbours(from_y_P[inside_P], height)
    shares_N44 = down_N4[:, :, None] * across_N4[:, None]
    taken_N44 = shares_N44 != 0
    num_taken_P = np.zeros(len(inside_P), np.int32)
    num_taken_P[inside_P] = taken_N44.sum((1, 2))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        weights_PP = torch.sparse_csr_tensor(
            # 32 bits, which MKL multiplies by without converting them each time
            torch.from_numpy(np.concatenate([[0], np.cumsum(num_taken_P)]).astype(np.int32)),
            torch.from_numpy((rows_N4[:, :, None] * width + columns_N4[:, None])[taken_N44].astype(np.int32)),
            torch.from_numpy(shares_N44[taken_N44].astype(np.float32)),
            (height * width, height * width),
            check_invariants=True,
        )
    # PIL cuts fractions off; the small number keeps a sum of 254.9999 what it would be without rounding errors
    from_outside_P3 = np.where(inside_P[:, None], 1e-3, np.array(fill)).astype(np.float32)
    return weights_PP, torch.from_numpy(from_outside_P3)


def _neighbours(place_N: Numbers, length: int) -> tuple[Numbers, Numbers]:
    """Of the two pixels before and the two after a place: their indices (N, 4), and weights (N, 4) by Keys' filter, a = -1.

    Beyond an edge stands the pixel at the edge: its weights are added up in one of its columns, and 0 in the others.
    """
    before_N = np.floor(place_N - 0.5)
    t = place_N - 0.5 - before_N
    weights_N4 = np.stack(
        [-t * (1 - t) ** 2, 1 - 2 * t**2 + t**3, t * (1 + t - t**2), -(t**2) * (1 - t)], axis=1
    )
    indices_N4 = np.clip(before_N[:, None].astype(np.int64) + np.arange(-1, 3), 0, length - 1)
    for column in range(3):
        same_N = indices_N4[:, column] == indices_N4[:, column + 1]
        weights_N4[same_N, column + 1] += weights_N4[same_N, column]
        weights_N4[same_N, column] = 0
    return indices_N4, weights_N4
