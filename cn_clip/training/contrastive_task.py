"""Two towers under a loss of pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cn_clip.clip.model import CLIP
from cn_clip.data.batches import PairBatch
from cn_clip.losses.pair import PairLoss, SharedOptions
from cn_clip.parallel.precision import Precision
from cn_clip.parallel.ranks import Ranks
from cn_clip.parallel.rng import seeded, stable_seed
from cn_clip.parallel.wrap import ParallelModel, set_training_mode
from cn_clip.training.accumulation import Features, GlobalLoss, accumulate, global_loss
from cn_clip.training.task import StepReport

MAX_LOGIT_SCALE = 4.6052  # ln 100 (arXiv:2103.00020, section 2.5), rounded as the reference rounds it


class ContrastiveTask:
    """Trains a two-tower model on batches of pairs."""

    def __init__(
        self,
        model: ParallelModel[CLIP],
        pair_loss: PairLoss,
        loss_options: SharedOptions,
        precision: Precision,
        *,
        ranks: Ranks,
        mask_ratio: float,
        frozen: list[torch.nn.Module],
        seed: int,
    ) -> None:
        self.module = model.module
        self._model, self._pair_loss, self._options, self._precision = (
            model,
            pair_loss,
            loss_options,
            precision,
        )
        self._ranks, self._mask_ratio, self._frozen, self._seed = ranks, mask_ratio, frozen, seed

    def accumulate_gradients(self, batches: Sequence[PairBatch], step: int) -> StepReport:
        def encode(number: int) -> Features:
            batch = batches[number]
            # Numbered in the global batch, not in this rank: as many ranks with the same micro-batches see the same.
            seed = stable_seed(self._seed, step, number * self._ranks.world_size + self._ranks.rank)
            with seeded(seed, self._ranks.device), self._precision.autocast():
                image, text, scale = self._model(
                    batch.images_BCHW, batch.tokens_BL, mask_ratio=self._mask_ratio
                )
            return Features(image, text, scale)

        def loss_of(features: Sequence[Features]) -> GlobalLoss:
            return global_loss(self._pair_loss, features, batches, self._ranks, gather=self._options.gather)

        exact = self._options.gradient == "exact"
        found = accumulate(
            encode,
            len(batches),
            loss_of,
            self._model,
            self._precision,
            tower_share=1.0 if exact else 1 / self._ranks.world_size,
        )
        numbers = (found.loss, found.image_accuracy, found.text_accuracy, self.module.logit_scale.detach())
        return StepReport(
            *torch.stack([number.float() for number in numbers]).tolist()
        )  # one wait for the device

    def after_step(self) -> float:
        with torch.no_grad():
            self.module.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        return self.module.logit_scale.item()

    def train_mode(self) -> None:
        set_training_mode(self.module, self._frozen)
