"""When a run is saved, and as what; all ranks decide alike. Capturing stops the training, writing does not.

A notice is a bit that one rank raises and all see after the next step (`Task.accumulate_gradients` carries them): somebody
asked the run to stop, the main rank's clock says it is time, or its last file could not be written.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from types import TracebackType

from cn_clip.config.schema import Checkpoint
from cn_clip.errors import CnClipError, ConfigError, Preempted, TrainingError
from cn_clip.parallel import sharded_files
from cn_clip.parallel.gather import gather_objects
from cn_clip.parallel.ranks import Ranks
from cn_clip.training.checkpoints.background import Background
from cn_clip.training.checkpoints.best import better
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
        way_on: str = "the same command goes on from there",
    ) -> None:
        """`way_on`: what goes on from the latest file, said when the run has to end."""
        self._settings, self._state, self._plan, self._stage = settings, state, plan, stage
        self._stop, self._clock, self._way_on = stop, clock, way_on
        self.before_save: Callable[[], None] = lambda: None
        """Makes last what a run that goes on from the next file counts on (rows of steps)."""
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

    def continue_from(self, saved: SavedRun) -> None:
        """Take over which files of the run that `saved` is from are its own, and what was best, where it is this run.

        It knows all files that were there when it was written; those that were deleted next are deleted now, if a kill was
        quicker.
        """
        settings = saved.origin.get("settings", {}).get("checkpoint", {})
        is_this_run = saved.path.parent.resolve() == self._files.folder.resolve()
        if is_this_run:
            self._state.own_files = self._pruned(saved.own_files)
        if is_this_run and settings.get("best") == self._settings.best:
            self._state.best = saved.origin.get("best")

    def _pruned(self, own_files: list[str]) -> list[str]:
        """The names that are left when the main rank has deleted what is too much."""
        keep = self._settings.keep_last
        if self._settings.sharded:
            return self._folders.prune(own_files, keep) if self._ranks.is_main else own_files
        if keep is None:
            return own_files
        if self._ranks.is_main and self._settings.enabled:
            self._files.prune(own_files, keep)
        return own_files[-keep:]

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
        unvalidated: bool = False,
    ) -> None:
        """Save what is due after `step`. Collective.

        numbers: of the validation after this step, the same on every rank; None without one.
        notices: the bits of all ranks. Asked to stop, this saves and raises Preempted; TrainingError where nothing is saved.
        unvalidated: a validation was due, and is left to whoever goes on.
        """
        if notices & FAILED:
            self._wait()
        position = Position(epoch, step, self._stage, unvalidated)
        names = self._own_files_due(position, ends_epoch)
        by = self._settings.best
        if numbers is not None and by and (value := better(by, numbers, self._state.best)) is not None:
            self._state.best = value
            names.append(BEST)
        if names or ends_epoch or notices & (STOP | MINUTES):
            self._save(names, position)
        if notices & STOP:
            self._wait()
            raise self._farewell(step)

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

    def _save(self, names: list[str], position: Position) -> None:
        """Capture, and begin to write, under these names and as the latest; `best.pt` before the latest that knows of it."""
        if not self._settings.enabled:
            return
        self._wait()
        self.before_save()
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
        captured = self._state.capture(position)

        def write() -> None:
            if captured is not None:
                content = self._state.content(captured)
                self._files.write([*names, LATEST], content, position, safetensors=self._settings.safetensors)
            self._state.own_files = self._pruned(self._state.own_files)

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
            state.own_files = self._pruned(state.own_files)

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
            f"(checkpoint.keep_last deletes old files); the file before is whole: {self._way_on}"
        )

    def _farewell(self, step: int) -> CnClipError:
        asked = (
            self._stop.received.name
            if self._stop is not None and self._stop.received
            else "a signal to another rank"
        )
        if not self._settings.enabled:
            # no exit code that asks to be started again: it would begin anew each time
            return TrainingError(
                f"stopped by {asked} after step {step}: checkpoint.enabled is off, so nothing of it is kept; leave it on to go "
                "on from where a run was stopped"
            )
        latest = self._files.folder / (folder_name(LATEST) if self._settings.sharded else LATEST)
        return Preempted(f"stopped by {asked} after step {step}: saved in {latest}; {self._way_on}")

    def _finish_beside(self, error: Exception) -> None:
        """Finish the file that is being written, though the run ends for another reason."""
        try:
            self._writing.wait()
        except Exception as failure:
            logger.error("%s", self._sentence(failure))


def _check_sharded(settings: Checkpoint, state: RunState) -> None:
    if not settings.sharded:
        return
    sharded_files.check_engine(state.engine)
    if settings.safetensors:
        raise ConfigError(
            "checkpoint.safetensors writes whole weights, which checkpoint.sharded leaves in parts: unset one of them"
        )
