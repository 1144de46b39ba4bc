"""Whether the files that a run starts from are there and fit its model, which is not built for it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cn_clip.clip.model import CLIP
from cn_clip.clip.presets import image_preset, text_preset
from cn_clip.clip.weights import load_image_tower, load_text_tower, state_for_run
from cn_clip.config.schema import TrainConfig
from cn_clip.errors import WeightsError
from cn_clip.training.build import initialise
from cn_clip.training.checkpoints import SavedRun
from cn_clip.training.checkpoints.saved_file import SavedFile
from cn_clip.training.optimizer import build_optimizer


def check_weights(model: CLIP, config: TrainConfig, saved: SavedRun | None) -> list[Path]:
    """Files that were read, whose weights all fit `model` (of the meta device); WeightsError for the first that does not."""
    settings = config.model
    image, text = image_preset(settings.image), text_preset(settings.text)
    with _copying_nothing():
        read = [
            _loaded(load_image_tower, model, path) for path in (image.weights, settings.image_weights) if path
        ]
        read += [
            _loaded(load_text_tower, model, path) for path in (text.weights, settings.text_weights) if path
        ]
        if saved is not None:
            saved.load_weights(model)
            read.append(saved.path)
        elif settings.init_from is not None:
            initialise(model, settings.init_from)
            read.append(Path(settings.init_from))
    return read


def _loaded(load: object, model: CLIP, path: str | Path) -> Path:
    assert callable(load)
    load(model, path)
    return Path(path)


def check_training_state(model: CLIP, config: TrainConfig, saved: SavedRun) -> None:
    """WeightsError where the optimizer state of a checkpoint file is missing or another optimizer's."""
    if not isinstance(saved, SavedFile):
        return  # a folder of shards is read by the engine that wrote it
    if "optimizer" not in saved.checkpoint:
        raise WeightsError(
            f"{saved.path} has no optimizer state: add --reset-optimizer (run.reset_optimizer=true), or start from "
            "its weights with model.init_from"
        )
    optimizer = build_optimizer(model, config.optim)
    state_for_run(saved.checkpoint["optimizer"], optimizer.param_groups, model)


@contextmanager
def _copying_nothing() -> Iterator[None]:
    """torch warns of each weight that is copied into a tensor without memory, which is what is wanted here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*meta parameter.*")
        yield
