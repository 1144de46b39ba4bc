"""Steps whose loss or gradient is no number: skipped, written down, and a reason to stop when they do not end."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from cn_clip.data.batches import PairBatch
from cn_clip.errors import TrainingError
from cn_clip.training.row_file import RowFile

logger = logging.getLogger(__name__)


class BadSteps:
    """Judges the steps of one rank. Loss and norm are those of all ranks, so all ranks judge alike."""

    def __init__(self, limit: int, run_folder: Path, rank: int, *, first_step: int = 0) -> None:
        """
        limit: bad steps in a row that are skipped; one more ends the run.
        run_folder: where each rank writes `bad_steps.jsonl`, those but the main rank with their number in its name.
        first_step: steps done; what a killed run wrote of later ones is forgotten, they come again.
        """
        self._limit = limit
        self.path = run_folder / ("bad_steps.jsonl" if rank == 0 else f"bad_steps.{rank}.jsonl")
        # a run without bad steps has no such file
        self._rows = RowFile(self.path, first_step) if self.path.exists() else None
        steps = {row["step"] for row in self._rows.kept} if self._rows else set()
        self.in_a_row = next(n for n in range(len(steps) + 1) if first_step - n not in steps)

    def is_bad(
        self,
        step: int,
        loss: float,
        gradient_norm: float,
        batches: Sequence[PairBatch],
        *,
        scale: float = 1.0,
    ) -> bool:
        """Whether the step must change nothing; TrainingError for one too many in a row.

        scale: of the gradients when they were computed (fp16). They may overflow at a large one, which is then lowered:
        such a step is skipped too, but nothing is wrong with its pairs.
        """
        if math.isfinite(loss) and math.isfinite(gradient_norm):
            self.in_a_row = 0
            return False
        if math.isfinite(loss) and scale > 1:
            self.in_a_row = 0  # the loss is a number; and a run that goes on finds no row of this step
            logger.info("The gradients of step %d overflow at a scale of %g, which is lowered.", step, scale)
            return True
        self.in_a_row += 1
        self._write_down(step, loss, gradient_norm, batches)
        if self.in_a_row > self._limit:
            raise TrainingError(self._sentence(step, loss, gradient_norm))
        logger.warning(
            "Step %d is skipped: its loss is %s, the norm of its gradients %s; its pairs are in %s.",
            step,
            loss,
            gradient_norm,
            self.path,
        )
        return True

    def _sentence(self, step: int, loss: float, gradient_norm: float) -> str:
        which = (
            f"the loss of step {step} is {loss}"
            if not math.isfinite(loss)
            else f"the gradients of step {step} have the norm {gradient_norm}"
        )
        others = f", as in the {self._limit} steps before it" if self._limit else ""
        return (
            f"{which}{others}: the checkpoints hold the steps before; see the pairs in {self.path}, and go on with a "
            "lower optim.lr, a longer optim.warmup_steps, or train.precision=amp_bf16"
        )

    def _write_down(self, step: int, loss: float, gradient_norm: float, batches: Sequence[PairBatch]) -> None:
        row = {
            "step": step,
            "loss": _json_number(loss),
            "gradient_norm": _json_number(gradient_norm),
            "pairs": [pair for batch in batches for pair in batch.pair_ids_B.tolist()],
            "images": [image for batch in batches for image in batch.image_ids_B.tolist()],
            "texts": [text for batch in batches for text in batch.text_ids_B.tolist()],
        }
        self._rows = self._rows or RowFile(self.path, step)
        self._rows.write(row)


def _json_number(number: float) -> float | str:
    """JSON has no nan and no inf."""
    return number if math.isfinite(number) else str(number)
