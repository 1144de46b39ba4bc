"""Where people watch a run beside its log: TensorBoard and Weights & Biases. Each package is imported when it is chosen."""

from __future__ import annotations

import importlib.util
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from cn_clip.config.schema import Log
from cn_clip.errors import ConfigError
from cn_clip.files import write_atomically
from cn_clip.training.run_dir import RunDir

WANDB_ID = "wandb_id.txt"
"""File of the run folder that holds the id of its Weights & Biases run."""


class Board(Protocol):
    def show(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        """Add a point to the curve `kind/name` of each number."""
        ...

    def close(self) -> None: ...


def open_boards(settings: Log, run_dir: RunDir, first_step: int) -> list[Board]:
    """The boards that the settings ask for, going on after `first_step`; ConfigError for one that cannot be had."""
    check_boards(settings)
    boards: list[Board] = []
    if settings.tensorboard:
        boards.append(_TensorBoard(run_dir, first_step))
    if settings.wandb is not None:
        boards.append(_WeightsAndBiases(settings.wandb, run_dir, first_step))
    return boards


def check_boards(settings: Log) -> None:
    """ConfigError for a board whose package is missing."""
    if settings.wandb is None:
        return
    found = importlib.util.find_spec("wandb")
    # one without a file is a folder `wandb` beside the program, as wandb itself makes them
    if found is None or found.origin is None:
        raise ConfigError(
            f"log.wandb is {settings.wandb}, but the package wandb is not installed: pip install wandb, or leave log.wandb out"
        )


class _TensorBoard:
    def __init__(self, run_dir: RunDir, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # points after `first_step` that a killed run left are hidden: their steps come again
        self._writer = SummaryWriter(str(run_dir.path / "tensorboard"), purge_step=first_step + 1)
        settings = _settings_text(run_dir.resolved)
        self._writer.add_text("settings", f"```yaml\n{settings}\n```", first_step)

    def show(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        for name, number in numbers.items():
            self._writer.add_scalar(f"{kind}/{name}", number, step)

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    def __init__(self, project: str, run_dir: RunDir, first_step: int) -> None:
        import wandb
        import yaml

        try:
            self._run: Any = wandb.init(  # Any: wandb's own class, which comes with the package only
                project=project,
                id=_wandb_id(run_dir.path, first_step),
                name=run_dir.path.name,
                dir=str(run_dir.path),
                config=yaml.safe_load(_settings_text(run_dir.resolved)) or {},
                resume="allow",
                settings=wandb.Settings(console="off"),
            )
        except wandb.errors.Error as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(
                f"log.wandb is {project}, but Weights & Biases cannot start ({reason}): log in with `wandb login`, keep the "
                "run here with WANDB_MODE=offline, or leave log.wandb out"
            ) from error
        # a step of ours on the axis: wandb's own count would refuse the steps that a run comes to again
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def show(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({f"{kind}/{name}": number for name, number in numbers.items()} | {"step": step})

    def close(self) -> None:
        self._run.finish()


def _wandb_id(folder: Path, first_step: int) -> str:
    """The id of the folder's run; a new one where a run begins."""
    path = folder / WANDB_ID
    if first_step == 0 or not path.is_file():
        write_atomically(path, f"{os.environ.get('WANDB_RUN_ID') or secrets.token_hex(4)}\n".encode())
    return path.read_text(encoding="utf-8").strip()


def _settings_text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
