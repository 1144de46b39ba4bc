"""Which addresses are opened, and which files a name means."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cn_clip.data.tars.shards import find_shards, open_shard
from cn_clip.errors import ConfigError
from tests.data.pairs.conftest import open_tars, png, write_tar

OTHERS = [
    "reference://0.tar::file://{folder}/refs.json",
    "reference://*.tar::file://{folder}/refs.json",
    "reference://0.tar::{folder}/refs.json",
    "reference::file://{folder}/refs.json",
    "simplecache::reference://0.tar::file://{folder}/refs.json",
    "http://host/a::reference://0.tar::file://{folder}/refs.json",
    "simplecache::reference::file://{folder}/refs.json",
    "zip://0.tar::file://{folder}/refs.json",
    "s3://bucket/a::b://c/0.tar",
    "jupyter://host/0.tar",
    "sftp://host/0.tar",
    "ssh://host/0.tar",
    "python://host/0.tar",
    "simplecache://0.tar",
    "REFERENCE://0.tar::file://{folder}/refs.json",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds a list of references whose template would create a file, with an fsspec that runs it."""
    touch = "{{ cycler.__init__.__globals__.os.system('touch %s') }}" % (tmp_path / "ran")
    refs = {"version": 1, "templates": {"u": touch}, "refs": {"0.tar": ["{{u}}", 0, 10]}}
    (tmp_path / "refs.json").write_text(json.dumps(refs))
    return tmp_path


@pytest.mark.parametrize("url", OTHERS)
@pytest.mark.parametrize("way", [find_shards, open_shard, open_tars])
def test_addresses_that_could_run_code_are_refused_before_fsspec_sees_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch, url: str, way: Callable[..., object]
) -> None:
    import fsspec

    monkeypatch.setattr(fsspec, "open", lambda *_, **__: pytest.fail("opened"))
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda *_, **__: pytest.fail("opened"))
    url = url.format(folder=folder)
    with pytest.raises(ConfigError, match="are opened here") as caught:
        way([url], "urls") if way is find_shards else way(url)
    assert url in str(caught.value)
    assert not (folder / "ran").exists()


def test_counts_may_not_be_such_an_address_either(folder: Path) -> None:
    write_tar(folder / "0.tar", {"a.jpg": png(1), "a.txt": b"a"})
    with pytest.raises(ConfigError, match="are opened here"):
        open_tars(folder / "0.tar", counts=f"reference://0.tar::file://{folder}/refs.json")


def test_usual_addresses_are_taken() -> None:
    urls = [
        "https://host/a/0.tar?token=a:b",
        "s3://bucket/0.tar",
        "gs://bucket/0.tar",
        "oss://bucket/0.tar",
        "hdfs://host/0.tar",
        "hf://datasets/a/0.tar",
        "memory://0.tar",
        "simplecache::memory://0.tar",
    ]
    for url in urls:
        if not url.startswith(("s3", "gs", "oss", "hdfs", "hf")):  # their packages may not be installed
            assert find_shards([url], "urls") == [url]
    assert find_shards(urls[:1], "urls") == urls[:1]


def test_a_folder_with_brackets_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "dir[1]"
    folder.mkdir()
    tar = write_tar(folder / "00.tar", {"a.jpg": png(1), "a.txt": b"a"})
    for url in (tar, folder, folder / "{00..00}.tar"):
        assert find_shards([str(url)], "urls") == [str(tar)]
