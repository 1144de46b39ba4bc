"""One rank of a step that counts how often parameter gradients meet. Words: output file, micro-batches per rank.

Started by torchrun; the folder of this file is on `sys.path`.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from gradients_worker import NUM_PAIRS, block, global_batch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from cn_clip.clip.model import build_model
from cn_clip.config.schema import Parallel
from cn_clip.losses.pair import contrastive
from cn_clip.parallel.engines.ddp import CopiesEngine
from cn_clip.parallel.precision import Precision
from cn_clip.parallel.ranks import start_ranks
from cn_clip.training.contrastive_task import ContrastiveTask, Encoding


def main(output: str, accumulate: int) -> None:
    torch.set_num_threads(1)
    with start_ranks("cpu") as ranks:
        torch.manual_seed(0)
        model = build_model("tiny-vit", "tiny-bert")
        engine = CopiesEngine(model, Parallel(), Precision("fp32", ranks.device), ranks)
        engine.set_optimizer(torch.optim.SGD(model.parameters()))
        num_values = sum(parameter.numel() for parameter in model.parameters())
        met = [0]

        # torch checks these annotations, so this file has no `from __future__ import annotations`
        def count(_: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            met[0] += bucket.buffer().numel()
            return allreduce_hook(None, bucket)

        copy = engine._copy
        assert isinstance(copy, DistributedDataParallel)
        copy.register_comm_hook(None, count)
        options = contrastive.Options()
        task = ContrastiveTask(engine, contrastive.build(options), options, Encoding(seed=3))
        task.train_mode()
        size = NUM_PAIRS // (accumulate * ranks.world_size)
        whole = global_batch(32)
        batches = [block(whole, a * ranks.world_size + ranks.rank, size) for a in range(accumulate)]
        per_step = []
        for step in (1, 2, 3):
            before = met[0]
            engine.zero_grad()
            task.accumulate_gradients(batches, step)
            per_step.append((met[0] - before) / num_values)
        if ranks.is_main:
            Path(output).write_text(json.dumps(per_step))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
