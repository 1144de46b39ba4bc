"""Runs that write folders of shards hold in them what whole files would, and go on from either."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cn_clip.errors import ConfigError
from cn_clip.training.consolidate import main as consolidate
from tests.training.conftest import Train

WORDS = ("--max-steps=5", "--save-step-frequency=2", "--set=ema.decay=0.9")
SHARDED = "--set=checkpoint.sharded=true"


def content(path: Path) -> dict[str, Any]:
    """A checkpoint but for the names of its run and files, and its settings."""
    found = torch.load(path, weights_only=True)
    ours = {
        name: value
        for name, value in found.pop("cn_clip").items()
        if name not in ("settings", "token", "own_files")
    }
    return {**found, **ours, "name": ""}


def assert_same(one: object, other: object, where: str = "") -> None:
    if isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other), where
    elif isinstance(one, dict):
        assert isinstance(other, dict) and one.keys() == other.keys(), where
        for name in one:
            assert_same(one[name], other[name], f"{where}/{name}")
    elif isinstance(one, list) and where.endswith("/names"):
        assert isinstance(other, list) and sorted(one) == sorted(other), where
    else:
        assert one == other, where


def test_a_consolidated_folder_is_the_file_of_a_run_without_shards(train: Train) -> None:
    whole, sharded = train(*WORDS, name="whole"), train(*WORDS, SHARDED, name="sharded")
    assert not list((sharded / "checkpoints").glob("*.pt"))
    consolidate([str(sharded / "checkpoints" / "epoch_latest.sharded")])
    one, other = (content(run / "checkpoints" / "epoch_latest.pt") for run in (whole, sharded))
    assert_same(one, other)


def test_a_file_that_is_there_is_not_replaced_unasked(train: Train, tmp_path: Path) -> None:
    folder = train("--max-steps=1", SHARDED) / "checkpoints" / "epoch_latest.sharded"
    kept = tmp_path / "kept.pt"
    kept.write_bytes(b"another run's")
    with pytest.raises(ConfigError, match=r"kept\.pt is there already: give another file, or --overwrite"):
        consolidate([str(folder), str(kept)])
    assert kept.read_bytes() == b"another run's"
    consolidate([str(folder), str(kept), "--overwrite"])
    assert torch.load(kept, weights_only=True)["step"] == 1
    with pytest.raises(ConfigError, match=r"the folder of .*x\.pt does not exist: make it first"):
        consolidate([str(folder), str(tmp_path / "none" / "x.pt")])
    with pytest.raises(ConfigError, match="is a folder"):
        consolidate([str(folder), str(tmp_path)])


def test_a_run_may_change_between_files_and_shards(train: Train) -> None:
    whole = train(*WORDS, name="whole")
    changing = train(*WORDS, "--max-steps=2", SHARDED, name="changing")
    # the schedule was that of two steps: only the position and the order of the files matter here
    assert (changing / "checkpoints" / "epoch_latest.sharded").is_symlink()
    train(*WORDS, "--max-steps=4", name="changing")
    assert content(changing / "checkpoints" / "epoch_latest.pt")["step"] == 4
    train(*WORDS, SHARDED, name="changing")
    said = "".join(path.read_text() for path in sorted(changing.glob("out_*.log")))
    assert "epoch_1_2.sharded' (epoch 1 @ 2 steps)" in said and "epoch_latest.pt' (epoch 1 @ 4 steps)" in said
    assert (whole / "checkpoints" / "epoch_latest.pt").is_file()


def test_cut_off_while_its_latest_folder_is_replaced_a_run_goes_on_from_what_was_there(train: Train) -> None:
    run = train(*WORDS, "--max-steps=4", SHARDED)
    latest = (run / "checkpoints" / "epoch_latest.sharded").resolve()
    latest.rename(latest.with_name(f".{latest.name}.old"))
    train(*WORDS, SHARDED)
    said = max(run.glob("out_*.log")).read_text()
    assert "=> loaded checkpoint" in said and "Global Steps: 5/5" in said and "Global Steps: 4/5" not in said
