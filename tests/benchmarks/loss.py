"""Time and memory of the loss and its gradients: ours, plain torch, open_clip's, the reference's.

    python tests/benchmarks/loss.py [--pairs 4096 16384] [--ours-only 32768 65536] [--loss contrastive|sigmoid]

One process, fp32 features of 512 numbers, forward and backward to the features and the scale; each run is a process of its
own, whose peak memory above that of the features and a small first run is told. `CN_CLIP_REFERENCE_DIR` names a folder that
holds `pip install --no-deps --target DIR cn-clip==1.6.0 six`; without it the reference is left out. Dense forms need 20 bytes
a cell: 5 GB at 16,384 pairs. `--cpu` compares CPU seconds instead of those of the clock, which other programs on the machine
distort: then give `--threads 1`, since waiting threads count too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).parents[2]
REFERENCE = os.environ.get("CN_CLIP_REFERENCE_DIR")
THEIRS = {"contrastive": ["torch", "open_clip", "reference"], "sigmoid": ["torch", "open_clip"]}
WIDTH = 512

Step = Callable[[Tensor, Tensor, Tensor, Tensor], float]
"""Image and text features, scale and bias -> loss; gradients are left on them or thrown away."""


def main() -> None:
    """Run every program on every size, print seconds, memory and ratios."""
    flags = parse()
    if flags.program:
        print(json.dumps(measure(flags)))
        return
    for num in [*flags.pairs, *flags.ours_only]:
        programs = ["ours", *(THEIRS[flags.loss] if num in flags.pairs else [])]
        found = {}
        for program in programs:
            if program != "reference" or REFERENCE:
                found[program] = min(
                    (start(flags, program, num) for _ in range(flags.runs)), key=lambda f: f[0]
                )
        report(flags, num, found)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="*", default=[4096, 16384])
    parser.add_argument("--ours-only", type=int, nargs="*", default=[])
    parser.add_argument("--loss", choices=sorted(THEIRS), default="contrastive")
    parser.add_argument("--tile", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=2, help="of each program; the best time counts")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--program", help=argparse.SUPPRESS)
    parser.add_argument("--num", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def start(flags: argparse.Namespace, program: str, num: int) -> tuple[float, float, float]:
    """Seconds, MB and loss of one program in a process of its own."""
    words = [f"--program={program}", f"--num={num}", f"--loss={flags.loss}", f"--threads={flags.threads}"]
    words += [f"--tile={flags.tile}"] if flags.tile else []
    words += ["--cpu"] if flags.cpu else []
    package = REFERENCE if program == "reference" else str(ROOT)
    done = subprocess.run(
        [sys.executable, __file__, *words],
        env={**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": str(flags.threads)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds, megabytes, loss = json.loads(done.stdout.splitlines()[-1])
    return seconds, megabytes, loss


def report(flags: argparse.Namespace, num: int, found: dict[str, tuple[float, float, float]]) -> None:
    kind = "CPU s" if flags.cpu else "s"
    seconds, megabytes, loss = found.pop("ours")
    print(
        f"{flags.loss}, {num} pairs, {flags.threads} threads: ours {seconds:.2f} {kind}, {megabytes:.0f} MB",
        flush=True,
    )
    for program, (their_seconds, their_megabytes, their_loss) in found.items():
        print(
            f"    {program:10} {their_seconds:8.2f} {kind}  ratio {their_seconds / seconds:5.2f}    "
            f"{their_megabytes:7.0f} MB  ratio {their_megabytes / megabytes:5.1f}    loss differs by {abs(their_loss - loss):.1e}",
            flush=True,
        )


def measure(flags: argparse.Namespace) -> tuple[float, float, float]:
    """Seconds, peak MB above what was there, loss."""
    torch.set_num_threads(flags.threads)
    step = {"ours": ours, "torch": plain, "open_clip": open_clip, "reference": reference}[flags.program](
        flags
    )
    step(*inputs(512))  # libraries make room for themselves
    given = inputs(flags.num)
    clock = time.process_time if flags.cpu else time.perf_counter
    before, began = peak_megabytes(), clock()
    loss = step(*given)
    return clock() - began, peak_megabytes() - before, loss


def inputs(num: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    image, text = (F.normalize(torch.randn(num, WIDTH), dim=1).requires_grad_() for _ in range(2))
    return image, text, torch.tensor(50.0, requires_grad=True), torch.tensor(-10.0, requires_grad=True)


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ours(flags: argparse.Namespace) -> Step:
    from cn_clip.losses.pair import PairIds, contrastive, sigmoid

    module = contrastive if flags.loss == "contrastive" else sigmoid
    options = module.Options() if flags.tile is None else module.Options(tile=flags.tile)
    run = module.build(options)  # type: ignore[arg-type]  # each module takes its own options

    def step(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> float:
        ids = PairIds(*(torch.arange(len(image)) for _ in range(5)))
        return run(image, text, scale, ids, ids, lambda columns: columns[None], bias=bias).loss.item()

    return step


def backward(loss_of: Callable[..., Tensor]) -> Step:
    def step(*given: Tensor) -> float:
        loss = loss_of(*given)
        loss.backward()
        return loss.item()

    return step


def plain(flags: argparse.Namespace) -> Step:
    """As it is written in any tutorial."""

    def contrastive(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        logits, match = scale * image @ text.T, torch.arange(len(image))
        return (F.cross_entropy(logits, match) + F.cross_entropy(logits.T, match)) / 2

    def sigmoid(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        logits = scale * image @ text.T + bias
        return -F.logsigmoid((2 * torch.eye(len(image)) - 1) * logits).sum() / len(image)

    return backward(contrastive if flags.loss == "contrastive" else sigmoid)


def open_clip(flags: argparse.Namespace) -> Step:
    from open_clip.loss import ClipLoss, SigLipLoss

    if flags.loss == "sigmoid":
        return backward(SigLipLoss())
    loss = ClipLoss()
    return backward(lambda image, text, scale, bias: loss(image, text, scale))


def reference(flags: argparse.Namespace) -> Step:
    """Its own `get_loss`, with a model that returns the features, in a group of one rank."""
    import torch.distributed.nn

    from cn_clip.training import train

    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]  # it runs on CUDA only
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK="0", WORLD_SIZE="1")
    torch.distributed.init_process_group("gloo")
    args = Namespace(
        accum_freq=1, distillation=False, mask_ratio=0, aggregate=True, gather_with_grad=True,
        local_device_rank=0, report_training_batch_acc=False,
    )  # fmt: skip
    entropy = torch.nn.CrossEntropyLoss()

    def loss_of(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        loss: Tensor = train.get_loss(
            lambda *words: (image, text, scale), None, None, entropy, entropy, args
        )[0]
        return loss

    return backward(loss_of)


if __name__ == "__main__":
    main()
