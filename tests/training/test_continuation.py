"""What is said of a run that goes on with other pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cn_clip.training.continuation import differences
from tests.training.conftest import Train


def origin(world_size: int = 2, **changes: Any) -> dict[str, Any]:
    settings: dict[str, dict[str, Any]] = {
        "run": {"seed": 123},
        "data": {
            "train": {"type": "lmdb_pairs", "path": "a"},
            "sampler": "shuffled",
            "epoch_end": "pad",
            "num_workers": 4,
        },
        "train": {"batch_size": 8, "accumulate": 1},
    }
    for path, value in changes.items():
        section, name = path.split("__")
        settings[section][name] = value
    return {"settings": settings, "world_size": world_size}


def test_the_same_run_cut_in_another_way_meets_the_same_pairs() -> None:
    assert differences(origin(), origin(), is_stream=False) == []
    assert differences(origin(), origin(4, train__batch_size=4), is_stream=False) == []
    assert differences(origin(), origin(1, train__accumulate=2, data__num_workers=1), is_stream=False) == []


def test_a_stream_depends_on_who_reads_it() -> None:
    changed = differences(origin(), origin(1, train__accumulate=2, data__num_workers=1), is_stream=True)
    assert changed == ["processes: 2 -> 1", "data.num_workers: 4 -> 1"]


def test_every_change_is_named() -> None:
    now = origin(run__seed=5, data__train={"type": "webdataset", "urls": ["b"]}, train__batch_size=16)
    assert differences(origin(), now, is_stream=False) == [
        "run.seed: 123 -> 5",
        "data.train.type: lmdb_pairs -> webdataset",
        "data.train.path: a -> None",
        "global batch: 16 -> 32",
        "data.train.urls: None -> ['b']",
    ]


def test_of_a_checkpoint_that_does_not_tell_nothing_is_said() -> None:
    assert differences({}, origin(), is_stream=True) == []
    assert differences({"settings": {}}, origin(), is_stream=True) == []


def test_a_run_says_it(train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train("--max-steps=2", "--skip-scheduler", name="first")
    train("--max-steps=4", name="first")
    assert "meets other pairs" not in caplog.text
    run = train("--max-steps=6", "--seed=7", name="first")
    logs = "".join(path.read_text(encoding="utf-8") for path in sorted(run.glob("out_*.log")))
    assert (
        "This run meets other pairs than would have followed in the checkpoint's: run.seed: 123 -> 7." in logs
    )
