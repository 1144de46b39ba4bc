"""A tar that breaks off counts for what is lost behind the break, and not as one bad row."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cn_clip.errors import DataError

RunImport = Callable[..., Any]
SKIP = ("--bad-rows", "skip")
SAMPLES = 40


@pytest.fixture
def shards(tmp_path: Path, encode_picture: Callable[..., bytes]) -> list[Path]:
    """Six tars of forty samples."""
    paths = [tmp_path / "tars" / f"{number:05d}.tar" for number in range(6)]
    paths[0].parent.mkdir()
    for number, path in enumerate(paths):
        with tarfile.open(path, "w") as tar:
            for sample in range(SAMPLES):
                for ending, content in (("jpg", encode_picture(number * SAMPLES + sample)), ("txt", b"x")):
                    info = tarfile.TarInfo(f"{sample:04d}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return paths


def cut(path: Path, num_whole: int) -> None:
    """Leave this many whole samples, of a header and a body each for picture and caption."""
    with tarfile.open(path) as tar:
        end = tar.getmembers()[2 * num_whole].offset + 700
    path.write_bytes(path.read_bytes()[:end])


def write_stats(path: Path, successes: int = SAMPLES) -> None:
    stats = {"count": successes + 3, "successes": successes}
    path.with_name(f"{path.stem}_stats.json").write_text(json.dumps(stats))


def test_shards_without_counts(shards: list[Path], run_import: RunImport, capsys: Any) -> None:
    for path in shards[1:3]:
        path.write_bytes(b"no tar " * 200)
    words = ("webdataset", "--tars", shards[0].parent, *SKIP)
    with pytest.raises(DataError, match=r"2 of 6 shards are broken.* more than --max-bad-share 0\.012"):
        run_import(*words, "--max-bad-share", "0.012")
    assert not (shards[0].parents[1] / "out" / "train_imgs.tsv").exists()
    assert len(run_import(*words, "--max-bad-share", "0.4").images()) == 4 * SAMPLES
    assert "broken shards, of which the rest is missing: 2 of 6" in capsys.readouterr().out


@pytest.mark.parametrize("from_run", [False, True])
def test_shards_whose_samples_were_counted(
    shards: list[Path], run_import: RunImport, capsys: Any, from_run: bool
) -> None:
    if from_run:
        counts = {path.name: {"samples": SAMPLES, "bytes": 1, "modified_ns": 1} for path in shards}
        (shards[0].parent / "tar_counts.json").write_text(json.dumps(counts))
    else:
        for path in shards:
            write_stats(path)
    cut(shards[4], 36)  # four of 240 samples
    words = ("webdataset", "--tars", shards[0].parent, *SKIP)
    with pytest.raises(
        DataError, match="1 of 6 shards are broken and 8 of 480 pictures and captions are bad or"
    ):
        run_import(*words, "--max-bad-share", "0.016")
    assert len(run_import(*words, "--max-bad-share", "0.017").images()) == 236
    printed = capsys.readouterr().out
    assert "broken shards, of which the rest is missing: 1 of 6" in printed
    assert "pictures and captions lost with them: 8" in printed


@pytest.mark.parametrize("stats", ["{", "[]", '{"successes": 2}', '{"successes": "x"}'])
def test_counts_that_say_nothing(shards: list[Path], run_import: RunImport, stats: str) -> None:
    cut(shards[4], 36)
    (shards[4].with_name("00004_stats.json")).write_text(stats)
    words = ("webdataset", "--tars", shards[0].parent, *SKIP, "--max-bad-share")
    with pytest.raises(DataError, match="1 of 6 shards"):
        run_import(*words, "0.1")
    assert len(run_import(*words, "0.17").images()) == 236


def test_some_shards_were_counted_and_others_not(shards: list[Path], run_import: RunImport) -> None:
    write_stats(shards[4])
    cut(shards[4], 36)
    shards[0].write_bytes(b"no tar " * 200)
    words = ("webdataset", "--tars", shards[0].parent, *SKIP, "--max-bad-share")
    with pytest.raises(
        DataError, match="2 of 6 shards are broken and 8 of 400 pictures and captions are bad or"
    ):
        run_import(*words, "0.18")
    assert len(run_import(*words, "0.19").images()) == 196


def test_an_interrupted_import_remembers_what_was_lost(shards: list[Path], run_import: RunImport) -> None:
    shards[0].write_bytes(b"no tar " * 200)
    words = ("webdataset", "--tars", shards[0].parent, *SKIP, "--max-bad-share")
    for share in ("0.05", "0.1"):
        with pytest.raises(DataError, match="1 of 6 shards"):
            run_import(*words, share)
    assert len(run_import(*words, "0.2").images()) == 5 * SAMPLES
