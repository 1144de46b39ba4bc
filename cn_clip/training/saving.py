"""When a run is saved, and as what; all ranks decide alike. Capturing stops the training, writing does not.

A notice is a bit that one rank raises and all see after the next step (`Task.accumulate_gradients` carries them): somebody
asked the run to stop, the main rank's clock says it is time, or its last file could not be written.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from types import TracebackType

from cn_clip.config.schema import Checkpoint, TrainConfig
from cn_clip.errors import ConfigError, Preempted, TrainingError
from cn_clip.parallel.gather import gather_objects
from cn_clip.parallel.ranks import Ranks
from cn_clip.training.checkpoints.background import Background
from cn_clip.training.checkpoints.files import BEST, LATEST, CheckpointFiles, epoch_file, step_file
from cn_clip.training.checkpoints.folders import CheckpointFolders, folder_name
from cn_clip.training.checkpoints.position import Position
from cn_clip.training.checkpoints.saved import SavedRun
from cn_clip.training.checkpoints.saved_folder import save_folder
from cn_clip.training.checkpoints.state import RunState
from cn_clip.training.plan import Plan, is_due
from cn_clip.training.run_dir import RunDir
from cn_clip.training.stop_signals import StopSignals

logger = logging.getLogger(__name__)

STOP, MINUTES, FAILED = 1, 2, 4
"""Bits of a notice."""

SMALLER_IS_BETTER = ("loss", "rank")
"""Ends of the names of validation numbers that are best when smallest (`mean_rank`, `median_rank`); others when largest."""


class Saver:
    """Saves one stage of a run. Every rank has one and calls the same methods; the main rank's writes."""

    def __init__(
        self,
        settings: Checkpoint,
        state: RunState,
        run_dir: RunDir,
        plan: Plan,
        *,
        stage: int = 0,
        stop: StopSignals | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._state, self._plan, self._stage = settings, state, plan, stage
        self._stop, self._clock = stop, clock
        self._ranks: Ranks = state.engine.ranks
        _check_sharded(settings, state)
        self._files, self._folders = (
            CheckpointFiles(run_dir.checkpoints),
            CheckpointFolders(run_dir.checkpoints),
        )
        self._writing = Background()
        self._last_save = clock()
        if run_dir.writes:
            self._files.remove_partial()
            self._folders.remove_partial()

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif isinstance(error, Exception):  # not Ctrl-C: whoever aborts does not wait
            self._finish_beside(error)

    def own_files_of(self, saved: SavedRun) -> None:
        """Go on counting the files of the run that `saved` is from, where it is this one."""
        if saved.path.parent.resolve() == self._files.folder.resolve():
            self._state.own_files = saved.own_files

    def notices(self) -> int:
        """This rank's bits, for `after_step` of all."""
        asked = self._stop is not None and self._stop.received is not None
        minutes, main = self._settings.every_minutes, self._ranks.is_main and self._settings.enabled
        is_time = main and minutes is not None and self._clock() - self._last_save >= 60 * minutes
        return STOP * asked | MINUTES * is_time | FAILED * self._writing.has_failed

    def after_step(
        self,
        step: int,
        epoch: int,
        ends_epoch: bool,
        numbers: Mapping[str, float] | None = None,
        *,
        notices: int = 0,
    ) -> None:
        """Save what is due after `step`. Collective.

        numbers: of the validation after this step, the same on every rank; None without one.
        notices: the bits of all ranks. Asked to stop, this saves and raises Preempted.
        """
        if notices & FAILED:
            self._wait()
        position = Position(epoch, step, self._stage)
        names = self._own_files_due(position, ends_epoch)
        if numbers is not None and self._is_best(numbers):
            names.append(BEST)
        if names or ends_epoch or notices & (STOP | MINUTES):
            self._save(names, position)
        if notices & STOP:
            self._wait()
            raise Preempted(self._farewell(step))

    def save_now(self, position: Position) -> None:
        """Write `epoch_latest.pt` alone. Collective."""
        self._save([], position)

    def close(self) -> None:
        """Wait for the last file; TrainingError on every rank when it could not be written. Collective."""
        self._wait()

    def _own_files_due(self, position: Position, ends_epoch: bool) -> list[str]:
        settings, names = self._settings, []
        if is_due(position.step, settings.every_steps):
            names.append(step_file(position))
        is_last = position.epoch == self._plan.max_epochs
        if ends_epoch and (is_last or is_due(position.epoch, settings.every_epochs)):
            names.append(epoch_file(position))
        return names

    def _is_best(self, numbers: Mapping[str, float]) -> bool:
        name = self._settings.best
        if name is None:
            return False
        if name not in numbers:
            raise ConfigError(
                f"checkpoint.best is {name}, which no validation gives; choose from {', '.join(sorted(numbers))}"
            )
        value, best = numbers[name], self._state.best
        sign = -1 if name.endswith(SMALLER_IS_BETTER) else 1
        if not math.isfinite(value) or (best is not None and sign * value <= sign * best):
            return False
        self._state.best = value
        return True

    def _save(self, names: list[str], position: Position) -> None:
        """Capture, and begin to write, under these names and as the latest; `best.pt` before the latest that knows of it."""
        if not self._settings.enabled:
            return
        self._wait()
        own = [name for name in names if name != BEST]
        state = self._state
        state.own_files = [name for name in state.own_files if name not in own] + own
        job = (
            self._sharded_job(names, position) if self._settings.sharded else self._whole_job(names, position)
        )
        self._last_save = self._clock()
        if self._settings.asynchronous:
            self._writing.start(job)
        else:
            self._writing.run(job)
            self._wait()

    def _whole_job(self, names: list[str], position: Position) -> Callable[[], None]:
        """Capture; returns what is then left to do: nothing but on the main rank. Collective."""
        captured, own_files = self._state.capture(position), self._state.own_files
        keep = self._settings.keep_last
        if keep is not None:
            self._state.own_files = own_files[-keep:]

        def write() -> None:
            if captured is None:
                return
            content = self._state.content(captured)
            self._files.write([*names, LATEST], content, position, safetensors=self._settings.safetensors)
            if keep is not None:
                self._files.prune(own_files, keep)

        return write

    def _sharded_job(self, names: list[str], position: Position) -> Callable[[], None]:
        """Begin to write every rank's part; returns what is then left to do. Collective."""
        state, folders, started = self._state, self._folders, time.time()
        place = folders.place([name for name in names if name != BEST], position)
        pending = save_folder(place, state, position, asynchronous=self._settings.asynchronous)

        def finish() -> None:
            pending.wait()
            if state.engine.ranks.is_main:
                folders.publish(place, [*names, LATEST], position, started)
                state.own_files = folders.prune(state.own_files, self._settings.keep_last)

        return finish

    def _wait(self) -> None:
        """Until nothing is being written; an error of one rank is raised by all. Collective."""
        sentence = ""
        try:
            self._writing.wait()
        except Exception as error:
            sentence = self._sentence(error)
        of_ranks = gather_objects(sentence, self._ranks) if self._settings.enabled else []
        if any(of_ranks):
            raise TrainingError(next(filter(None, of_ranks)))

    def _sentence(self, error: Exception) -> str:
        if not isinstance(error, OSError):
            logger.error("The checkpoint could not be written.", exc_info=error)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        folder = self._files.folder
        return (
            f"cannot write a checkpoint into {folder} ({reason}): make room or give the right to write there "
            "(checkpoint.keep_last deletes old files), and run the same command again; it goes on from the file before"
        )

    def _farewell(self, step: int) -> str:
        asked = (
            self._stop.received.name
            if self._stop is not None and self._stop.received
            else "a signal to another rank"
        )
        if not self._settings.enabled:
            return (
                f"stopped by {asked} after step {step}; checkpoint.enabled is off, so nothing of it is kept"
            )
        latest = self._files.folder / (folder_name(LATEST) if self._settings.sharded else LATEST)
        return f"stopped by {asked} after step {step}: saved in {latest}; the same command goes on from there"

    def _finish_beside(self, error: Exception) -> None:
        """Finish the file that is being written, though the run ends for another reason."""
        try:
            self._writing.wait()
        except Exception as failure:
            logger.error("%s", self._sentence(failure))


def _check_sharded(settings: Checkpoint, state: RunState) -> None:
    if not settings.sharded:
        return
    engine = state.engine
    if not engine.saves_shards:
        raise ConfigError(
            f"checkpoint.sharded needs parallel.engine=ddp or fsdp: the parts of {engine.settings.engine} are DeepSpeed's own; "
            "set checkpoint.sharded=false"
        )
    if settings.safetensors:
        raise ConfigError(
            "checkpoint.safetensors writes whole weights, which checkpoint.sharded leaves in parts: unset one of them"
        )


def check_best(config: TrainConfig) -> None:
    """ConfigError where `checkpoint.best` names a number that no validation of this run could give."""
    name, sets = config.checkpoint.best, config.data.valid_sets
    if name is None:
        return
    validates = config.validate.every_steps is not None or config.validate.every_epochs is not None
    if not validates or (config.data.valid is None and not sets):
        raise ConfigError(
            f"checkpoint.best is {name}, but nothing is validated: set data.valid and validate.every_epochs, or leave it out"
        )
    of_set, slash, _ = name.rpartition("/")
    if slash and of_set not in sets:
        raise ConfigError(f"checkpoint.best is {name}, but data.valid_sets has {', '.join(sets) or 'no set'}")
    if not slash and config.data.valid is None:
        raise ConfigError(
            f"checkpoint.best is {name}, but data.valid is not set: say which set, as {next(iter(sets))}/{name}"
        )
