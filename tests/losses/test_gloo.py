"""Every loss on real ranks over gloo: their shares add up to the dense form. One start for all cases."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cn_clip.losses.pair import PairGradients
from tests.losses import dense

WORKER = Path(__file__).with_name("gloo_worker.py")
ROOT = Path(__file__).resolve().parents[2]
NUM_RANKS = 3


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[PairGradients]]:
    """Of each case, what each rank returns."""
    folder = tmp_path_factory.mktemp("ranks")
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={NUM_RANKS}", "--"]
    done = subprocess.run(
        [sys.executable, *torchrun, str(WORKER), str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(NUM_RANKS)]
    return {case: [PairGradients(**rank[case]) for rank in ranks] for case in ranks[0]}


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("targets", dense.TARGETS)
def test_pair_losses(shares: dict[str, list[PairGradients]], targets: str, hard: bool) -> None:
    for kind, smoothing in (("contrastive", 0.0), ("contrastive", 0.2), ("sigmoid", 0.0)):
        batch = dense.Batch.make(hard=hard)
        contrastive = kind == "contrastive"
        loss = dense.contrastive(batch, targets, smoothing) if contrastive else dense.sigmoid(batch, targets)
        order = dense.column_order(NUM_RANKS, len(batch.text))
        found = shares[f"{kind} {targets} {smoothing} {hard}"]
        dense.assert_same_gradients(found, batch, loss, order)
        assert len({share.text_hits.item() for share in found}) == 1


def test_similarities(shares: dict[str, list[PairGradients]]) -> None:
    batch = dense.Batch.make(hard=False)
    loss = dense.similarity(batch, *dense.teacher())
    dense.assert_same_gradients(shares["similarity"], batch, loss, torch.arange(dense.NUM))
