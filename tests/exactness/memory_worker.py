"""One rank of a step that runs out of memory. Words: output file, rank that has too little, micro-batches per rank, MiB left."""

from __future__ import annotations

import logging
import resource
import sys
from pathlib import Path

import torch
from gradients_worker import block, global_batch

from cn_clip.clip.model import build_model
from cn_clip.config.schema import Parallel
from cn_clip.errors import run_door
from cn_clip.losses.pair import contrastive
from cn_clip.parallel.precision import Precision
from cn_clip.parallel.ranks import start_ranks
from cn_clip.parallel.wrap import wrap
from cn_clip.training.contrastive_task import ContrastiveTask
from cn_clip.training.encoding import Encoding

IMAGE_PX = 384


def limit_memory(headroom_mib: int) -> None:
    """Leave this process so much above what it has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (headroom_mib << 20), resource.RLIM_INFINITY))


def main(output: str, short_rank: int, accumulate: int, headroom_mib: int) -> None:
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO)
    with start_ranks("cpu") as ranks:
        torch.manual_seed(0)
        model = build_model("tiny-vit", "tiny-bert", IMAGE_PX)
        engine = wrap(model, Parallel(), Precision("fp32", ranks.device), ranks)
        engine.set_optimizer(torch.optim.SGD(model.parameters()))
        options = contrastive.Options()
        whole = global_batch(IMAGE_PX)
        size = len(whole) // (accumulate * ranks.world_size)
        numbers = [a * ranks.world_size + ranks.rank for a in range(accumulate)]
        batches = [block(whole, number, size) for number in numbers]
        results = []
        for is_short in (False, True):
            if is_short and ranks.rank == short_rank:
                limit_memory(headroom_mib)
            task = ContrastiveTask(engine, contrastive.build(options), options, Encoding(seed=3))
            task.train_mode()
            engine.zero_grad()
            report = task.accumulate_gradients(batches, 1)
            gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
            results.append({"loss": report.loss, "gradients": gradients, "pieces": task.pieces})
        if ranks.is_main:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            torch.save(results, output)


if __name__ == "__main__":
    run_door(lambda: main(sys.argv[1], *map(int, sys.argv[2:])))
