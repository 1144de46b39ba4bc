"""Whole runs in this process: what they write, how they go on, and what they refuse."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch

from cn_clip.data.store import SplitWriter
from cn_clip.errors import (
    CnClipError,
    ConfigError,
    DataError,
    DeviceError,
    Preempted,
    TrainingError,
    WeightsError,
)
from cn_clip.training.step_log import MEASURED, StepLog
from tests.training.conftest import Train, png

PREFIX = r"\d{4}-\d\d-\d\d,\d\d:\d\d:\d\d \| INFO \| Rank 0 \| "
TRAIN_LINE = re.compile(
    PREFIX + r"Global Steps: 4/12 \| Train Epoch: 1 \[16/24 \(67%\)\] \| Loss: \d\.\d{6} \| "
    r"Image2Text Acc: \d+\.\d\d \| Text2Image Acc: \d+\.\d\d \| Data Time: \d+\.\d{3}s \| Batch Time: \d+\.\d{3}s \| "
    r"LR: 0\.\d{6} \| logit_scale: 2\.\d{3} \| Global Batch Size: 4"
)
VALID_LINE = re.compile(
    PREFIX
    + r"Validation Result \(epoch 1 @ 6 steps\) \| Valid Loss: \d\.\d{6} \| Image2Text Acc: \d+\.\d\d \| "
    r"Text2Image Acc: \d+\.\d\d \| logit_scale: 2\.\d{3} \| Valid Batch Size: 7"
)


def weights(run: Path, name: str = "epoch_latest.pt") -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / name, weights_only=True)["state_dict"]


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_run_writes_what_the_reference_writes(train: Train, tiny_split: Path) -> None:
    run = train("--max-epochs=2", f"--val-data={tiny_split}", "--report-training-batch-acc")
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "epoch1.pt",
        "epoch2.pt",
        "epoch_latest.pt",
    ]
    log = next(run.glob("out_*.log")).read_text(encoding="utf-8").splitlines()
    assert sum(bool(TRAIN_LINE.fullmatch(line)) for line in log) == 1
    assert sum(bool(VALID_LINE.fullmatch(line)) for line in log) == 1
    assert any(line.endswith("train LMDB file contains 21 images and 21 pairs.") for line in log)
    assert "batch_size: 4" in next(run.glob("params_*.txt")).read_text().splitlines()
    assert (run / "resolved.yaml").is_file()
    assert [row["step"] for row in metrics(run) if row["kind"] == "train"] == list(range(1, 13))


def test_checkpoint_has_the_references_entries(train: Train) -> None:
    run = train("--max-steps=3", "--save-step-frequency=2")
    checkpoint = torch.load(run / "checkpoints" / "epoch_1_2.pt", weights_only=True)
    assert (checkpoint["epoch"], checkpoint["step"], checkpoint["name"]) == (1, 2, "run")
    assert all(key.startswith("module.") for key in checkpoint["state_dict"])
    assert [group["weight_decay"] for group in checkpoint["optimizer"]["param_groups"]] == [0.0, 0.2]
    assert checkpoint["cn_clip"]["settings"]["model"]["image"] == "tiny-vit"


def test_resolved_settings_repeat_the_run(train: Train) -> None:
    first = train("--max-steps=3", "--seed=7")
    again = train(f"--config={first / 'resolved.yaml'}", "--seed=7", "--max-steps=3", name="again")
    assert same_weights(weights(first), weights(again))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_run_that_stops_inside_an_epoch_goes_on_as_if_it_had_not(train: Train, accumulate: int) -> None:
    words = ("--max-steps=9", "--save-step-frequency=1", f"--accum-freq={accumulate}", "--mask-ratio=0.5")
    words += ("--use-augment",)
    whole = train(*words)
    (broken := whole.parent / "broken" / "checkpoints").mkdir(parents=True)
    shutil.copy(next((whole / "checkpoints").glob("epoch_*_4.pt")), broken / "epoch_latest.pt")
    rows = (whole / "metrics.jsonl").read_text().splitlines(keepends=True)
    (broken.parent / "metrics.jsonl").write_text(
        "".join(rows[:7]) + '{"kind": "tr'
    )  # two steps past, one half-written
    resumed = train(*words, name="broken")
    assert same_weights(weights(whole), weights(resumed))
    timeless = [
        [{key: row[key] for key in row if key not in MEASURED} for row in metrics(run)]
        for run in (whole, resumed)
    ]
    assert timeless[0] == timeless[1]


def test_a_finished_run_says_so_and_changes_nothing(train: Train) -> None:
    run = train("--max-steps=3")
    before = weights(run)
    train("--max-steps=3")
    assert same_weights(before, weights(run))
    assert "The run is complete: 3 of 3 steps" in "".join(path.read_text() for path in run.glob("out_*.log"))


def test_a_run_that_has_more_steps_than_asked_is_complete_and_loses_none(train: Train) -> None:
    run = train("--max-steps=3")
    before = {path: path.read_bytes() for path in (run / "metrics.jsonl", run / "resolved.yaml")}
    train("--max-steps=2")
    assert all(path.read_bytes() == content for path, content in before.items())
    assert "The run is complete: 3 of 2 steps" in "".join(path.read_text() for path in run.glob("out_*.log"))


def test_reset_flags_take_weights_only(train: Train) -> None:
    first = train("--max-steps=3")
    latest = first / "checkpoints" / "epoch_latest.pt"
    second = train(
        f"--resume={latest}",
        "--reset-optimizer",
        "--reset-data-offset",
        "--max-steps=2",
        "--lr=0",
        name="second",
    )
    assert same_weights(weights(first), weights(second))
    assert torch.load(second / "checkpoints" / "epoch_latest.pt", weights_only=True)["step"] == 2


def test_init_from_starts_anew_and_auto_resume_wins_over_it(train: Train) -> None:
    source = train("--max-steps=2", name="source") / "checkpoints" / "epoch_latest.pt"
    words = (f"--set=model.init_from={source}", "--max-steps=3")
    run = train(*words, "--lr=0")
    assert same_weights(weights(run), torch.load(source, weights_only=True)["state_dict"])
    log = next(run.glob("out_*.log")).read_text()
    assert "Weights of both towers taken from" in log
    train(*words)
    assert "=> loaded checkpoint" in "".join(path.read_text() for path in run.glob("out_*.log"))


def test_frozen_image_tower_stays_as_it_was(train: Train) -> None:
    words = ("--vision-model=tiny-resnet", "--freeze-vision", "--save-step-frequency=1", "--max-steps=3")
    run = train(*words)
    first, last = weights(run, "epoch_1_1.pt"), weights(run)
    moved = {key for key in first if not torch.equal(first[key], last[key])}
    assert moved and not any(key.startswith("module.visual.") for key in moved)


def test_precisions_train(train: Train) -> None:
    for precision in ("amp", "amp_bf16", "bf16"):
        run = train("--max-steps=2", f"--precision={precision}", name=precision)
        assert all(tensor.isfinite().all() for tensor in weights(run).values() if tensor.is_floating_point())


def test_recompute_changes_nothing(train: Train) -> None:
    plain, recomputed = (
        train("--max-steps=3"),
        train("--max-steps=3", "--grad-checkpointing", name="recomputed"),
    )
    assert same_weights(weights(plain), weights(recomputed))


def test_validation_can_be_off(train: Train, tiny_split: Path) -> None:
    for name, words in {"empty": ("--val-data=",), "none": ("--val-data=None",), "off": ()}.items():
        train("--max-steps=2", "--valid-step-interval=1", *words, name=name)
    run = train(
        "--max-steps=2",
        f"--val-data={tiny_split}",
        "--valid-step-interval=-1",
        "--valid-epoch-interval=-1",
        name="neg",
    )
    assert "Validation Result" not in next(run.glob("out_*.log")).read_text()


def test_a_missing_picture_is_named_in_one_sentence(train: Train, tmp_path: Path) -> None:
    with SplitWriter(tmp_path / "holed") as writer:
        for number in range(4):
            writer.add_pair(number, number, "花")
        writer.add_image(0, png(0))
    with pytest.raises(DataError, match="no picture with id [123]") as caught:
        train("--max-steps=1", data=tmp_path / "holed")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_undecodable_picture_is_named_in_one_sentence(
    train: Train, tmp_path: Path, num_workers: int
) -> None:
    with SplitWriter(tmp_path / "damaged") as writer:
        for number in range(4):
            writer.add_image(number, png(number) if number != 2 else b"\x89PNG\r\n\x1a\n not a picture")
            writer.add_pair(number, 10 + number, "花")
    with pytest.raises(DataError, match=r"picture 2 of \S*imgs \(pair 2, ") as caught:
        train("--max-steps=1", f"--num-workers={num_workers}", data=tmp_path / "damaged")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "error", "sentence"),
    [
        (("--resume=/nowhere/epoch9.pt",), WeightsError, "no checkpoint found at '/nowhere/epoch9.pt'"),
        (("--precision=fp16",), DeviceError, "needs a GPU"),
        (("--set=run.device=cuda",), DeviceError, "no GPU"),
        (("--set=run.device=abacus",), DeviceError, "abacus"),
        (("--set=optim.lrr=1",), ConfigError, "did you mean optim.lr"),
        (("--set=loss.targets=all",), ConfigError, "loss.targets is 'all'"),
        (("--set=loss.type=constrastive",), ConfigError, "contrastive"),
        (("--vision-model=ViT-B-61",), ConfigError, "ViT-B-16"),
        (("--set=loss.tile=0",), ConfigError, "loss.tile is 0"),
        (("--context-length=65",), ConfigError, "positions for 64"),
        (("--distillation",), ConfigError, "distill"),
        (("--use-bn-sync",), DeviceError, "GPUs"),
        (("--train-data=/nowhere",), DataError, "/nowhere"),
        (("--logs=/proc/run",), DataError, "/proc/run"),
    ],
)
def test_what_cannot_be_done_is_said(
    train: Train, words: tuple[str, ...], error: type, sentence: str
) -> None:
    with pytest.raises(error, match=re.escape(sentence)) as caught:
        train("--max-steps=1", *words)
    assert isinstance(caught.value, CnClipError) and "\n" not in str(caught.value)


def test_a_loss_that_is_no_number_is_skipped_and_too_many_of_them_stop_the_run(
    train: Train, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"the loss of step \d+ is nan.*lower optim.lr"):
        train(
            "--max-steps=9",
            "--lr=1e38",
            "--save-step-frequency=1",
            "--warmup=5",
            "--set=train.max_bad_steps=2",
        )
    folder = tmp_path / "run"
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    skipped = [row["step"] for row in rows if row["kind"] == "skipped"]
    bad = [json.loads(row) for row in (folder / "bad_steps.jsonl").read_text().splitlines()]
    assert len(skipped) == 2 and [row["step"] for row in bad][:2] == skipped
    assert all(len(row["pairs"]) == 4 for row in bad)
    weights = torch.load(folder / "checkpoints" / "epoch_latest.pt", weights_only=True)["state_dict"]
    assert "NaN" not in (folder / "metrics.jsonl").read_text()
    assert weights


def test_a_refused_command_leaves_an_old_runs_settings_alone(train: Train) -> None:
    run = train("--max-steps=1")
    before = (run / "resolved.yaml").read_bytes()
    with pytest.raises(WeightsError):
        train("--max-steps=1", "--resume=/nowhere.pt", "--seed=5")
    assert (run / "resolved.yaml").read_bytes() == before


def test_a_checkpoint_of_another_architecture_is_refused(train: Train) -> None:
    latest = train("--max-steps=1") / "checkpoints" / "epoch_latest.pt"
    with pytest.raises(WeightsError, match=re.escape(str(latest))):
        train(f"--resume={latest}", "--vision-model=tiny-resnet", "--max-steps=1", name="other")


def test_a_run_goes_on_with_another_freeze_setting(train: Train, caplog: pytest.LogCaptureFixture) -> None:
    frozen = train("--max-steps=1", "--freeze-vision", name="frozen") / "checkpoints" / "epoch_latest.pt"
    thawed = train(f"--resume={frozen}", "--max-steps=2", name="thawed")
    moments = torch.load(thawed / "checkpoints" / "epoch_latest.pt", weights_only=True)["optimizer"]["state"]
    steps = {float(state["step"]) for state in moments.values()}
    assert steps == {1.0, 2.0}  # the image tower's begin now


def test_a_run_that_is_started_again_goes_on_from_its_own_file_whatever_it_began_with(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train("--max-steps=1", name="first") / "checkpoints" / "epoch_latest.pt"
    words = (f"--resume={first}", "--reset-data-offset", "--reset-optimizer", "--save-step-frequency=1")
    run = train(*words, "--max-steps=2", name="second")
    monkeypatch.setenv("CN_CLIP_RESTART", "1")
    train(*words, "--max-steps=4", name="second")
    assert [row["step"] for row in metrics(run) if row["kind"] == "train"] == [1, 2, 3, 4]
    monkeypatch.setenv("CN_CLIP_RESTART", "0")
    train(*words, "--max-steps=1", name="second")
    assert [row["step"] for row in metrics(run) if row["kind"] == "train"] == [1]


def test_a_run_that_is_started_again_before_it_saved_leaves_a_foreign_file_alone(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the folder lies a finished run's; the new one crashed before its first save, or before it began."""
    first = train("--max-steps=2", name="first") / "checkpoints" / "epoch_latest.pt"
    run = train("--max-steps=3", name="second")
    monkeypatch.setenv("CN_CLIP_EXIT_MARKER", "/tmp/another_launcher")
    with pytest.raises(WeightsError):
        train("--resume=/nowhere.pt", name="second")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    train(f"--resume={first}", "--max-steps=3", name="second")
    assert [row["step"] for row in metrics(run) if row["kind"] == "train"][-1] == 3
    logs = "".join(path.read_text() for path in sorted(run.glob("out_*.log")))
    assert f"=> loaded checkpoint '{first}' (epoch 1 @ 2 steps)" in logs and "is complete" not in logs
    # now it has saved: its own
    train("--set=run.resume=none", "--max-steps=3", name="second")
    assert "The run is complete: 3 of 3" in "".join(path.read_text() for path in run.glob("out_*.log"))
    # and a launcher that has begun nothing here owns nothing
    monkeypatch.setenv("CN_CLIP_EXIT_MARKER", "/tmp/a_third_launcher")
    train("--set=run.resume=none", "--max-steps=1", name="second")
    assert [row["step"] for row in metrics(run) if row["kind"] == "train"] == [1]


@pytest.mark.parametrize("every", ["--max-steps=8", "--max-steps=6", "--valid-step-interval=4"])
def test_a_validation_that_a_signal_put_off_comes_when_the_run_goes_on(
    train: Train, tiny_split: Path, monkeypatch: pytest.MonkeyPatch, every: str
) -> None:
    """Due after step 6, the end of the epoch, which may be the last; or after step 4 as well."""
    at = 4 if "interval" in every else 6
    words = (f"--val-data={tiny_split}", "--max-steps=8", every, "--set=checkpoint.best=mean_recall")
    whole = train(*words, name="whole")
    advance, steps = StepLog.advance, []

    def stop_before_the_validation(log: StepLog) -> None:
        advance(log)
        steps.append(0)
        if len(steps) == at - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(StepLog, "advance", stop_before_the_validation)
        with pytest.raises(Preempted, match=f"after step {at}: saved"):
            train(*words, name="cut")
    cut = whole.parent / "cut"
    assert not [row for row in metrics(cut) if row["kind"] == "valid"]
    train(*words, name="cut")
    ours, theirs = (
        [{key: row[key] for key in row if key not in MEASURED} for row in metrics(run)]
        for run in (cut, whole)
    )
    assert ours == theirs
    for name in ("epoch_latest.pt", "best.pt", "epoch1.pt"):
        assert same_weights(weights(cut, name), weights(whole, name))
    # done once: not again by who goes on from here
    train(*words, name="cut")
    assert len([row for row in metrics(cut) if row["kind"] == "valid"]) == len(
        [row for row in metrics(whole) if row["kind"] == "valid"]
    )


def test_settings_of_the_optimizer_that_a_checkpoint_overrules_are_told(train: Train) -> None:
    train("--max-steps=1")
    run = train("--max-steps=2", "--wd=0.1", "--beta2=0.9", "--eps=1e-4")
    (said,) = {
        line
        for path in run.glob("out_*.log")
        for line in path.read_text().splitlines()
        if "settings in" in line
    }
    assert "WARNING" in said and "weight_decay 0.2 (this run's settings say 0.1)" in said
    assert "betas (0.9, 0.98) (this run's settings say (0.9, 0.9))" in said and "eps 1e-06" in said


def test_a_best_number_that_no_validation_gives_is_told_before_anything_starts(
    train: Train, tiny_split: Path
) -> None:
    words = (f"--val-data={tiny_split}", "--max-steps=1")
    with pytest.raises(
        ConfigError, match="no validation gives 'recall@7'; choose from .*text_to_image_recall@5"
    ):
        train(*words, "--set=checkpoint.best=recall@7")
    run = train(*words, "--set=checkpoint.best=text_to_image_recall@5")
    assert (run / "checkpoints" / "best.pt").is_file()
