"""The bar of a terminal knows how many rows there will be, where that is cheap to know."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from cn_clip.preprocess.importers import folder, parquet

DOOR = Path(__file__).resolve().parents[3] / "cn_clip/preprocess/import_dataset.py"


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals there")
def test_a_table_on_a_terminal(pictures: Path, tmp_path: Path) -> None:
    import fcntl
    import pty
    import termios

    (tmp_path / "c.csv").write_text("image,caption\n0.jpg,a\n1.png,b\n2.jpg,c")
    words = (
        "folder",
        "--image-dir",
        pictures,
        "--captions",
        tmp_path / "c.csv",
        "--output-dir",
        tmp_path / "o",
    )
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    subprocess.run(
        [sys.executable, DOOR, *map(str, words)], stderr=theirs, stdout=subprocess.DEVNULL, check=True
    )
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert re.search(r"c\.csv: .*6/6 ", shown), shown


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("c.csv", "image,caption\na,b\n\n", 4),  # a bound, since blank lines are counted
        ("c.tsv", "image\tcaption\na\tb", 2),
        ("c.jsonl", "{}\n{}\n", 4),
        ("c.json", "[{}, {}]", None),
    ],
)
def test_rows_of_tables(
    pictures: Path, tmp_path: Path, name: str, content: str, expected: int | None
) -> None:
    (tmp_path / name).write_text(content)
    (part,) = folder.build(folder.Options(image_dir=pictures, captions=tmp_path / name)).parts
    assert (None if part.num_items is None else part.num_items()) == expected


def test_rows_of_parquet_files(tmp_path: Path) -> None:
    pyarrow, files = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files.write_table(pyarrow.table({"image": [b"x"] * 5, "caption": ["a"] * 5}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"broken")
    parts = parquet.build(parquet.Options(files=(tmp_path,))).parts
    assert [part.num_items and part.num_items() for part in parts] == [10, None]
