from __future__ import annotations

from pathlib import Path

import pytest

from cn_clip.errors import DataError
from cn_clip.eval.whole_file import open_whole


def test_the_old_file_stands_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")
    with open_whole(path) as stream:
        stream.write("new")
        stream.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    with pytest.raises(KeyboardInterrupt), open_whole(path) as stream:
        stream.write("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    with open_whole(tmp_path / "link.json") as stream:
        stream.write("new")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_text() == "new"


def test_a_device_is_written_not_replaced() -> None:
    with open_whole("/dev/null") as stream:
        stream.write("gone")
    assert Path("/dev/null").is_char_device()


def test_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"), open_whole(tmp_path / "no" / "out.json"):
        pass
    with pytest.raises(DataError, match="is a folder"), open_whole(tmp_path):
        pass
