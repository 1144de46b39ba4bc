"""Synthetic pictures for benchmarks, with what makes decoding and resizing hard: detail, edges, strokes, gradients, grain."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Pixels = NDArray[np.float32]
FADING = 1.4
"""Amplitude falls with this power of the frequency; measured photos have 1 to 1.5 (Field 1987)."""


@dataclass(frozen=True)
class Kind:
    name: str
    width: int
    height: int
    grain: float
    """Deviation of the noise of each pixel, in levels of 255."""
    quality: int
    """Of the JPEG."""
    count: int
    """Different pictures."""


def photo(width: int, height: int, seed: int, grain: float = 4.0) -> Image.Image:
    """Detail whose strength falls with its frequency, as in photos, then shapes with hard edges, strokes, and grain."""
    rng = np.random.default_rng(seed)
    light = fading_detail(width, height, rng)
    colours = np.stack([light + 0.2 * fading_detail(width, height, rng) for _ in range(3)], axis=-1)
    image = Image.fromarray(np.clip(128 + 45 * colours, 0, 255).astype(np.uint8))
    draw_shapes(image, rng)
    noise = rng.standard_normal((height, width, 3), dtype=np.float32)
    return Image.fromarray(np.clip(np.asarray(image) + grain * noise, 0, 255).astype(np.uint8))


def fading_detail(width: int, height: int, rng: np.random.Generator) -> Pixels:
    """(height, width) of deviation 1 whose amplitude is one over the frequency."""
    spectrum = np.fft.rfft2(rng.standard_normal((height, width), dtype=np.float32))
    down, across = np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None] * width
    field = np.fft.irfft2(spectrum / np.maximum(np.hypot(down, across), 1) ** FADING, (height, width))
    return ((field - field.mean()) / max(float(field.std()), 1e-6)).astype(np.float32)


def draw_shapes(image: Image.Image, rng: np.random.Generator) -> None:
    """A few plain shapes, a gradient, and lines of strokes as small as letters."""
    draw = ImageDraw.Draw(image)
    width, height = image.size
    for _ in range(4):
        left, top = int(rng.integers(0, width)), int(rng.integers(0, height))
        colour = tuple(int(level) for level in rng.integers(0, 256, 3))
        box = (left, top, left + width // 6, top + height // 6)
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(box, fill=colour)
    ramp = Image.linear_gradient("L").resize((max(width // 4, 1), max(height // 5, 1)))
    image.paste(ramp.convert("RGB"), (int(rng.integers(0, width)), int(rng.integers(0, height))))
    letter = max(height // 40, 4)
    left, top = int(rng.integers(0, width)) // 2, int(rng.integers(0, height)) * 3 // 4
    for number in range(60):
        x, y = left + number % 20 * letter, top + number // 20 * 2 * letter
        ends = (x, y, x + int(rng.integers(-letter, letter)) // 2, y + letter)
        draw.line(ends, fill=(250, 250, 250) if number % 2 else (10, 10, 10), width=max(letter // 6, 1))


def encode(image: Image.Image, kind: str = "JPEG", quality: int = 90) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, quality=quality)
    return file.getvalue()
