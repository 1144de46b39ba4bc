"""Files that a run writes step by step: what is in them, and that a run which goes on has each row once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cn_clip.config.schema import Log
from cn_clip.data.sampler import EpochOrder
from cn_clip.errors import ConfigError
from cn_clip.training.plan import Plan
from cn_clip.training.row_file import RowFile, read_rows
from cn_clip.training.run_dir import RunDir
from cn_clip.training.step_log import MAX_SUSPECTS, MEASURED, step_log
from cn_clip.training.task import StepReport
from cn_clip.training.validation import MAIN_SET, ValidationResult, ValidationResults
from tests.training.conftest import Train

QUIET = Log(tensorboard=False, summary=False)
ORDER = EpochOrder(num_pairs=10, num_padded=12, global_batch=4, seed=0)


def report(step: int, **more: Any) -> StepReport:
    return StepReport(1 / step, 0.5, 0.25, 2.6, gradient_norm=3.0, **more)


def write_steps(folder: Path, first_step: int, last_step: int, log: Log = QUIET) -> RunDir:
    """A run of steps, the sixth of them skipped, with one suspect each."""
    run_dir = RunDir(str(folder), "run", writes=True)
    with step_log(log, run_dir, Plan(3, first_step, 9), ORDER) as steps:
        for step in range(first_step + 1, last_step + 1):
            if step == 6:
                steps.skipped(step)
                continue
            suspects = [{"pair_id": step, "other_pair_id": 0, "margin": 0.5}]
            told = report(step, numbers={"modality_gap": 0.8}, suspects=suspects)
            steps.train(step, told, lr=1e-3, data_seconds=0.1, step_seconds=0.2)
    return run_dir


def timeless(path: Path) -> list[dict[str, Any]]:
    return [{name: row[name] for name in row if name not in MEASURED} for row in read_rows(path)]


def test_a_train_row_holds_what_the_step_told(tmp_path: Path) -> None:
    run_dir = write_steps(tmp_path, 0, 7)
    rows = read_rows(run_dir.metrics)
    assert [row["kind"] for row in rows] == ["plan", *["train"] * 5, "skipped", "train"]
    plan = {"num_pairs": 10, "global_batch": 4, "steps_per_epoch": 3, "last_step": 9}
    assert rows[0] == {"kind": "plan", "step": 0, "epoch": 1, **plan}
    last = rows[-1]
    assert (last["step"], last["epoch"], last["loss"], last["gradient_norm"]) == (7, 3, 1 / 7, 3.0)
    assert last["modality_gap"] == 0.8 and last["skipped_steps"] == 1
    assert last["pairs_per_second"] == 20 and last["data_seconds"] == 0.1 and last["peak_memory_mib"] > 10
    assert [row["elapsed_seconds"] for row in rows if row["kind"] == "train"] == sorted(
        row["elapsed_seconds"] for row in rows if row["kind"] == "train"
    )
    assert [row["step"] for row in read_rows(run_dir.suspects)] == [1, 2, 3, 4, 5, 7]


@pytest.mark.parametrize("saved", range(8))
def test_a_run_that_goes_on_has_each_row_once(tmp_path: Path, saved: int) -> None:
    """Killed after step 8, in the middle of a row; the last checkpoint is of `saved` steps."""
    whole = write_steps(tmp_path / "whole", 0, 9)
    broken = write_steps(tmp_path / "broken", 0, 8)
    for path in (broken.metrics, broken.suspects):
        with path.open("a") as file:
            file.write('{"kind": "tra')
    write_steps(tmp_path / "broken", saved, 9)
    assert timeless(broken.metrics) == timeless(whole.metrics)
    assert timeless(broken.suspects) == timeless(whole.suspects)


def test_a_validation_that_was_put_off_has_its_row_once(tmp_path: Path) -> None:
    """The run that went on with it was killed after its row and before its checkpoint, and goes on from the same one."""
    run_dir = write_steps(tmp_path, 0, 3)
    results = ValidationResults({MAIN_SET: ValidationResult(0.5, 0.25, 0.75, 2.6, 4)})
    for _ in range(2):
        with step_log(QUIET, run_dir, Plan(3, 3, 9), ORDER) as steps:
            steps.valid(3, 1, results)
    valid = [row for row in read_rows(run_dir.metrics) if row["kind"] == "valid"]
    assert [(row["step"], row["loss"]) for row in valid] == [(3, 0.5)]


def test_another_plan_is_told_where_it_begins(tmp_path: Path) -> None:
    run_dir = write_steps(tmp_path, 0, 4)
    larger = EpochOrder(num_pairs=10, num_padded=16, global_batch=8, seed=0)
    for _ in range(2):  # going on from the same place twice tells it once
        with step_log(QUIET, run_dir, Plan(2, 4, 9), larger) as steps:
            steps.begin_stage(Plan(2, 4, 9), larger)
    plans = [row for row in read_rows(run_dir.metrics) if row["kind"] == "plan"]
    assert [(row["step"], row["global_batch"]) for row in plans] == [(0, 4), (4, 8)]


@pytest.mark.parametrize(("num", "kept"), [(50, MAX_SUSPECTS), (5, 4)])
def test_only_the_worst_suspects_of_a_step_are_kept(tmp_path: Path, num: int, kept: int) -> None:
    """And only where the wrong caption is nearer than the right one."""
    run_dir = RunDir(str(tmp_path), "run", writes=True)
    suspects = [{"pair_id": number, "margin": number / 100} for number in range(num)]
    with step_log(QUIET, run_dir, Plan(3, 0, 9), ORDER) as steps:
        steps.train(1, report(1, suspects=suspects), lr=1.0, data_seconds=0.1, step_seconds=0.2)
    written = [row["pair_id"] for row in read_rows(run_dir.suspects)]
    assert written == list(range(num - 1, num - 1 - kept, -1))


def test_a_number_that_is_none_is_null(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows.jsonl", 0)
    file.write({"step": 1, "gradient_norm": float("inf"), "loss": float("nan")})
    file.close()
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == {
        "step": 1,
        "gradient_norm": None,
        "loss": None,
    }


def test_a_row_is_in_the_file_when_it_is_written(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows.jsonl", 0)
    file.write({"step": 1})
    assert read_rows(tmp_path / "rows.jsonl") == [{"step": 1}]
    file.sync()
    file.close()


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    run_dir = RunDir(str(tmp_path), "run", writes=False)
    with step_log(Log(), run_dir, Plan(3, 0, 9), ORDER) as steps:
        steps.skipped(1)
        steps.sync()
    assert not list(tmp_path.iterdir())


def test_tensorboard_gets_the_numbers_and_the_settings(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir = RunDir(str(tmp_path), "run", writes=True)
    run_dir.write_settings({"optim": {"lr": 0.125}}, {})
    write_steps(tmp_path, 0, 4, Log(summary=False))
    events = EventAccumulator(str(run_dir.path / "tensorboard"))
    events.Reload()
    assert {"train/loss", "train/gradient_norm", "train/modality_gap", "train/data_seconds"} <= set(
        events.Tags()["scalars"]
    )
    assert [point.step for point in events.Scalars("train/loss")] == [1, 2, 3, 4]
    (text,) = events.Tensors("settings/text_summary")
    assert b"lr: 0.125" in text.tensor_proto.string_val[0]


def test_weights_and_biases_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same run goes on under the same id; a new one has its own."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log = Log(tensorboard=False, summary=False, wandb="cn_clip_test")
    run_dir = RunDir(str(tmp_path), "run", writes=True)
    run_dir.write_settings({"optim": {"lr": 0.125}}, {})
    ids = []
    for first_step, last_step in ((0, 4), (3, 7), (0, 2)):
        write_steps(tmp_path, first_step, last_step, log)
        ids.append((run_dir.path / "wandb_id.txt").read_text().strip())
    assert ids[0] == ids[1] != ids[2]
    folders = [path.name for path in (run_dir.path / "wandb").glob("offline-run-*")]
    # two of one second are told apart by a further "-1"
    assert all(any(one in name for name in folders) for one in ids)
    files = [next(path.glob("*.wandb")) for path in (run_dir.path / "wandb").glob("offline-run-*")]
    assert files and any(b"gradient_norm" in path.read_bytes() for path in files)


def test_a_missing_wandb_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()  # as wandb leaves them where it ran
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ConfigError, match="pip install wandb"):
        write_steps(tmp_path, 0, 1, Log(tensorboard=False, wandb="some_project"))


def test_a_real_run_tells_its_norms_and_times(train: Train) -> None:
    rows = read_rows(train("--max-steps=3") / "metrics.jsonl")
    assert [row["kind"] for row in rows] == ["plan", "train", "train", "train"]
    assert all(row["gradient_norm"] > 0 and row["skipped_steps"] == 0 for row in rows[1:])
    assert all(0 < row["data_seconds"] <= row["step_seconds"] for row in rows[1:])
