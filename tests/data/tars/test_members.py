"""What a sample is, told alike to a training run that streams it and to an import."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from cn_clip.data.pairs import RawPair
from cn_clip.data.pairs import webdataset as streamed
from cn_clip.data.tars.members import captions_of, picture_of
from cn_clip.preprocess.importers import webdataset as imported
from cn_clip.preprocess.importing.items import BytesContent, Picture, Text
from tests.data.pairs.conftest import png, write_tar

SAMPLES = {
    "both.png": png(2),
    "both.jpg": b"the one",
    "both.txt": b"two pictures",
    "mark.jpg": png(3),
    "mark.txt": b"\xef\xbb\xbfhi",
    "mark.json": b'\xef\xbb\xbf{"caption": "hi"}',
    "list.ppm": b"P6 1 1 255 abc",
    "list.txt": b"q",
    "list.json": b'{"caption": ["x", "y"], "text_id": 5}',
    "broken.jp2": png(5),
    "broken.txt": b"good",
    "broken.json": b"{",
    "half.jpg": png(6),
    "half.txt": b" ",
    "half.json": b'{"caption": "a \\ud800"}',
    "part.jpg": png(7),
    "part.txt": b"\xff",
    "part.json": b'{"caption": ["x", " "]}',
    "number.jpg": png(8),
    "number.json": b'{"caption": 7}',
    "nothing.mp4": b"",
    "nothing.txt": b"a film",
}


def by_import(tar: Path, caption: str) -> Iterator[tuple[bytes, str]]:
    source = imported.build(imported.Options(tars=(str(tar),), caption=caption))
    picture = b""
    for item in source.parts[0].items():
        if isinstance(item, Picture):
            assert isinstance(item.content, BytesContent)
            picture = item.content.content
        elif isinstance(item, Text):
            yield picture, item.text


def by_stream(tar: Path, caption: str, rounds: int) -> Iterator[RawPair]:
    stream = streamed.build(streamed.Options(urls=(str(tar),), caption=caption, shuffle=1))
    for pair in islice(stream.lane(0, 1, first=0, seed=0), rounds * stream.num_pairs):
        if isinstance(pair, RawPair):
            yield pair


@pytest.mark.parametrize(
    ("caption", "captions"),
    [
        ("txt", ["two pictures", "hi", "q", "good"]),
        ("TXT", ["two pictures", "hi", "q", "good"]),
        ("json.caption", ["hi", "x", "y"]),
    ],
)
def test_a_tar_gives_the_same_pairs_streamed_and_imported(
    tmp_path: Path, caption: str, captions: list[str]
) -> None:
    tar = write_tar(tmp_path / "a.tar", SAMPLES)
    rows = list(by_import(tar, caption))
    assert [text for _, text in rows] == captions
    assert {(pair.image_bytes, pair.caption) for pair in by_stream(tar, caption, 2)} == set(rows)


def test_captions_of_a_sample_take_turns_in_a_stream(tmp_path: Path) -> None:
    content = b'{"caption": ["x", "y", "z"], "image_id": 4, "text_id": 5}'
    tar = write_tar(tmp_path / "a.tar", {"a.jpg": png(1), "a.json": content})
    pairs = list(by_stream(tar, "json.caption", 6))
    assert [pair.caption for pair in pairs[:3]] == [pair.caption for pair in pairs[3:]]
    assert {pair.caption for pair in pairs} == {"x", "y", "z"}
    # one text id for several texts would make them positives of each other's pictures
    assert len({(pair.caption, pair.text_id, pair.pair_id) for pair in pairs}) == 3
    assert len({pair.text_id for pair in pairs}) == len({pair.pair_id for pair in pairs}) == 3
    assert {pair.image_id for pair in pairs} == {4}


def test_the_picture_does_not_depend_on_the_order_of_the_tar() -> None:
    assert picture_of({"png": b"p", "jpg": b"j"}) == picture_of({"jpg": b"j", "png": b"p"}) == b"j"
    with pytest.raises(ValueError, match="it has no picture"):
        picture_of({"mp4": b""})


@pytest.mark.parametrize(
    ("contents", "caption", "reason"),
    [
        ({}, "txt", r"it has no \.txt"),
        ({"json": b"{"}, "json.a", r"its \.json is not JSON"),
        ({"json": b"[" * 100_000}, "json.a", r"its \.json is not JSON"),
        ({"json": b'{"a": ' + b"1" * 5000 + b"}"}, "json.a", r"its \.json is not JSON"),
        ({"json": b"[]"}, "json.a", r"its \.json has no field 'a'"),
        ({"json": b'{"b": ""}'}, "json.a", r"its \.json has no field 'a'"),
        ({"json": b'{"a": []}'}, "json.a", "its caption is empty"),
        ({"json": b'{"a": [1]}'}, "json.a", "its caption is empty, or no text"),
        ({"json": "{}".encode("utf-16")}, "json.a", r"its \.json is not UTF-8"),
        ({"json": b'{"a": "\\udfff"}'}, "json.a", "surrogates not allowed"),
    ],
)
def test_captions_that_are_none(contents: dict[str, bytes], caption: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        captions_of(contents, caption)
