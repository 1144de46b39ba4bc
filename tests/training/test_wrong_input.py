"""Input that cannot be used ends in one sentence, before anything is trained or lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cn_clip.data.store import SplitWriter
from cn_clip.errors import CnClipError, ConfigError, DataError, DeviceError, WeightsError
from cn_clip.training import feature_cache, run_dir
from cn_clip.training.run_dir import LOCK
from tests.training.conftest import Train, png

GEOMETRIC = "--set=data.augment.type=geometric"


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        (("--set=optim.max_norm=0",), ConfigError, r"optim\.max_norm is 0\.0; give more than 0"),
        (("--set=lora.alpha=0",), ConfigError, r"lora\.alpha is 0\.0; give more than 0"),
        (("--set=optim.image_layer_decay=0",), ConfigError, "give more than 0"),
        (
            ("--set=loss.type=sigmoid", "--set=loss.initial_scale=0"),
            ConfigError,
            r"initial_scale is 0\.0; give 1 or more, at most 100",
        ),
        (("--set=run.device=meta",), DeviceError, "run.device is meta, on which torch cannot compute here"),
        (("--train-data=",), ConfigError, "data.train is not set"),
        ((GEOMETRIC, "--set=data.augment.brightness=2"), ConfigError, r"data\.augment\.brightness is 2\.0"),
        (
            (GEOMETRIC, "--set=stages=[{steps: 1}, {steps: 1, data: {augment: {hue: 2}}}]"),
            ConfigError,
            r"stages\[1\]: data\.augment\.hue is 2\.0",
        ),
        (
            ("--set=stages=[{steps: 1}, {steps: 1, model: {freeze_image_blocks: 9}}]",),
            ConfigError,
            r"stages\[1\]: model\.freeze_image_blocks is 9",
        ),
        (
            ("--set=stages=[{steps: 1}, {steps: 1, train: {precision: fp16}}]",),
            DeviceError,
            r"stages\[1\]: train\.precision is fp16",
        ),
        (
            ("--set=stages=[{steps: 1}, {steps: 1, model: {image_px: 33}}]",),
            ConfigError,
            r"stages\[1\]: pictures of 33 px",
        ),
    ],
)
def test_settings_that_cannot_be_are_told_before_the_first_step(
    train: Train, tmp_path: Path, words: tuple[str, ...], error: type[CnClipError], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        train("--max-steps=2", *words)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda file: file.update(cn_clip="x"), "entry that no version of cn_clip writes"),
        (lambda file: file.update(optimizer=[1]), "has not torch's layout.*--reset-optimizer"),
        (lambda file: file["optimizer"].update(param_groups="x"), "has not torch's layout"),
        (
            lambda file: file["state_dict"].pop("module.text_projection"),
            "do not belong together.*model.init_from",
        ),
        (
            lambda file: file["state_dict"]["module.text_projection"].fill_(torch.nan),
            "holds NaN in text_proj",
        ),
    ],
)
def test_a_checkpoint_that_was_changed(train: Train, tmp_path: Path, change: Change, says: str) -> None:
    latest = train("--max-steps=1") / "checkpoints" / "epoch_latest.pt"
    file = torch.load(latest, weights_only=True)
    change(file)
    torch.save(file, tmp_path / "changed.pt")
    with pytest.raises(WeightsError, match=says) as caught:
        train("--max-steps=2", f"--resume={tmp_path / 'changed.pt'}", name="other")
    assert "\n" not in str(caught.value)


def test_files_without_weights_are_named(train: Train, tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    torch.save({"state_dict": {}}, tmp_path / "none.pt")
    with pytest.raises(
        WeightsError, match=r"empty\.pt is cut short .*\(the file has another form.*\): give a whole"
    ):
        train(f"--set=model.init_from={tmp_path / 'empty.pt'}")
    with pytest.raises(WeightsError, match=r"none\.pt holds no weights by name"):
        train(f"--set=model.init_from={tmp_path / 'none.pt'}")


def test_hard_negatives_that_no_pair_has(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train("--max-steps=1", "--set=data.hard_negatives=2")
    assert "data.hard_negatives is 2, which does nothing: of 21 training pairs" in caplog.text
    caplog.clear()
    with SplitWriter(tmp_path / "with") as writer:
        for number in range(4):
            writer.add_image(number, png(number))
            writer.add_pair(number, number, f"第{number}张", hard_negatives=["别的"] if number == 3 else [])
    train("--max-steps=1", "--set=data.hard_negatives=2", name="other", data=tmp_path / "with")
    assert "data.hard_negatives" not in caplog.text


def test_a_cooldown_longer_than_the_run(train: Train, caplog: pytest.LogCaptureFixture) -> None:
    train("--max-steps=2", "--warmup=0", "--set=optim.schedule=cooldown", "--set=optim.cooldown_steps=9")
    assert "optim.cooldown_steps is 9, the whole run has 2 steps" in caplog.text


def test_fewer_pairs_than_a_batch(train: Train, caplog: pytest.LogCaptureFixture) -> None:
    train("--max-steps=1", "--batch-size=21")
    assert "training pairs, fewer than" not in caplog.text
    train("--max-steps=1", "--batch-size=22", name="larger")
    assert "There are 21 training pairs, fewer than the global batch of 22" in caplog.text


def test_rows_that_are_no_text_are_left_out(train: Train) -> None:
    run = train("--max-steps=1")
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\x00 no text\n[1]\n")
    train("--max-steps=2")
    assert b"no text" not in (run / "metrics.jsonl").read_bytes()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_log_on_a_full_disk_is_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log").symlink_to("/dev/full")
    log = run_dir._LogFile(tmp_path / "log")
    log.handle(logging.LogRecord("a", logging.INFO, "b", 1, "a line", None, None))
    log.close()
    assert capsys.readouterr().err == ""


def test_two_runs_in_one_folder(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_dir, "SECONDS_TO_END", 0.2)
    (tmp_path / "run").mkdir()
    other = run_dir.FileLock(tmp_path / "run" / LOCK)
    assert other.acquire()
    with pytest.raises(DataError, match=r"another run writes into .*/run: wait for it, .*--name"):
        train("--max-steps=1")
    assert [path.name for path in (tmp_path / "run").iterdir() if path.is_file()] == [LOCK]
    other.release()
    assert not (train("--max-steps=1") / LOCK).exists()


def test_two_runs_with_one_folder_of_features(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache, "SECONDS_TO_END", 0.2)
    words = ("--freeze-vision", "--max-steps=1", f"--set=data.feature_cache={tmp_path / 'features'}")
    train(*words)
    reader = feature_cache.FileLock(tmp_path / "features" / feature_cache.LOCK)
    assert reader.acquire(shared=True)
    train(*words, name="same")
    with pytest.raises(DataError, match="where another run makes or reads other features"):
        train(*words, "--seed=5", name="other")
    reader.release()
    assert reader.acquire()
    with pytest.raises(DataError, match="where another run makes or reads other features"):
        train(*words, name="same again")
    reader.release()
    train(*words, "--seed=5", name="other again")
