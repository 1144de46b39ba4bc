"""Files of a run, counted before there are any."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from cn_clip.parallel.ranks import Ranks
from cn_clip.training.build import build_config
from cn_clip.training.diagnosis.output_folder import num_own_files
from cn_clip.training.stages import stages_of
from cn_clip.training.timeline import timeline_of
from tests.training.conftest import Train

RANKS = Ranks(0, 1, 0, torch.device("cpu"))


@pytest.mark.parametrize(("checkpoint", "expected"), [({"every_epochs": None}, 2), ({"every_steps": 2}, 6)])
def test_files_of_stages_are_counted_as_they_are_saved(
    train: Train, tiny_split: Path, tmp_path: Path, checkpoint: dict[str, int | None], expected: int
) -> None:
    """The end of each stage is a file, whatever else is due."""
    stages = [{"name": "a", "steps": 3}, {"name": "b", "epochs": 1}]
    settings = {
        "checkpoint": checkpoint,
        "stages": stages,
        "data": {"train": {"type": "lmdb_pairs", "path": str(tiny_split)}},
        "train": {"batch_size": 4},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    saved = train(f"--config={tmp_path / 'run.yaml'}") / "checkpoints"
    config = build_config(settings)
    legs = timeline_of(stages_of(config, build_config), RANKS)
    counted = sum(num_own_files(config, leg, done=0) for leg in legs)
    assert counted == expected == len({*saved.glob("epoch*.pt")} - {saved / "epoch_latest.pt"})
