"""What a run says: the reference's log lines to the character, `metrics.jsonl`, `suspects.jsonl`, boards, a progress bar.

Rows of `metrics.jsonl` have a `kind`: `plan` says what is trained on, from its step on; `train` is a logged step; `skipped`
one that changed nothing, since a number was not finite; `valid` a validation.
"""

from __future__ import annotations

import logging
import math
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from tqdm import tqdm

from cn_clip.config.schema import Log
from cn_clip.data.sampler import EpochOrder
from cn_clip.metrics.retrieval import DirectionScores, RetrievalScores
from cn_clip.training.boards import Board, open_boards
from cn_clip.training.plan import Plan
from cn_clip.training.row_file import Row, RowFile
from cn_clip.training.run_dir import RunDir
from cn_clip.training.task import StepReport
from cn_clip.training.validation import ValidationResult, ValidationResults

logger = logging.getLogger(__name__)

MEASURED = ("data_seconds", "step_seconds", "pairs_per_second", "elapsed_seconds", "peak_memory_mib")
"""Numbers of a `train` row that depend on the machine; all others are the same however a run was interrupted."""
MAX_SUSPECTS = 16
"""Suspected false negatives that a step may write, those with the largest margins above 0."""


class StepLog:
    """Reports of one rank; only the main rank writes more than log lines."""

    def __init__(self, settings: Log, run_dir: RunDir, plan: Plan, order: EpochOrder) -> None:
        self._batch_accuracy, self._writes = settings.batch_accuracy, run_dir.writes
        first_step = plan.first_step
        self._metrics = RowFile(run_dir.metrics, first_step) if self._writes else None
        self._suspects = RowFile(run_dir.suspects, first_step) if self._writes else None
        self._boards: list[Board] = open_boards(settings, run_dir, first_step) if self._writes else []
        kept = self._metrics.kept if self._metrics else []
        # a validation that was put off comes again where its row was the last thing a killed run did
        self._validated = {row["step"] for row in kept if row["kind"] == "valid"}
        self._num_skipped = sum(row["kind"] == "skipped" for row in kept)
        self._last_plan: Row = next((row for row in reversed(kept) if row["kind"] == "plan"), {})
        before = max((row.get("elapsed_seconds", 0.0) for row in kept), default=0.0)
        self._began = time.monotonic() - before
        shown = self._writes and sys.stderr.isatty()
        self._bar = tqdm(
            total=plan.max_steps, initial=first_step, unit="step", disable=not shown, dynamic_ncols=True
        )
        self.begin_stage(plan, order)

    def begin_stage(self, plan: Plan, order: EpochOrder) -> None:
        """What follows is a step of this plan; said in `metrics.jsonl` where it is news."""
        self._plan, self._order = plan, order
        row = {
            "num_pairs": order.num_pairs,
            "global_batch": order.global_batch,
            "steps_per_epoch": plan.steps_per_epoch,
            "last_step": plan.last_step,
        }
        if self._metrics and any(self._last_plan.get(name) != value for name, value in row.items()):
            self._last_plan = {"kind": "plan", "step": plan.first_step, "epoch": self._epochs_begun(), **row}
            self._metrics.write(self._last_plan)

    def advance(self) -> None:
        self._bar.update()

    def skipped(self, step: int) -> None:
        """The step changed nothing, since a number of it was not finite."""
        self._num_skipped += 1
        if self._metrics:
            self._metrics.write({"kind": "skipped", "step": step, "epoch": self._plan.epoch_of(step)})

    def train(
        self, step: int, report: StepReport, *, lr: float, data_seconds: float, step_seconds: float
    ) -> None:
        """`step` counts from 1; called on the main rank only."""
        plan, num_pairs = self._plan, self._order.global_batch
        epoch, done = plan.epoch_of(step), plan.done_in_epoch(step)
        self._say(
            f"Global Steps: {step}/{plan.max_steps} | "
            f"Train Epoch: {epoch} [{done * num_pairs}/{self._order.num_padded} "
            f"({100.0 * done / plan.steps_per_epoch:.0f}%)] | "
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
            gradient_norm=report.gradient_norm,
            skipped_steps=self._num_skipped,
            **report.numbers,
            data_seconds=data_seconds,
            step_seconds=step_seconds,
            pairs_per_second=num_pairs / step_seconds,
            elapsed_seconds=time.monotonic() - self._began,
            peak_memory_mib=_peak_memory_mib(),
        )
        self._record_suspects(step, report.suspects)

    def begin_valid(self, step: int, epoch: int) -> None:
        self._say(f"Begin to eval on validation set (epoch {epoch} @ {step} steps)...")

    def valid(self, step: int, epoch: int, results: ValidationResults) -> None:
        """In-batch lines on every rank, as the reference has them; recall on the main rank."""
        for name, result in results.of_set.items():
            where = (f" of {name}" if name else "") + f" (epoch {epoch} @ {step} steps)"
            self._say(_valid_line(where, result))
            if self._writes and result.retrieval is not None:
                self._say(_retrieval_line(where, result.retrieval))
        self._record("valid", step, epoch, **results.numbers())

    def sync(self) -> None:
        """Wait until the rows so far would survive a machine that dies: before a checkpoint that counts on them."""
        for file in (self._metrics, self._suspects):
            if file is not None:
                file.sync()

    def close(self) -> None:
        self._bar.close()
        for file in (self._metrics, self._suspects):
            if file is not None:
                file.close()
        for board in self._boards:
            board.close()

    def _epochs_begun(self) -> int:
        step = self._plan.first_step
        return self._plan.epoch_of(step + 1)

    def _say(self, line: str) -> None:
        if not self._bar.disable:
            self._bar.clear()  # the line takes the bar's place; the next update draws the bar below it
        logger.info(line)

    def _record(self, kind: str, step: int, epoch: int, **numbers: float) -> None:
        if self._metrics and not (kind == "valid" and step in self._validated):
            self._metrics.write({"kind": kind, "step": step, "epoch": epoch, **numbers})
        finite = {name: number for name, number in numbers.items() if math.isfinite(number)}
        for board in self._boards:
            board.show(kind, step, finite)

    def _record_suspects(self, step: int, suspects: Sequence[Row]) -> None:
        if self._suspects:
            beaten = [suspect for suspect in suspects if suspect["margin"] > 0]
            for suspect in sorted(beaten, key=lambda row: -row["margin"])[:MAX_SUSPECTS]:
                self._suspects.write({"step": step, **suspect})


@contextmanager
def step_log(settings: Log, run_dir: RunDir, plan: Plan, order: EpochOrder) -> Iterator[StepLog]:
    """A StepLog whose files and bar are closed at the end, when the main rank writes the summary of the run."""
    log = StepLog(settings, run_dir, plan, order)
    is_summed_up = settings.summary and run_dir.writes
    try:
        yield log
    except BaseException as error:
        is_summed_up &= isinstance(error, Exception)  # not Ctrl-C: whoever aborts does not wait
        raise
    finally:
        log.close()
        if is_summed_up:
            from cn_clip.training.summary import summarize_run

            summarize_run(run_dir.path)


def _valid_line(where: str, result: ValidationResult) -> str:
    return (
        f"Validation Result{where} | "
        f"Valid Loss: {result.loss:.6f} | "
        f"Image2Text Acc: {result.image_to_text_accuracy * 100:.2f} | "
        f"Text2Image Acc: {result.text_to_image_accuracy * 100:.2f} | "
        f"logit_scale: {result.logit_scale:.3f} | "
        f"Valid Batch Size: {result.batch_size}"
    )


def _retrieval_line(where: str, scores: RetrievalScores) -> str:
    def recalls(name: str, direction: DirectionScores) -> str:
        return "".join(f"{name} R@{k}: {share * 100:.2f} | " for k, share in direction.recall.items())

    return (
        f"Retrieval Result{where} | "
        + recalls("Text2Image", scores.text_to_image)
        + recalls("Image2Text", scores.image_to_text)
        + f"Mean Recall: {scores.mean_recall * 100:.2f} | "
        f"Images: {scores.image_to_text.num_queries} | "
        f"Texts: {scores.text_to_image.num_queries}"
    )


def _peak_memory_mib() -> float:
    """Most memory that this process has used so far: of its GPU where it uses one, else of the machine."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10  # getrusage(2): bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
