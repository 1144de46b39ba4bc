"""A checkpoint in one file, ours or the reference's, read again."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from cn_clip.clip.lora import is_adapter, merged
from cn_clip.clip.model import CLIP
from cn_clip.clip.weights import Checkpoint, load_into, model_weights, state_for_run
from cn_clip.clip.weights.layouts import resize_pos_embed
from cn_clip.clip.weights.optimizer import check_layout
from cn_clip.errors import WeightsError
from cn_clip.training.checkpoints.content import own_weights
from cn_clip.training.checkpoints.saved import SavedRun, load_live, warn_of_settings
from cn_clip.training.checkpoints.state import RunState

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedFile(SavedRun):
    checkpoint: Checkpoint

    def load_weights(self, model: CLIP) -> None:
        live = own_weights(self.checkpoint, "live")
        # those for use are averages where a run has them: what went on learning is in the live ones
        weights = model_weights(self.checkpoint) if live is None else merged(live)
        load_into(model, weights, where=str(self.path))
        if live is not None and not any(map(is_adapter, live)):
            load_live(model, live, self.path)

    def load_adapters(self, model: CLIP) -> None:
        live = own_weights(self.checkpoint, "live")
        if live is not None and any(map(is_adapter, live)):
            load_live(model, live, self.path)

    def load_training(self, state: RunState, *, keep_settings: bool = False) -> None:
        if "optimizer" not in self.checkpoint:
            raise WeightsError(
                f"{self.path} has no optimizer state: add --reset-optimizer (run.reset_optimizer=true), or start from "
                "its weights with model.init_from"
            )
        engine = state.engine
        check_layout(self.checkpoint["optimizer"], str(self.path))
        found = state_for_run(
            self.checkpoint["optimizer"],
            engine.optimizer.param_groups,
            engine.module,
            engine.shapes(),
            keep_settings=keep_settings,
        )
        if not keep_settings:
            warn_of_settings(found, engine, self.path)
        engine.load_optimizer_state(found)
        engine.precision.load_state_dict(self.checkpoint.get("scaler", {}))
        logger.info("=> optimizer state is restored from the checkpoint")
        average = own_weights(self.checkpoint, "average")
        if state.average is not None and average is not None:
            resize_pos_embed(average, engine.module)
            state.average.load(average, self.origin["num_updates"])
