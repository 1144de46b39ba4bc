"""Pairs per second of one training step: ours, the reference's, and the share of the matrix products' own rate.

    python tests/benchmarks/step.py --reference DIR    # DIR: pip install --no-deps --target DIR cn-clip==1.6.0 six

Captions have 5 to 25 tokens. The reference pads them to 52, as its loader does; ours are cut to the longest of the batch, as
our loader does. A step is forward, loss, backward, AdamW and the clamp of the scale, on both sides; what AdamW takes is also
told. The reference's model and its own `get_loss` run as they are, in a group of one rank; `.cuda` is made to do nothing, and
bf16 autocast is put around them, since its own knows CUDA only.

Printed are medians over the turns, in which both are asked one after the other; then FLOPs of the step's matrix products over
its seconds, as a share of the rate of one large product (that of the image tower's MLP) in the same turns.
`--profile N` prints instead which operations our step spends its time in.
"""

from __future__ import annotations

import argparse
import os
from argparse import Namespace
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sides import ROOT, Answer, Side, add_flags, clock, middle, serve, sides, words_of
from torch import Tensor
from towers_and_pairs import CONTEXT_LENGTH, fields, forward_flops, group_shapes, pairs

VARIANTS: dict[str, dict[str, Any]] = {
    "pair": {},
    "micro_batch": {"keyed": False},
    "pair, 2 groups": {"text_groups": 2},
    "pair, 4 groups": {"text_groups": 4},
}
"""Ways of our step: `train.randomness` and `train.text_groups`."""


def main() -> None:
    flags = parse()
    if flags.program:
        torch.set_num_threads(flags.threads)
        serve(Ours(flags).answer if flags.program == "ours" else Reference(flags).answer)
    packages = {"reference": flags.reference, "ours": ROOT} if flags.reference else {"ours": ROOT}
    if flags.profile:
        packages.pop("reference", None)
    with sides(__file__, packages, words_of(flags), flags.threads) as both:
        for precision in flags.precision:
            if flags.profile:
                print(both["ours"].ask(profile=flags.profile, precision=precision)["table"])
            else:
                report(both, precision, flags)


def parse() -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--reference", type=Path, default=os.environ.get("CN_CLIP_REFERENCE_DIR"))
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--precision", nargs="+", default=["fp32", "amp_bf16"], choices=["fp32", "amp_bf16"])
    parser.add_argument("--image", default="ViT-B-16")
    parser.add_argument("--text", default="RoBERTa-wwm-ext-base-chinese")
    parser.add_argument("--layers", type=int, help="of each tower instead of its own, for a quick look")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--compile", action="store_true", help="our blocks (model.compile)")
    parser.add_argument("--profile", type=int, default=0, metavar="N", help="operations to print")
    add_flags(parser)
    return parser.parse_args()


def report(both: dict[str, Side], precision: str, flags: Namespace) -> None:
    """Ask in turn and print."""
    asked: dict[str, tuple[Side, dict[str, str]]] = {
        variant: (both["ours"], {"variant": variant}) for variant in flags.variants
    }
    if "reference" in both:
        asked = {"reference": (both["reference"], {})} | asked
    answers: dict[str, list[Answer]] = defaultdict(list)
    for turn in range(flags.turns + 1):
        for name, (side, words) in asked.items():
            answers[name].append(side.ask(number=turn, precision=precision, **words))
        answers["product"].append(both["ours"].ask(precision=precision, product=True))
    # the first turn is for what is made once
    answers = {name: many[1:] for name, many in answers.items()}
    rate = max(answer["rate"] for answer in answers.pop("product"))
    seconds = "CPU s" if flags.cpu else "s"
    print(
        f"{precision}, {flags.pairs} pairs, {flags.threads} threads; a large product runs at {rate / 1e9:.0f} GFLOP/s"
    )
    theirs = middle(answers["reference"], "seconds") if "reference" in answers else None
    for name, many in answers.items():
        own, flops = middle(many, "seconds"), middle(many, "flops")
        print(
            f"  {name if name == 'reference' else f'ours, {name}':24} {flags.pairs / own:7.3f} pairs/s  {own:8.3f} {seconds} "
            f"(AdamW {middle(many, 'optimizer_seconds'):.3f})  {flops / own / rate:5.1%} of the product's rate"
            + (f"  ratio {theirs / own:5.2f}" if theirs is not None else ""),
            flush=True,
        )


class Ours:
    def __init__(self, flags: Namespace) -> None:
        from our_step import OurStep

        self._flags, self._fields = flags, fields(flags.image, flags.text, flags.layers)
        self._clock = clock(flags.cpu)
        self._ours = OurStep(self._fields, self._clock, compile=flags.compile)

    def answer(
        self,
        precision: str,
        number: int = 0,
        variant: str = "pair",
        product: bool = False,
        profile: int = 0,
    ) -> Answer:
        if product:
            return {"rate": product_rate(self._fields, self._flags, precision)}
        if profile:
            return {"table": self._profiled(precision, variant, profile)}
        return self._step(number, precision, variant)

    def _step(self, number: int, precision: str, variant: str) -> dict[str, float]:
        options = VARIANTS[variant]
        images, tokens = pairs(self._flags.pairs, self._fields["image_resolution"], number)
        captions = group_shapes(tokens, options.get("text_groups", 1))
        found = self._ours.seconds([(images, tokens)], precision, trim=True, **options)
        return found | {"flops": 3 * forward_flops(self._fields, len(images), captions)}

    def _profiled(self, precision: str, variant: str, rows: int) -> str:
        self._step(0, precision, variant)
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, record_shapes=True) as recorder:
            found = self._step(1, precision, variant)
        table = recorder.key_averages(group_by_input_shape=True).table(
            sort_by="self_cpu_time_total", row_limit=rows, max_shapes_column_width=70
        )
        return f"{precision}: {found['seconds']:.2f} s\n{table}"


class Reference:
    """`cn_clip` is the reference here."""

    def __init__(self, flags: Namespace) -> None:
        import torch.distributed as dist
        import torch.distributed.nn

        torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]  # no GPU here
        from cn_clip.clip.model import CLIP
        from cn_clip.training import train

        self._flags, self._fields = flags, fields(flags.image, flags.text, flags.layers)
        self._clock, self._train = clock(flags.cpu), train
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        torch.manual_seed(0)
        self._model = CLIP(**self._fields).train()
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(), lr=1e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2
        )
        self._args = Namespace(
            accum_freq=1, distillation=False, mask_ratio=0, aggregate=True, gather_with_grad=False,
            local_device_rank=0, report_training_batch_acc=False,
        )  # fmt: skip

    def answer(self, precision: str, number: int) -> Answer:
        images, tokens = pairs(self._flags.pairs, self._fields["image_resolution"], number)
        entropy = torch.nn.CrossEntropyLoss()
        loss: Tensor
        began = self._clock()
        self._optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "amp_bf16"):
            loss, _ = self._train.get_loss(self._model, images, tokens, entropy, entropy, self._args)
        loss.backward()
        computed = self._clock()
        self._optimizer.step()
        scale = self._model.logit_scale
        scale.data = torch.clamp(scale.data, 0, 4.6052)
        ended = self._clock()
        flops = 3 * forward_flops(self._fields, len(images), [(len(images), CONTEXT_LENGTH)])
        seconds = {"seconds": ended - began, "optimizer_seconds": ended - computed}
        return seconds | {"loss": loss.item(), "flops": flops}


def product_rate(model: dict[str, Any], flags: Namespace, precision: str) -> float:
    """FLOPs a second of the first product of the image tower's MLP, the best of five."""
    patches = (model["image_resolution"] // model["vision_patch_size"]) ** 2
    rows, width = flags.pairs * (patches + 1), model["vision_width"]
    dtype = torch.bfloat16 if precision == "amp_bf16" else torch.float32
    tokens, weight = torch.randn(rows, width).to(dtype), torch.randn(4 * width, width).to(dtype)
    now, best = clock(flags.cpu), float("inf")
    for _ in range(5):
        began = now()
        F.linear(tokens, weight)
        best = min(best, now() - began)
    return 8.0 * rows * width**2 / best


if __name__ == "__main__":
    main()
