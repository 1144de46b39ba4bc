"""The files of a run's `checkpoints/`: names, one content under several of them, and which are deleted again."""

from __future__ import annotations

import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from cn_clip.clip.weights import Checkpoint, Weights
from cn_clip.files import atomic_path, write_atomically
from cn_clip.training.checkpoints.position import Position

logger = logging.getLogger(__name__)

LATEST, BEST = "epoch_latest.pt", "best.pt"
OWN_FILE = re.compile(r"epoch(\d+|_\d+_\d+)\.pt")
"""Files of an epoch or a step: the only ones that are ever deleted."""


def epoch_file(position: Position) -> str:
    return f"epoch{position.epoch}.pt"


def step_file(position: Position) -> str:
    return f"epoch_{position.epoch}_{position.step}.pt"


class CheckpointFiles:
    """Writes into one folder; no reader ever sees half a file, and a power cut leaves the file before or the new one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def remove_partial(self) -> None:
        """Clear away what a killed run was writing; nobody else writes here."""
        for partial in self.folder.glob(".*.partial"):
            if partial.is_file() or partial.is_symlink():
                partial.unlink(missing_ok=True)

    def write(
        self, names: Sequence[str], content: Checkpoint, position: Position, *, safetensors: bool
    ) -> None:
        """Write a checkpoint under the first name and link it to the others, in this order."""
        first = self.folder / names[0]
        for name in names:
            started = time.time()
            path = self.folder / name
            if path == first:
                # through an open file, which tells a full disk by its number; torch's own writer does not
                write_atomically(path, lambda file: torch.save(content, file))
            else:
                link(first, path)
            logger.info(
                "Saved checkpoint %s (epoch %d @ %d steps) (writing took %s seconds)",
                path,
                position.epoch,
                position.step,
                time.time() - started,
            )
        if safetensors:
            self._write_safetensors(names, content["state_dict"])
        _sync_folder(self.folder)

    def _write_safetensors(self, names: Sequence[str], weights: Weights) -> None:
        from safetensors.torch import save_file

        plain = {name.removeprefix("module."): tensor.contiguous() for name, tensor in weights.items()}
        paths = [(self.folder / name).with_suffix(".safetensors") for name in names]
        with atomic_path(paths[0]) as partial:
            save_file(plain, partial, metadata={"format": "pt"})
            # safetensors makes files that only their owner may read
            partial.chmod(stat.S_IMODE((self.folder / names[0]).stat().st_mode))
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        for path in paths[1:]:
            link(paths[0], path)

    def prune(self, names: Sequence[str], keep: int) -> None:
        """Delete all but the newest `keep` of these files of this run, oldest first."""
        for name in names[:-keep]:
            if OWN_FILE.fullmatch(name):
                (self.folder / name).unlink(missing_ok=True)
                (self.folder / name).with_suffix(".safetensors").unlink(missing_ok=True)


def link(source: Path, target: Path) -> None:
    """Give a file a second name; a file system without links gets a copy."""
    with atomic_path(target) as partial:
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)


def _sync_folder(folder: Path) -> None:
    """Make the new names last: a power cut may otherwise undo a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
