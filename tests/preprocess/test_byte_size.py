"""Sizes as people write them."""

from __future__ import annotations

import pytest

from cn_clip.errors import ConfigError
from cn_clip.preprocess.splits.byte_size import read_byte_size


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("10GB", 10 * 10**9),
        ("500mb", 500 * 10**6),
        ("1.5 GiB", 3 << 29),
        ("2G", 2 * 10**9),
        ("4096 B", 4096),
        ("1000000", 10**6),
        ("7 B", 7),
        ("1TiB", 1 << 40),
        ("8000000TiB", 8_000_000 << 40),
    ],
)
def test_sizes(text: str, num_bytes: int) -> None:
    assert read_byte_size(text, "--size") == num_bytes


@pytest.mark.parametrize(
    "text",
    ["", "GB", "-1GB", "0", "10XB", "1e9", "10 G B", "nan", "0.4", "1" + "0" * 400, "1e400", "9999999 TiB"],
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="--size .* is not a size"):
        read_byte_size(text, "--size")


@pytest.mark.parametrize("text", ["1", "10", "999999"])
def test_a_small_number_without_a_unit_is_a_forgotten_unit(text: str) -> None:
    with pytest.raises(
        ConfigError, match=f"--size '{text}' is {text} bytes?: give a unit, for example {text}GB"
    ):
        read_byte_size(text, "--size")
