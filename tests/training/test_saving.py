"""When a run is saved, under which names, and what becomes of a file that cannot be written."""

from __future__ import annotations

import logging
import os
import resource
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cn_clip.config.schema import Checkpoint, Parallel
from cn_clip.config.schema import Run as RunSettings
from cn_clip.errors import ConfigError, Preempted, TrainingError
from cn_clip.parallel.engines.ddp import CopiesEngine
from cn_clip.parallel.precision import Precision
from cn_clip.parallel.ranks import Ranks
from cn_clip.training.checkpoints import Position, RunState, read_saved
from cn_clip.training.going_on import way_on
from cn_clip.training.plan import Plan
from cn_clip.training.run_dir import RunDir
from cn_clip.training.saving import FAILED, STOP, Saver
from cn_clip.training.stop_signals import StopSignals

PLAN = Plan(steps_per_epoch=3, first_step=0, max_steps=9)


@dataclass
class Run:
    """A model of one number, and the saver of its run."""

    folder: Path
    state: RunState
    saver: Saver

    def step(self, step: int, numbers: Mapping[str, float] | None = None) -> None:
        with torch.no_grad():
            self.state.engine.module.weight.fill_(step)
        notices = self.saver.notices()
        self.saver.after_step(step, PLAN.epoch_of(step), PLAN.ends_epoch(step), numbers, notices=notices)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def weight(self, name: str = "epoch_latest.pt") -> float:
        return torch.load(self.folder / name, weights_only=True)["state_dict"]["module.weight"].item()


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Run]:
    def run(
        stop: StopSignals | None = None,
        clock: Callable[[], float] | None = None,
        way_on: str = "the same command goes on from there",
        **settings: Any,
    ) -> Run:
        device = torch.device("cpu")
        model = torch.nn.Linear(1, 1, bias=False)
        ranks = Ranks(rank=0, world_size=1, local_rank=0, device=device)
        engine = CopiesEngine(model, Parallel(), Precision("fp32", device), ranks)
        groups = [{"params": [], "param_names": []}, {"params": [model.weight], "param_names": ["weight"]}]
        engine.set_optimizer(torch.optim.AdamW(groups))
        state = RunState("run", engine, {"settings": {}, "world_size": 1})
        run_dir = RunDir(str(tmp_path), "run", writes=True)
        options = {} if clock is None else {"clock": clock}
        return Run(
            run_dir.checkpoints,
            state,
            Saver(Checkpoint(**settings), state, run_dir, PLAN, stop=stop, way_on=way_on, **options),
        )

    return run


@pytest.mark.parametrize("asynchronous", [True, False])
def test_names_and_what_they_hold(start: Callable[..., Run], asynchronous: bool) -> None:
    run = start(every_steps=2, every_epochs=2, asynchronous=asynchronous)
    with run.saver:
        for step in range(1, 9):
            run.step(step)
    assert run.names() == [
        "epoch2.pt", "epoch_1_2.pt", "epoch_2_4.pt", "epoch_2_6.pt", "epoch_3_8.pt", "epoch_latest.pt",
    ]  # fmt: skip
    assert [run.weight(f"epoch_{e}_{s}.pt") for e, s in ((1, 2), (2, 4), (3, 8))] == [2, 4, 8]
    assert run.weight() == 8
    # two names of one file, as the latest always is
    assert (run.folder / "epoch2.pt").samefile(run.folder / "epoch_2_6.pt")


def test_the_last_epoch_is_always_saved_and_latest_at_every_epoch(start: Callable[..., Run]) -> None:
    run = start(every_epochs=None)
    for step in range(1, 7):
        run.step(step)
    run.saver.close()
    assert run.names() == ["epoch_latest.pt"] and run.weight() == 6
    for step in (7, 8, 9):
        run.step(step)
    run.saver.close()
    assert run.names() == ["epoch3.pt", "epoch_latest.pt"]


def test_a_capture_does_not_follow_the_training(start: Callable[..., Run]) -> None:
    """The file is written later than it is captured; what it holds may have changed meanwhile."""
    run = start()
    captured = run.state.capture(Position(1, 1))
    assert captured is not None
    before = captured.live["weight"].item()
    with torch.no_grad():
        run.state.engine.module.weight.add_(1)
    assert captured.live["weight"].item() == before
    assert run.state.content(captured)["state_dict"]["module.weight"].item() == before


def test_only_the_newest_own_files_are_kept_and_no_others(start: Callable[..., Run]) -> None:
    first = start(every_steps=1, every_epochs=None, keep_last=2, safetensors=True, best="recall")
    others = ["epoch7.pt", "mine.pt", "epoch_9_99.pt"]
    for name in others:
        (first.folder / name).write_bytes(b"another run's")
    for step in (1, 2, 3, 4):
        first.step(step, {"recall": 0.5 if step == 1 else 0.1})
    first.saver.close()
    kept = [name for name in first.names() if name not in others]
    assert kept == [
        "best.pt", "best.safetensors", "epoch_1_3.pt", "epoch_1_3.safetensors", "epoch_2_4.pt",
        "epoch_2_4.safetensors", "epoch_latest.pt", "epoch_latest.safetensors",
    ]  # fmt: skip
    assert first.weight("best.pt") == 1
    assert load_file(first.folder / "epoch_1_3.safetensors")["weight"].item() == 3
    # who may read the one may read the other
    modes = [(first.folder / f"epoch_1_3.{suffix}").stat().st_mode for suffix in ("pt", "safetensors")]
    assert modes[0] == modes[1]
    # a run that goes on knows which files are its own
    again = start(every_steps=1, every_epochs=None, keep_last=2)
    saved = read_saved(first.folder / "epoch_latest.pt")
    saved.load_training(again.state)
    again.saver.continue_from(saved)
    again.step(5)
    again.saver.close()
    assert set(others) <= set(again.names())
    assert {"epoch_2_4.pt", "epoch_2_5.pt"} <= set(again.names()) and "epoch_1_3.pt" not in again.names()


@pytest.mark.parametrize(
    ("name", "values", "best"), [("recall", (0.2, 0.4, 0.3), 2), ("set/loss", (2.0, 1.0, 1.5), 2)]
)
def test_best_is_the_best_value_so_far(
    start: Callable[..., Run], name: str, values: tuple[float, ...], best: int
) -> None:
    run = start(best=name, every_epochs=None)
    for step, value in enumerate(values, 1):
        run.step(step, {name: value, "other": 0.0})
    run.saver.close()
    assert run.weight("best.pt") == best
    assert read_saved(run.folder / "epoch_latest.pt").checkpoint["cn_clip"]["best"] == values[best - 1]


def test_no_number_is_never_the_best(start: Callable[..., Run]) -> None:
    run = start(best="recall")
    run.step(1, {"recall": float("nan")})
    run.saver.close()
    assert run.names() == []


def test_an_unknown_best_lists_the_names_there_are(start: Callable[..., Run]) -> None:
    run = start(best="recal")
    with pytest.raises(ConfigError, match="checkpoint.best is recal.*choose from loss, recall"):
        run.step(1, {"recall": 0.5, "loss": 1.0})


def test_minutes_write_the_latest_alone(start: Callable[..., Run]) -> None:
    now = 0.0
    run = start(every_minutes=10, clock=lambda: now)
    run.step(1)
    assert run.names() == []
    now = 601.0
    run.step(2)
    run.saver.close()
    assert run.names() == ["epoch_latest.pt"] and run.weight() == 2
    assert run.saver.notices() == 0


def test_what_a_killed_run_was_writing_is_cleared_away(start: Callable[..., Run]) -> None:
    folder = start().folder
    (folder / ".epoch3.pt.123.partial").write_bytes(b"half")
    (folder / ".epoch3.sharded.partial").mkdir()
    (folder / ".epoch_latest.sharded.123.partial").symlink_to("epoch3.sharded")
    assert start().names() == []


@contextmanager
def small_files() -> Iterator[None]:
    """No file can be longer than 100 bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_file_that_cannot_be_written_ends_the_run_in_one_sentence(
    start: Callable[..., Run], asynchronous: bool
) -> None:
    run = start(every_steps=1, asynchronous=asynchronous)
    run.step(1)
    run.saver.close()
    with (
        pytest.raises(
            TrainingError, match=r"cannot write a checkpoint into \S+ \(.*too large.*same command"
        ) as caught,
        small_files(),
    ):
        run.step(2)
        run.saver.close()
    assert "\n" not in str(caught.value)
    assert run.weight() == 1 and run.names() == ["epoch_1_1.pt", "epoch_latest.pt"]


def test_a_failed_file_is_a_notice_to_all_ranks(start: Callable[..., Run]) -> None:
    run = start(every_steps=2)
    with small_files():
        run.step(2)
        run.saver._writing._thread.join()
    assert run.saver.notices() == FAILED
    with pytest.raises(TrainingError, match="cannot write"):
        run.step(3)


def test_an_error_of_the_run_is_not_hidden_by_one_of_its_file(
    start: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    run = start(every_steps=1)
    with (
        pytest.raises(ValueError, match="^the run's$"),
        caplog.at_level(logging.ERROR),
        small_files(),
        run.saver,
    ):
        run.step(1)
        raise ValueError("the run's")
    assert "cannot write a checkpoint" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_stops(start: Callable[..., Run], number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as stop:
        run = start(stop=stop)
        run.step(1)
        os.kill(os.getpid(), number)
        assert run.saver.notices() == STOP
        with pytest.raises(
            Preempted, match=rf"stopped by {number.name} after step 2: saved in \S+epoch_latest.pt"
        ):
            run.step(2)
    assert run.weight() == 2 and run.names() == ["epoch_latest.pt"]
    assert signal.getsignal(number) is before


def test_the_farewell_says_which_command_goes_on(start: Callable[..., Run]) -> None:
    assert way_on(RunSettings()) == "the same command goes on from there"
    typed = RunSettings(resume="a.pt", reset_position=True)
    with StopSignals() as stop:
        run = start(stop=stop, way_on=way_on(typed))
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(
            Preempted, match=r"without --resume \(run.resume\) and --reset-data-offset goes on"
        ):
            run.step(1)


def test_rows_are_made_to_last_before_a_file_counts_on_them(start: Callable[..., Run]) -> None:
    run, files = start(every_steps=2), []
    run.saver.before_save = lambda: files.append(run.names())
    for step in (1, 2, 3):
        run.step(step)
    run.saver.close()
    assert files == [[], ["epoch_1_2.pt", "epoch_latest.pt"]]


def test_a_second_ctrl_c_aborts() -> None:
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received is signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_without_checkpoints_stops_and_says_so(start: Callable[..., Run]) -> None:
    with StopSignals() as stop:
        run = start(stop=stop, enabled=False, every_steps=1)
        os.kill(os.getpid(), signal.SIGTERM)
        # and asks nobody to start it again: from the beginning
        with pytest.raises(TrainingError, match="checkpoint.enabled is off, so nothing of it is kept"):
            run.step(1)
    assert run.names() == []


def folders(run: Run) -> dict[str, str]:
    """Name -> what it is or links to."""
    return {
        path.name: path.readlink().name if path.is_symlink() else "folder" for path in run.folder.iterdir()
    }


@pytest.mark.parametrize("asynchronous", [True, False])
def test_shards_are_folders_with_the_same_names(start: Callable[..., Run], asynchronous: bool) -> None:
    settings = {"every_steps": 2, "every_epochs": 2, "keep_last": 2, "best": "recall", "sharded": True}
    run = start(**settings, asynchronous=asynchronous)
    for step in range(1, 10):
        run.step(step, {"recall": float(step == 2)})
    run.saver.close()
    assert folders(run) == {
        # no longer among the newest two, but the best
        "epoch_1_2.sharded": "folder", "best.sharded": "epoch_1_2.sharded",
        "epoch_3_8.sharded": "folder",
        "epoch3.sharded": "folder", "epoch_latest.sharded": "epoch3.sharded",
    }  # fmt: skip
    again = start(**settings, asynchronous=asynchronous)
    saved = read_saved(again.folder / "epoch_latest.sharded")
    assert saved.position == Position(3, 9) and saved.origin["best"] == 1.0
    saved.load_training(again.state)
    again.saver.continue_from(saved)
    again.step(10, {"recall": 2.0})
    again.saver.close()
    assert folders(again) == {
        "epoch3.sharded": "folder", "epoch_4_10.sharded": "folder",
        "best.sharded": "epoch_4_10.sharded", "epoch_latest.sharded": "epoch_4_10.sharded",
    }  # fmt: skip


def test_a_save_without_a_name_is_the_latest_until_the_next(start: Callable[..., Run]) -> None:
    run = start(every_epochs=None, sharded=True)
    for step in range(1, 7):
        run.step(step)
    run.saver.close()
    assert folders(run) == {"latest_2_6.sharded": "folder", "epoch_latest.sharded": "latest_2_6.sharded"}


def test_shards_leave_no_whole_weights_to_write_beside(start: Callable[..., Run]) -> None:
    with pytest.raises(ConfigError, match="checkpoint.safetensors"):
        start(sharded=True, safetensors=True)
