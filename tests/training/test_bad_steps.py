"""Steps whose loss or gradient is no number."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import socket
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from cn_clip.data.batches import PairBatch
from cn_clip.errors import TrainingError
from cn_clip.parallel.ranks import start_ranks
from cn_clip.training.bad_steps import BadSteps
from cn_clip.training.stage_run import StageRun


def batch(first: int) -> PairBatch:
    ids = torch.arange(first, first + 2)
    return PairBatch(
        torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, dtype=torch.long),
        image_ids_B=ids + 100, text_ids_B=ids + 200, caption_keys_B=ids, pair_ids_B=ids, positions_B=ids,
    )  # fmt: skip


def rows(steps: BadSteps) -> list[dict[str, object]]:
    return [json.loads(line) for line in steps.path.read_text().splitlines()]


def test_good_steps_leave_no_file(tmp_path: Path) -> None:
    steps = BadSteps(0, tmp_path, rank=0)
    assert not steps.is_bad(1, 0.5, 2.0, [batch(0)])
    assert list(tmp_path.iterdir()) == []


def test_a_bad_step_is_written_down_with_its_pairs(tmp_path: Path) -> None:
    steps = BadSteps(3, tmp_path, rank=0)
    assert steps.is_bad(4, math.nan, 1.0, [batch(0), batch(7)])
    (row,) = rows(steps)
    assert row == {
        "step": 4, "loss": "nan", "gradient_norm": 1.0,
        "pairs": [0, 1, 7, 8], "images": [100, 101, 107, 108], "texts": [200, 201, 207, 208],
    }  # fmt: skip


def test_one_too_many_in_a_row_ends_the_run(tmp_path: Path) -> None:
    steps = BadSteps(2, tmp_path, rank=0)
    for step, norm in ((1, math.inf), (2, math.inf), (3, 1.0), (4, math.inf), (5, math.inf)):
        assert steps.is_bad(step, 0.5, norm, [batch(0)]) == (norm != 1.0)
    with pytest.raises(
        TrainingError, match=r"the gradients of step 6 have the norm inf, as in the 2 steps before.*lower"
    ):
        steps.is_bad(6, 0.5, math.inf, [batch(0)])
    assert [row["step"] for row in rows(steps)] == [1, 2, 4, 5, 6]


def test_without_a_limit_the_first_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"the loss of step 1 is nan: .*bad_steps\.1\.jsonl.*lower optim\.lr"
    ):
        BadSteps(0, tmp_path, rank=1).is_bad(1, math.nan, 1.0, [batch(0)])


def test_an_overflow_of_fp16_is_not_the_pairs_fault(tmp_path: Path) -> None:
    steps = BadSteps(0, tmp_path, rank=0)
    for step in range(16):
        assert steps.is_bad(step, 0.5, math.inf, [batch(0)], scale=2.0 ** (16 - step))
    with pytest.raises(TrainingError):
        steps.is_bad(16, 0.5, math.inf, [batch(0)], scale=1.0)


def test_an_overflow_ends_a_row_of_bad_steps_also_for_a_run_that_goes_on(tmp_path: Path) -> None:
    steps = BadSteps(3, tmp_path, rank=0)
    for step, loss, scale in ((1, math.nan, 1.0), (2, 0.5, 4.0), (3, math.nan, 1.0)):
        assert steps.is_bad(step, loss, math.inf, [batch(0)], scale=scale)
    assert steps.in_a_row == BadSteps(3, tmp_path, rank=0, first_step=3).in_a_row == 1


def test_a_run_that_goes_on_counts_on_and_says_each_step_once(tmp_path: Path) -> None:
    first = BadSteps(3, tmp_path, rank=0)
    for step in range(1, 7):
        first.is_bad(step, math.nan if step in (1, 4, 5, 6) else 0.5, 1.0, [batch(step)])
    again = BadSteps(3, tmp_path, rank=0, first_step=5)
    assert [row["step"] for row in rows(again)] == [1, 4, 5] and again.in_a_row == 2
    assert again.is_bad(6, math.nan, 1.0, [batch(6)])
    with pytest.raises(TrainingError):
        again.is_bad(7, math.nan, 1.0, [batch(7)])
    assert BadSteps(3, tmp_path, rank=0, first_step=3).in_a_row == 0


def count_as_one_rank(rank: int, port: int, machine: Path, counts: SimpleQueue[tuple[int, int]]) -> None:
    """The bad steps in a row that one rank of two begins with, whose run folder is on a machine of its own."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with start_ranks("cpu") as ranks:
        stage = SimpleNamespace(config=SimpleNamespace(train=SimpleNamespace(max_bad_steps=3)))
        run = SimpleNamespace(
            context=SimpleNamespace(ranks=ranks, run_dir=SimpleNamespace(path=machine)),
            leg=SimpleNamespace(stage=stage, plan=SimpleNamespace(first_step=2)),
        )
        counts.put((rank, StageRun._bad_steps(cast(StageRun, run)).in_a_row))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="imports once")
def test_all_ranks_count_on_from_the_main_rank_s_file(tmp_path: Path) -> None:
    """Else one would end the run at a step that the others skip."""
    fork, machines = multiprocessing.get_context("fork"), [tmp_path / "first", tmp_path / "second"]
    for machine in machines:
        machine.mkdir()
    steps = BadSteps(3, machines[0], rank=0)
    for step in (1, 2):
        steps.is_bad(step, math.nan, 1.0, [batch(step)])
    counts = fork.SimpleQueue()
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    ranks = [
        fork.Process(target=count_as_one_rank, args=(rank, port, machine, counts), daemon=True)
        for rank, machine in enumerate(machines)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [0, 0]
    assert sorted(counts.get() for _ in ranks) == [(0, 2), (1, 2)]
