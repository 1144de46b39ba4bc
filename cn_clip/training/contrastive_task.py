"""Two towers under a loss of pairs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # the common base of BatchNorm2d and SyncBatchNorm

from cn_clip.clip.model import CLIP
from cn_clip.data.batches import PairBatch
from cn_clip.errors import DeviceError
from cn_clip.losses.pair import PairLoss, SharedOptions
from cn_clip.parallel.engines import Engine
from cn_clip.parallel.rng import seeded, stable_seed
from cn_clip.parallel.wrap import batch_statistics_only, set_training_mode
from cn_clip.training.accumulation import Accumulation
from cn_clip.training.distillation import Distillation
from cn_clip.training.encoding import Encoding, Inputs, Preparation
from cn_clip.training.global_batch import gather_ids
from cn_clip.training.global_loss import Features, GlobalLoss, global_loss
from cn_clip.training.out_of_memory import MicroBatchTooLargeError, free_memory, is_out_of_memory
from cn_clip.training.task import StepReport
from cn_clip.training.teachers import Taught

logger = logging.getLogger(__name__)

MAX_LOGIT_SCALE = 4.6052  # ln 100 (arXiv:2103.00020, section 2.5), rounded as the reference rounds it

LARGER = 1.1
"""Growth of the patches that are kept, as masks grow thin, from which on a micro-batch is tried out again."""


class ContrastiveTask:
    """Trains a two-tower model on batches of pairs."""

    def __init__(
        self,
        engine: Engine[CLIP],
        pair_loss: PairLoss,
        loss_options: SharedOptions,
        encoding: Encoding,
        *,
        frozen: Sequence[nn.Module] = (),
        distillation: Distillation | None = None,
    ) -> None:
        self.engine, self.module = engine, engine.module
        self._pair_loss, self._options, self._encoding = pair_loss, loss_options, encoding
        self._frozen, self._ranks, self._distillation = frozen, engine.ranks, distillation
        self.pieces = 1
        """What each micro-batch of the loader is cut into; only memory decides."""
        self._preparation = Preparation(engine.module, encoding)
        self._tried_kept = 0.0
        """Share of the patches that a micro-batch of this size has gone through forward and backward with."""

    def accumulate_gradients(
        self, batches: Sequence[PairBatch], step: int, *, notices: int = 0, diagnose: bool = False
    ) -> StepReport:
        survives = self._encoding.survives_shortage
        statistics = _copied(_statistics(self.module)) if survives else {}
        while True:
            parts = [part for batch in batches for part in self._cut(batch)]
            try:
                report = self._report(self._attempt(parts, step, notices=notices, diagnose=diagnose))
                return report.with_numbers(mask_ratio=self._encoding.mask_ratio(step)) if diagnose else report
            except MicroBatchTooLargeError:
                largest = max(len(part) for part in parts)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise DeviceError(
                    f"memory ran out at step {step}: lower train.batch_size and raise train.accumulate as much, which changes "
                    "nothing else, or set model.recompute=true; the same command then goes on from the latest checkpoint"
                ) from error
            self._halve(largest, step)
            _restore(_statistics(self.module), statistics)

    def _cut(self, batch: PairBatch) -> list[PairBatch]:
        if self.pieces == 1:
            return [batch]
        sizes = [len(rows) for rows in batch.positions_B.tensor_split(self.pieces) if len(rows)]
        return batch.split(sizes, self.module.bert.pad_id)

    def _halve(self, largest: int, step: int) -> None:
        if largest == 1:
            raise DeviceError(
                f"memory ran out at step {step} with one pair at a time: set model.recompute=true, a smaller model.image_px "
                "or data.context_length, or parallel.engine=fsdp on several devices"
            )
        self.engine.zero_grad()
        free_memory()
        self.pieces *= 2
        self._tried_kept = 0.0
        logger.warning(
            "Memory ran out at step %d: micro-batches are cut to %d pairs, the same step is repeated. It gives %s; to spare "
            "the attempt next time, lower train.batch_size and raise train.accumulate.",
            step,
            -(-largest // 2),
            "the same gradients"
            if self._is_exact
            else "gradients of smaller micro-batches, which BatchNorm and randomness "
            "by micro-batch depend on",
        )

    @property
    def _is_exact(self) -> bool:
        """Whether how a batch is cut changes nothing."""
        norms = (module for module in self.module.modules() if isinstance(module, _BatchNorm))
        return self._encoding.keyed and not any(norm.training for norm in norms)

    def _rehearse(self, part: PairBatch, step: int) -> None:
        """Forward and backward of one micro-batch with captions as long as any, so that no rank runs short later, where the
        others wait for it. Once for each size, and again where clearly more patches are kept; all ranks alike."""
        kept = 1 - self._encoding.mask_ratio(step)
        is_larger = kept >= LARGER * self._tried_kept or kept == 1 > self._tried_kept
        if not self._shares_shortage or not is_larger:
            return
        accumulation = Accumulation(engine=self.engine, sizes=[len(part)])
        passes = _Passes(self, [self._preparation.longest(part)], step)
        with self.engine.without_sync(), batch_statistics_only(self.module):
            accumulation.rehearse(passes.encode)
        self.engine.zero_grad()
        self._tried_kept = kept

    @property
    def _shares_shortage(self) -> bool:
        return self._encoding.survives_shortage and self._ranks.world_size > 1

    def _attempt(self, parts: Sequence[PairBatch], step: int, *, notices: int, diagnose: bool) -> GlobalLoss:
        self._rehearse(parts[0], step)
        gather, passes = self._options.gather, _Passes(self, parts, step)

        def loss_of(features: Sequence[Features] | None) -> GlobalLoss:
            gathered = gather_ids(
                parts, self._ranks, gather=gather, notices=notices, is_short=features is None
            )
            assert features is not None  # else `gather_ids` has raised
            return global_loss(
                self._pair_loss,
                features,
                gathered,
                self._ranks,
                gather=gather,
                diagnose=diagnose,
                teacher_weight=0.0 if self._distillation is None else self._distillation.settings.weight,
            )

        accumulation = Accumulation(
            engine=self.engine,
            sizes=[len(part) for part in parts],
            tower_share=1.0 if self._options.gradient == "exact" else 1 / self._ranks.world_size,
            survives_shortage=self._encoding.survives_shortage,
        )
        return accumulation.run(passes.encode, loss_of)

    def _report(self, found: GlobalLoss) -> StepReport:
        numbers = {
            "loss": found.loss,
            "image_to_text_accuracy": found.image_accuracy,
            "text_to_image_accuracy": found.text_accuracy,
            "logit_scale": self.module.logit_scale.detach().reshape(()),
        }
        # one wait for the device
        values = torch.stack(
            [number.float() for number in (*numbers.values(), *found.numbers.values())]
        ).tolist()
        named = dict(zip((*numbers, *found.numbers), values, strict=True))
        return StepReport(
            **{name: named.pop(name) for name in numbers},
            notices=found.notices,
            numbers=named,
            suspects=found.suspects,
        )

    def after_step(self) -> float:
        return self.engine.clamp("logit_scale", 0, MAX_LOGIT_SCALE)

    def train_mode(self) -> None:
        set_training_mode(self.module, self._frozen)
        self._preparation.train_mode()


class _Passes:
    """The forward passes over the micro-batches of one step; what both passes over one have in common is found once."""

    def __init__(self, task: ContrastiveTask, parts: Sequence[PairBatch], step: int) -> None:
        self._task, self._parts, self._step = task, parts, step
        self._inputs: dict[int, Inputs] = {}
        self._taught: dict[int, Taught] = {}

    def encode(self, number: int) -> Features:
        """Features of a micro-batch; a second time they are the same."""
        task, engine = self._task, self._task.engine
        if number not in self._inputs:
            self._inputs[number] = task._preparation.inputs(self._parts[number], self._step)
        inputs = self._inputs[number]
        with seeded(self._seed(number), engine.ranks.device), engine.precision.autocast():
            said = engine(inputs.images, inputs.tokens, **inputs.options)
        image, text, scale, *further = said
        features = Features(image, text, scale, further[0] if further else None)
        if task._distillation is None:
            return features
        return self._with_taught(
            features, further[1] if len(further) > 1 else None, number, task._distillation
        )

    def _seed(self, number: int) -> int:
        """Numbered in the global batch, not in this rank: as many ranks with the same micro-batches see the same."""
        task, ranks = self._task, self._task.engine.ranks
        batch, piece = divmod(number, task.pieces)
        place = (batch * ranks.world_size + ranks.rank) * task.pieces + piece
        return stable_seed(task._encoding.seed, self._step, place)

    def _with_taught(
        self, features: Features, projected_mF: Tensor | None, number: int, distillation: Distillation
    ) -> Features:
        """With what a teacher adds for the same pairs."""
        if number not in self._taught:
            with torch.no_grad(), self._task.engine.precision.autocast():
                self._taught[number] = distillation.taught(self._parts[number])
        taught = self._taught[number]
        if distillation.compares_similarities:
            return replace(features, taught=taught)
        num_pairs = sum(map(len, self._parts)) * self._task.engine.ranks.world_size
        compared = features.image if projected_mF is None else projected_mF
        return replace(features, own_loss=distillation.own_loss(compared, taught, num_pairs))


def _statistics(model: nn.Module) -> dict[str, Tensor]:
    """What a forward pass in training mode changes."""
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    return {f"{name}.{own}": buffer for name, norm in norms.items() for own, buffer in norm.named_buffers()}


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _restore(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        tensor.copy_(values[name])
