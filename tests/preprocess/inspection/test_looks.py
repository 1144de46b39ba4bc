from __future__ import annotations

import io
import random
from collections.abc import Callable

import pytest
import xxhash
from PIL import Image

from cn_clip.clip.tokenizer import tokenize_captions
from cn_clip.data.captions import preprocess_text
from cn_clip.preprocess.inspection.caption_look import CaptionEye, name_characters, show_caption
from cn_clip.preprocess.inspection.picture_look import look_at


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_picture_is_described(format: str, photo: Callable[..., bytes]) -> None:
    picture = photo(1, (300, 200), format)
    look = look_at(picture)
    assert (look.width, look.height, look.format) == (300, 200, format)
    assert look.digest == xxhash.xxh3_128_digest(picture)
    assert (look.fault, look.flaw) == (None, None)
    assert look.num_bytes == len(picture)


@pytest.mark.parametrize(
    ("mode", "format"),
    [
        ("L", "JPEG"),
        ("CMYK", "JPEG"),
        ("RGBA", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("1", "PNG"),
        ("I;16", "PNG"),
    ],
)
def test_modes_are_those_of_pil(mode: str, format: str, photo: Callable[..., bytes]) -> None:
    stream = io.BytesIO()
    image = Image.open(io.BytesIO(photo(2)))
    (Image.new("I;16", (80, 60), 999) if mode == "I;16" else image.convert(mode)).save(stream, format)
    look = look_at(stream.getvalue())
    assert (look.mode, look.fault) == (mode, None)


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (900, 3), (63, 65), (2000, 1500)])
def test_any_size_is_decoded(size: tuple[int, int], photo: Callable[..., bytes]) -> None:
    look = look_at(photo(3, size))
    assert ((look.width, look.height), look.fault) == (size, None)


def test_what_gives_no_pixels_has_a_fault(photo: Callable[..., bytes]) -> None:
    for format in ("JPEG", "PNG", "WEBP"):
        picture = photo(4, format=format)
        assert look_at(picture[: len(picture) // 2]).fault is not None
    for junk in (
        b"",
        b"no picture",
        b"\xff\xd8\xff junk",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n",
    ):
        look = look_at(junk)
        assert look.fault and look.near is None


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_bytes_changed_at_random_never_stop_an_inspection(format: str, photo: Callable[..., bytes]) -> None:
    rng = random.Random(format)
    whole = photo(8, (90, 70), format)
    num_faults = 0
    for _ in range(150):
        picture = bytearray(whole)
        for _ in range(rng.choice([1, 3, 20])):
            picture[rng.randrange(len(picture) if rng.random() < 0.5 else 40)] = rng.randrange(256)
        look = look_at(bytes(picture[: rng.choice([len(picture), rng.randrange(len(picture))])]))
        assert (look.fault is None) == (look.width > 0)
        num_faults += look.fault is not None
    assert num_faults > 10


def test_damage_that_a_decoder_only_remarks_on_is_a_flaw(photo: Callable[..., bytes]) -> None:
    picture = bytearray(photo(5))
    # a marker within the coded data: libjpeg-turbo warns, and PIL shows the picture
    middle = len(picture) // 2
    picture[middle : middle + 2] = b"\xff\xd0"
    look = look_at(bytes(picture))
    assert (look.fault, look.width) == (None, 320)
    assert look.flaw


def test_a_picture_that_pil_refuses_for_its_size_is_not_decoded(
    monkeypatch: pytest.MonkeyPatch, photo: Callable[..., bytes]
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    for format in ("JPEG", "PNG"):
        assert "pixels" in str(look_at(photo(6, (200, 200), format)).fault)
        assert look_at(photo(6, (100, 100), format)).fault is None


@pytest.mark.parametrize(
    "caption", ["", "一只猫", "Red “Shoes” 42 ☕", "長" * 300, "naïve İstanbul ΑΣ", "𠮷野家\u200b🎧🎧"]
)
def test_tokens_are_those_of_the_tokenizer(caption: str) -> None:
    tokens = tokenize_captions([preprocess_text(caption)], 1000)[0]
    assert CaptionEye().look_at(caption).num_tokens == int(tokens.ne(0).sum())


def test_what_the_vocabulary_lacks_is_named() -> None:
    look = CaptionEye().look_at("耳机🎧🎧 𠮷野家 abc")
    assert look.unknown == ("🎧", "🎧", "𠮷")
    assert look.invisible == ()
    assert CaptionEye().look_at("一\u200b只\x1b猫\ufffd\n").invisible == ("\u200b", "\x1b", "\ufffd")
    assert name_characters("🎧") == "U+1F3A7 HEADPHONE"


def test_captions_are_shown_without_what_a_terminal_obeys() -> None:
    assert show_caption("一\x1b[31m\n只\ud83d") == "一\\u001b[31m 只\\ud83d"
    assert show_caption("长" * 300) == "长" * 200 + "…"
