"""The folders of sharded checkpoints in a run's `checkpoints/`: one folder a save, other names are links to it."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from cn_clip.files import atomic_path
from cn_clip.training.checkpoints.files import OWN_FILE
from cn_clip.training.checkpoints.position import Position

logger = logging.getLogger(__name__)

ENDING = ".sharded"
UNNAMED = "latest_"
"""Begins the folder of a save that has no name for its epoch or step."""


def folder_name(file_name: str) -> str:
    """`epoch1.pt` -> `epoch1.sharded`."""
    return file_name.removesuffix(".pt") + ENDING


class CheckpointFolders:
    """Names in one run's `checkpoints/`; as in `CheckpointFiles`, file names end in `.pt`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def remove_partial(self) -> None:
        """Clear away what a killed run was writing; what it was replacing stays, it may be the only one."""
        for partial in self.folder.glob(f".*{ENDING}.partial"):
            shutil.rmtree(partial, ignore_errors=True)

    def bring_back(self) -> None:
        """Put back a folder of which a killed run had moved the old one away and the new one not yet into its place.

        Names that link to it would else point to nothing, and the run would begin anew.
        """
        for old in self.folder.glob(f".*{ENDING}.old"):
            place = self.folder / old.name.removeprefix(".").removesuffix(".old")
            if not place.exists():
                old.rename(place)

    def place(self, own: Sequence[str], position: Position) -> Path:
        """The folder to write to, for a save under these names for its epoch and step."""
        name = folder_name(own[0]) if own else f"{UNNAMED}{position.epoch}_{position.step}{ENDING}"
        return self.folder / name

    def publish(self, place: Path, names: Iterable[str], position: Position, started: float) -> None:
        """Give a folder that is complete its other names, in this order."""
        for name in dict.fromkeys([place.name, *map(folder_name, names)]):
            if name != place.name:
                with atomic_path(self.folder / name) as partial:
                    os.symlink(place.name, partial)
            logger.info(
                "Saved checkpoint %s (epoch %d @ %d steps) (writing took %s seconds)",
                self.folder / name,
                position.epoch,
                position.step,
                time.time() - started,
            )

    def prune(self, own_files: Sequence[str], keep: int | None) -> list[str]:
        """Delete all but the newest `keep` of these of this run, and saves without a name; returns the names left.

        A folder that another name stands for stays until that name is given to another.
        """
        gone = [] if keep is None else [name for name in own_files[:-keep] if OWN_FILE.fullmatch(name)]
        links = [self.folder / folder_name(name) for name in gone]
        for link in links:
            if link.is_symlink():
                link.unlink()
        in_use = {path.resolve() for path in self.folder.iterdir() if path.is_symlink()}
        for path in [*links, *self.folder.glob(f"{UNNAMED}*{ENDING}")]:
            if path.is_dir() and not path.is_symlink() and path.resolve() not in in_use:
                shutil.rmtree(path)
        return [name for name in own_files if name not in gone or (self.folder / folder_name(name)).exists()]
