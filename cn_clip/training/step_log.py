"""What a run says: the reference's log lines to the character, `metrics.jsonl`, TensorBoard, and a progress bar."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cn_clip.config.schema import Log
from cn_clip.data.sampler import EpochOrder
from cn_clip.files import write_atomically
from cn_clip.training.plan import Plan
from cn_clip.training.run_dir import RunDir
from cn_clip.training.task import StepReport
from cn_clip.training.validation import ValidationResult

logger = logging.getLogger(__name__)


class StepLog:
    """Reports of one rank; only the main rank writes more than log lines."""

    def __init__(self, settings: Log, run_dir: RunDir, plan: Plan, order: EpochOrder) -> None:
        self._plan, self._order, self._batch_accuracy = plan, order, settings.batch_accuracy
        first_step, writes = plan.first_step, run_dir.writes
        self._metrics = open_metrics(run_dir.metrics, first_step) if writes else None
        self._board = _board(run_dir.path, first_step) if settings.tensorboard and writes else None
        shown = writes and sys.stderr.isatty()
        self._bar = tqdm(
            total=plan.max_steps, initial=first_step, unit="step", disable=not shown, dynamic_ncols=True
        )

    def advance(self) -> None:
        self._bar.update()

    def train(
        self, step: int, report: StepReport, *, lr: float, data_seconds: float, step_seconds: float
    ) -> None:
        """`step` counts from 1."""
        epoch, per_epoch, num_pairs = (
            self._plan.epoch_of(step),
            self._plan.steps_per_epoch,
            self._order.global_batch,
        )
        done = (step - 1) % per_epoch + 1
        self._say(
            f"Global Steps: {step}/{self._plan.max_steps} | "
            f"Train Epoch: {epoch} [{done * num_pairs}/{self._order.num_padded} "
            f"({100.0 * done / per_epoch:.0f}%)] | "
            f"Loss: {report.loss:.6f} | "
            + (
                f"Image2Text Acc: {report.image_to_text_accuracy * 100:.2f} | "
                f"Text2Image Acc: {report.text_to_image_accuracy * 100:.2f} | "
                if self._batch_accuracy
                else ""
            )
            + f"Data Time: {data_seconds:.3f}s | "
            f"Batch Time: {step_seconds:.3f}s | "
            f"LR: {lr:5f} | "
            f"logit_scale: {report.logit_scale:.3f} | "
            f"Global Batch Size: {num_pairs}"
        )
        self._record(
            "train",
            step,
            epoch,
            loss=report.loss,
            image_to_text_accuracy=report.image_to_text_accuracy,
            text_to_image_accuracy=report.text_to_image_accuracy,
            lr=lr,
            logit_scale=report.logit_scale,
            pairs_per_second=num_pairs / step_seconds,
        )

    def begin_valid(self, step: int, epoch: int) -> None:
        self._say(f"Begin to eval on validation set (epoch {epoch} @ {step} steps)...")

    def valid(self, step: int, epoch: int, result: ValidationResult) -> None:
        """Said on every rank, as the reference does."""
        self._say(
            f"Validation Result (epoch {epoch} @ {step} steps) | "
            f"Valid Loss: {result.loss:.6f} | "
            f"Image2Text Acc: {result.image_to_text_accuracy * 100:.2f} | "
            f"Text2Image Acc: {result.text_to_image_accuracy * 100:.2f} | "
            f"logit_scale: {result.logit_scale:.3f} | "
            f"Valid Batch Size: {result.batch_size}"
        )
        self._record(
            "valid",
            step,
            epoch,
            loss=result.loss,
            image_to_text_accuracy=result.image_to_text_accuracy,
            text_to_image_accuracy=result.text_to_image_accuracy,
        )

    def close(self) -> None:
        self._bar.close()
        if self._metrics:
            self._metrics.close()
        if self._board:
            self._board.close()

    def _say(self, line: str) -> None:
        if not self._bar.disable:
            self._bar.clear()  # the line takes the bar's place; the next update draws the bar below it
        logger.info(line)

    def _record(self, kind: str, step: int, epoch: int, **numbers: float) -> None:
        if self._metrics:
            self._metrics.write(json.dumps({"kind": kind, "step": step, "epoch": epoch, **numbers}) + "\n")
            self._metrics.flush()
        if self._board:
            for name, number in numbers.items():
                self._board.add_scalar(f"{kind}/{name}", number, step)


@contextmanager
def step_log(settings: Log, run_dir: RunDir, plan: Plan, order: EpochOrder) -> Iterator[StepLog]:
    """A StepLog whose files and bar are closed at the end."""
    log = StepLog(settings, run_dir, plan, order)
    try:
        yield log
    finally:
        log.close()


def open_metrics(
    path: Path, first_step: int
) -> Any:  # Any: a text file; typing.TextIO has no atomic twin here
    """The metrics file open for appending, without rows after `first_step`: a resumed run says each step once."""
    if path.exists():
        kept = [
            line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= first_step
        ]
        write_atomically(path, "".join(line + "\n" for line in kept).encode())
    return path.open("a", encoding="utf-8")


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # the half-written last line of a killed run


def _board(path: Path, first_step: int) -> Any:  # Any: TensorBoard's writer, imported only when chosen
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(path / "tensorboard"), purge_step=first_step + 1)
