"""Messages between the ranks of one training step, counted: ours under each engine, open_clip's trainer, the reference's.

    python tests/benchmarks/collectives.py [--ranks 2 4] [--accumulate 1 4] [--pairs 16]

Real processes over gloo, a small two-tower model of the same shape for all, `--pairs` a rank and micro-batch, fp32. torch's
profiler sees every collective that is asked for, also those of DDP's C++ reducer; the third step is counted, since libraries
agree on their buckets and their order in the first two. open_clip runs
its own `train_one_epoch` with `--local-loss --gather-with-grad`, the reference its own `train` with `--gather-with-grad`
(`CN_CLIP_REFERENCE_DIR` names a folder that holds it; without it it is left out).

Bytes are what a rank sends when each collective runs as a ring: of n bytes on W ranks an all-reduce sends 2n(W-1)/W, a
reduce-scatter n(W-1)/W, an all-gather that ends with n bytes n(W-1)/W, a broadcast n. They are also told as multiples of the
model's weights in fp32. gloo itself puts other algorithms in the place of some.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import warnings
from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).parents[2]
REFERENCE = os.environ.get("CN_CLIP_REFERENCE_DIR")
ENGINES = {
    "ddp": {}, "fsdp": {}, "fsdp, reshard=false": {"reshard": False}, "fsdp, sync=micro_batch": {"sync": "micro_batch"},
    "zero1": {}, "zero2": {}, "zero3": {},
}  # fmt: skip
CONTEXT_LENGTH, IMAGE_PX = 12, 32
SMALL = {
    "embed_dim": 512, "image_resolution": IMAGE_PX, "vision_layers": 4, "vision_width": 128, "vision_patch_size": 8,
    "vocab_size": 21128, "text_attention_probs_dropout_prob": 0.1, "text_hidden_act": "gelu",
    "text_hidden_dropout_prob": 0.1, "text_hidden_size": 128, "text_initializer_range": 0.02,
    "text_intermediate_size": 512, "text_max_position_embeddings": 64, "text_num_attention_heads": 2,
    "text_num_hidden_layers": 4, "text_type_vocab_size": 2,
}  # fmt: skip
"""Arguments of `CLIP`, ours and the reference's."""
ITEM_BYTES = {
    "float": 4,
    "c10::BFloat16": 2,
    "long int": 8,
    "int": 4,
    "unsigned char": 1,
    "double": 8,
    "bool": 1,
}

Step = Callable[[], object]
Events = list[dict[str, Any]]
"""Of torch's trace: `name`, `ts`, and `args` with types and shapes."""


def main() -> None:
    flags = parse()
    if flags.program:
        work(flags)
        return
    for world_size in flags.ranks:
        for program in ("ours", "open_clip", *(["reference"] if REFERENCE else [])):
            report(program, world_size, start(flags, program, world_size))


def parse() -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--accumulate", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--pairs", type=int, default=16, help="of a rank and micro-batch")
    parser.add_argument("--program", help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    return parser.parse_args()


def start(flags: Namespace, program: str, world_size: int) -> dict[str, Any]:
    """What rank 0 counted: weights in bytes, and of each variant the collectives of its third step."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "counts.json"
        words = [
            f"--program={program}",
            f"--output={output}",
            f"--pairs={flags.pairs}",
            "--accumulate",
            *map(str, flags.accumulate),
        ]
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world_size}", "--"]
        package = REFERENCE if program == "reference" else str(ROOT)
        done = subprocess.run(
            [sys.executable, *torchrun, __file__, *words],
            env={
                **os.environ,
                "PYTHONPATH": str(package),
                "OMP_NUM_THREADS": "1",
                "PYTHONWARNINGS": "ignore",
            },
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(
                "\n".join(line for line in done.stderr.splitlines() if line.startswith("[rank0]"))
            )
        found: dict[str, Any] = json.loads(output.read_text())
        return found


def report(program: str, world_size: int, found: Mapping[str, Any]) -> None:
    print(f"{program}, {world_size} ranks, weights {found['weight_bytes'] / 1e6:.1f} MB")
    for variant, counted in found["variants"].items():
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(counted["kinds"].items()))
        multiple = counted["bytes"] / found["weight_bytes"]
        print(
            f"    {variant:34} {sum(counted['kinds'].values()):5d} collectives {counted['bytes'] / 1e6:8.2f} MB a rank = "
            f"{multiple:5.2f} x the weights  ({kinds})",
            flush=True,
        )


def work(flags: Namespace) -> None:
    """One rank of one program; rank 0 writes."""
    import torch.distributed as dist

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    runs = {"ours": our_runs, "open_clip": open_clip_runs, "reference": reference_runs}[flags.program]
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    variants, weight_bytes = {}, 0
    if flags.program != "ours":
        dist.init_process_group("gloo")
    for variant, shapes, steps in runs(flags):
        weight_bytes = 4 * sum(math.prod(shape) for shape in shapes)
        variants[variant] = totals(collectives(steps), world_size)
    if rank == 0:
        Path(flags.output).write_text(json.dumps({"weight_bytes": weight_bytes, "variants": variants}))
    if dist.is_initialized():
        dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # as our doors end: gloo's threads outlive the group


def collectives(steps: Callable[[Step], object]) -> Events:
    """What the profiler sees of the last of three steps; `steps` calls what it is given before that one."""
    trace = Path(tempfile.mkdtemp()) / "trace.json"
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorder:
        steps(lambda: torch.autograd.profiler.record_function("last step").__enter__())
    recorder.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    began = next(event["ts"] for event in events if event.get("name") == "last step")
    return [
        e for e in events if e.get("ts", 0) >= began and e.get("name", "").startswith(("c10d::", "gloo:"))
    ]


def totals(events: Events, world_size: int) -> dict[str, Any]:
    """Number of collectives by kind, and the bytes that a rank sends."""
    types = types_of_lists(events)
    kinds: Counter[str] = Counter()
    sent = 0.0
    for event in sorted((e for e in events if e["name"].startswith("c10d::")), key=lambda e: e["ts"]):
        name, arguments = event["name"].removeprefix("c10d::").strip("_"), event["args"]
        if name in ("barrier", "monitored_barrier"):
            kinds[name] += 1
            continue
        dims, type_ = biggest_input(arguments, types)
        size = math.prod(dims) * ITEM_BYTES[type_]
        share = (world_size - 1) / world_size
        factor = {
            "allreduce": 2 * share, "broadcast": 1.0, "allgather": world_size - 1, "_allgather_base": share,
            "_reduce_scatter_base": share, "reduce_scatter": share, "reduce": 1.0, "alltoall": share,
            "allgather_base": share, "reduce_scatter_base": share, "alltoall_base": share, "scatter": share,
        }[name]  # fmt: skip
        kinds[name.strip("_").removesuffix("_base")] += 1
        sent += factor * size
    return {"kinds": kinds, "bytes": sent}


def types_of_lists(events: Events) -> dict[str, Iterator[str]]:
    """Shape -> types of gloo's messages of that shape, in order: of lists of tensors c10d tells no type."""
    found = defaultdict(list)
    for event in sorted((e for e in events if e["name"].startswith("gloo:")), key=lambda e: e["ts"]):
        arguments = event["args"]
        if arguments.get("Input Dims"):
            found[json.dumps(arguments["Input Dims"][0])].append(arguments["Input type"][0])
    return {dims: itertools.chain(types, itertools.repeat(types[-1])) for dims, types in found.items()}


def biggest_input(arguments: Mapping[str, Any], types: Mapping[str, Iterator[str]]) -> tuple[list[int], str]:
    """Shape and type of the largest tensor of a collective."""
    candidates = []
    for dims, type_ in zip(arguments["Input Dims"], arguments["Input type"], strict=True):
        if type_ == "TensorList":
            candidates += [(one, next(types.get(json.dumps(one), iter(["float"])))) for one in dims]
        elif type_ in ITEM_BYTES:
            candidates.append((dims, type_))
    return max(candidates, key=lambda found: math.prod(found[0]))


Runs = Iterator[tuple[str, list[torch.Size], Callable[[Step], object]]]
"""Name of a variant, shapes of its weights, and three steps."""


def our_runs(flags: Namespace) -> Runs:
    from cn_clip.clip.model import CLIP
    from cn_clip.config.schema import Optim, Parallel
    from cn_clip.data.batches import PairBatch
    from cn_clip.losses.pair import contrastive
    from cn_clip.parallel.precision import Precision
    from cn_clip.parallel.ranks import Ranks, start_ranks
    from cn_clip.parallel.wrap import wrap
    from cn_clip.training.contrastive_task import ContrastiveTask
    from cn_clip.training.encoding import Encoding
    from cn_clip.training.optimizer import build_optimizer

    def batch(ranks: Ranks) -> PairBatch:
        images, tokens = pairs(flags.pairs)
        ids = torch.arange(flags.pairs) + flags.pairs * ranks.rank
        return PairBatch(images, tokens, ids, ids, ids, ids, ids)

    with start_ranks("cpu") as ranks:
        for (name, settings), accumulate in itertools.product(ENGINES.items(), flags.accumulate):
            model = CLIP(**SMALL)
            shapes = [parameter.shape for parameter in model.parameters()]
            engine = wrap(
                model,
                Parallel(engine=name.split(",")[0], **settings),
                Precision("fp32", ranks.device),
                ranks,
                blocks=[*model.visual.blocks(), *model.bert.blocks()],
            )
            engine.set_optimizer(
                build_optimizer(model, Optim(lr=1e-4, beta1=0.9, beta2=0.98, eps=1e-6, max_norm=1.0))
            )
            options = contrastive.Options()
            task = ContrastiveTask(
                engine,
                contrastive.build(options),
                options,
                Encoding(seed=1, mask_ratio=lambda step: 0.5),
            )
            task.train_mode()

            def steps(last: Step, task: Any = task, engine: Any = engine, number: int = accumulate) -> None:
                for step in (1, 2, 3):
                    if step == 3:
                        last()
                    engine.zero_grad()
                    task.accumulate_gradients([batch(ranks)] * number, step)
                    engine.step(1.0)
                    task.after_step()

            yield f"{name}, accumulate {accumulate}", shapes, steps


def pairs(number: int) -> tuple[Tensor, Tensor]:
    return torch.randn(number, 3, IMAGE_PX, IMAGE_PX), torch.randint(1, 1000, (number, CONTEXT_LENGTH))


class Loader:
    """What both other trainers ask of a loader: three steps of batches."""

    def __init__(self, number: int, pairs_each: int, last: Step, *more: Tensor) -> None:
        self.num_batches, self.num_samples = 3 * number, 3 * number * pairs_each
        self._pairs, self._last, self._more = pairs_each, last, more

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for place in range(self.num_batches):
            if place == self.num_batches // 3 * 2:
                self._last()
            yield (*pairs(self._pairs), *self._more)

    dataloader = property(lambda self: self)
    sampler = None

    def set_epoch(self, epoch: int) -> None:
        pass


def open_clip_runs(flags: Namespace) -> Runs:
    import torch.distributed as dist
    from open_clip.loss import ClipLoss
    from open_clip_train.train import train_one_epoch

    from cn_clip.clip.model import CLIP

    class Named(nn.Module):
        """Our model with the outputs open_clip's trainer looks for."""

        def __init__(self) -> None:
            super().__init__()
            self.clip = CLIP(**SMALL)
            self.logit_scale = self.clip.logit_scale

        def forward(self, images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
            image, text, scale = self.clip(images, tokens)
            return {"image_features": image, "text_features": text, "logit_scale": scale}

    for accumulate in flags.accumulate:
        model = nn.parallel.DistributedDataParallel(Named())
        loss = ClipLoss(
            local_loss=True, gather_with_grad=True, rank=dist.get_rank(), world_size=dist.get_world_size()
        )
        args = Namespace(
            device="cpu", precision="fp32", accum_freq=accumulate, skip_scheduler=True, distill=False, horovod=False,
            grad_clip_norm=1.0, log_every_n_steps=10**9, wandb=False, rank=dist.get_rank(), batch_size=flags.pairs,
            world_size=dist.get_world_size(), save_logs=False, local_rank=0,
        )  # fmt: skip

        def steps(
            last: Step, model: Any = model, loss: Any = loss, args: Any = args, number: int = accumulate
        ) -> None:
            data = {"train": Loader(number, flags.pairs, last)}
            train_one_epoch(
                model, data, loss, 0, torch.optim.AdamW(model.parameters()), None, None, None, args
            )

        yield f"accumulate {accumulate}", [parameter.shape for parameter in model.parameters()], steps


def reference_runs(flags: Namespace) -> Runs:
    """`cn_clip` is the reference here; it calls `.cuda` on all it has."""
    import torch.distributed as dist

    from cn_clip.clip.model import CLIP
    from cn_clip.training.train import train

    torch.Tensor.cuda = lambda self, *a, **k: self  # type: ignore[method-assign, assignment]  # no GPU here
    nn.Module.cuda = lambda self, *a, **k: self  # type: ignore[method-assign, assignment]  # as above
    for accumulate, with_grad in itertools.product(flags.accumulate, (True, False)):
        model = nn.parallel.DistributedDataParallel(CLIP(**SMALL, use_flash_attention=False))
        args = Namespace(
            accum_freq=accumulate, precision="fp32", mask_ratio=0.5, aggregate=True, gather_with_grad=with_grad,
            distillation=False, report_training_batch_acc=False, local_device_rank=0, freeze_vision=False,
            max_steps=10**9, val_data=None, valid_step_interval=None, should_save=False, save_step_frequency=0,
            log_interval=10**9, rank=dist.get_rank(), world_size=dist.get_world_size(), use_flash_attention=False,
            vision_model="ViT-B-16",
        )  # fmt: skip

        def steps(last: Step, model: Any = model, args: Any = args, number: int = accumulate) -> None:
            optimizer = torch.optim.AdamW(model.parameters())
            data = {"train": Loader(number, flags.pairs, last, torch.zeros(flags.pairs))}
            train(model, data, 0, optimizer, None, lambda step: None, args, 0)

        gather = "gather-with-grad, " if with_grad else ""
        yield f"{gather}accumulate {accumulate}", [parameter.shape for parameter in model.parameters()], steps


if __name__ == "__main__":
    main()
