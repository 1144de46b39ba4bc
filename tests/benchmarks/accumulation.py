"""Pairs per second of one optimizer step over A micro-batches: ours and open_clip's.

    python tests/benchmarks/accumulation.py [--accumulate 4] [--pairs 8] [--precision fp32 amp_bf16]

open_clip runs its own `train_one_epoch` (`--accum-freq A`) over its own model of the same towers, a ViT and Hugging Face's
BERT; with `--our-towers` over our model instead, so that only the step differs. It encodes every micro-batch twice and forms the
loss A times; ours keeps the graph of one and forms the loss once. With a backward pass counted as two forward ones that is 4A
against 4A - 1: 16/15 at A = 4 is all there is to win at equal padding. Captions have 5 to 25 tokens: `padded` encodes all 52 on
both sides, `trimmed` cuts each micro-batch to its longest, as our loader does.

A step is all that the trainers do from a batch in memory to AdamW and the clamp; what AdamW takes is also told. Printed are
medians over the turns, in which both are asked one after the other.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from sides import ROOT, Answer, Side, add_flags, clock, middle, serve, sides, words_of
from torch import Tensor, nn
from towers_and_pairs import PAD_ID, fields, pairs

VARIANTS: dict[str, dict[str, Any]] = {
    "padded, micro_batch": {"trim": False, "keyed": False},
    "padded, pair": {"trim": False},
    "trimmed, micro_batch": {"trim": True, "keyed": False},
    "trimmed, pair": {"trim": True},
}
"""Ways of our step: padding and `train.randomness`, of which `micro_batch` has open_clip's dropout kernels."""


def main() -> None:
    flags = parse()
    if flags.program:
        torch.set_num_threads(flags.threads)
        serve(Ours(flags).answer if flags.program == "ours" else OpenClip(flags).answer)
    with sides(__file__, {"open_clip": ROOT, "ours": ROOT}, words_of(flags), flags.threads) as both:
        for precision in flags.precision:
            report(both, precision, flags)


def parse() -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--accumulate", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=8, help="of a micro-batch")
    parser.add_argument("--precision", nargs="+", default=["fp32", "amp_bf16"], choices=["fp32", "amp_bf16"])
    parser.add_argument("--image", default="ViT-B-16")
    parser.add_argument("--text", default="RoBERTa-wwm-ext-base-chinese")
    parser.add_argument("--layers", type=int, help="of each tower instead of its own, for a quick look")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--our-towers", action="store_true", help="under open_clip's trainer too")
    add_flags(parser)
    return parser.parse_args()


def report(both: dict[str, Side], precision: str, flags: Namespace) -> None:
    """Ask in turn and print."""
    answers: dict[str, list[Answer]] = defaultdict(list)
    for turn in range(flags.turns + 1):
        found = {"open_clip": both["open_clip"].ask(number=turn, precision=precision)}
        for variant in flags.variants:
            found[variant] = both["ours"].ask(number=turn, precision=precision, variant=variant)
        for name, answer in found.items() if turn else ():  # the first turn is for what is made once
            answers[name].append(answer)
    num, seconds = flags.pairs * flags.accumulate, "CPU s" if flags.cpu else "s"
    print(f"{precision}, {flags.accumulate} x {flags.pairs} pairs, {flags.threads} threads")
    theirs = {name: middle(answers["open_clip"], name) for name in ("seconds", "optimizer_seconds")}
    for name, many in answers.items():
        own = {name: middle(many, name) for name in theirs}
        without = [side["seconds"] - side["optimizer_seconds"] for side in (theirs, own)]
        print(
            f"  {name if name == 'open_clip' else f'ours, {name}':28} {num / own['seconds']:7.3f} pairs/s  "
            f"{own['seconds']:8.3f} {seconds} (AdamW {own['optimizer_seconds']:.3f})  ratio "
            f"{theirs['seconds'] / own['seconds']:5.2f}, without AdamW {without[0] / without[1]:5.2f}",
            flush=True,
        )


def micro_batches(flags: Namespace, image_px: int, number: int) -> list[tuple[Tensor, Tensor]]:
    """Those of step `number`, captions padded."""
    first = number * flags.accumulate
    return [pairs(flags.pairs, image_px, first + place) for place in range(flags.accumulate)]


class Ours:
    def __init__(self, flags: Namespace) -> None:
        from our_step import OurStep

        self._flags, self._fields = flags, fields(flags.image, flags.text, flags.layers)
        self._ours = OurStep(self._fields, clock(flags.cpu))

    def answer(self, precision: str, number: int, variant: str) -> Answer:
        batches = micro_batches(self._flags, self._fields["image_resolution"], number)
        return self._ours.seconds(batches, precision, **VARIANTS[variant])


class OpenClip:
    def __init__(self, flags: Namespace) -> None:
        from open_clip.loss import ClipLoss

        self._flags, self._fields = flags, fields(flags.image, flags.text, flags.layers)
        self._clock, self._loss = clock(flags.cpu), ClipLoss()
        torch.manual_seed(0)
        self._model = Named(self._fields) if flags.our_towers else own_model(self._fields)
        parameters = self._model.parameters()
        self._optimizer = TimedAdamW(parameters, lr=1e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
        self._optimizer.clock = self._clock

    def answer(self, precision: str, number: int) -> Answer:
        from open_clip_train.train import train_one_epoch

        flags = self._flags
        args = Namespace(
            device="cpu", precision=precision, accum_freq=flags.accumulate, skip_scheduler=True, distill=False,
            horovod=False, grad_clip_norm=None, log_every_n_steps=10**9, wandb=False, rank=0, local_rank=0,
            batch_size=flags.pairs, world_size=1, save_logs=False,
        )  # fmt: skip
        data = {"train": Loader(micro_batches(flags, self._fields["image_resolution"], number))}
        began = self._clock()
        train_one_epoch(self._model, data, self._loss, 0, self._optimizer, None, None, None, args)
        return {"seconds": self._clock() - began, "optimizer_seconds": self._optimizer.seconds}


class TimedAdamW(torch.optim.AdamW):
    """Knows what its last step took."""

    clock: Any
    seconds = 0.0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # nobody gives a closure
        began = self.clock()
        super().step()
        self.seconds = self.clock() - began


class Loader:
    """What open_clip's trainer asks of a loader: the micro-batches of one step."""

    sampler = None

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self._batches = batches
        self.num_batches, self.num_samples = len(batches), sum(len(images) for images, _ in batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._batches)

    @property
    def dataloader(self) -> Loader:
        return self

    def set_epoch(self, epoch: int) -> None:
        pass


class Named(nn.Module):
    """Our model with the outputs that open_clip's trainer looks for."""

    def __init__(self, model: dict[str, Any]) -> None:
        from cn_clip.clip.model import CLIP

        super().__init__()
        self.clip = CLIP(**model)
        self.logit_scale = self.clip.logit_scale

    def forward(self, images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        image, text, scale = self.clip(images, tokens)
        return {"image_features": image, "text_features": text, "logit_scale": scale}


def own_model(model: dict[str, Any]) -> nn.Module:
    """open_clip's model with the same towers and dropout, its text tower from a Hugging Face configuration."""
    from open_clip.model import CustomTextCLIP

    prefix = "text_"
    bert = {name.removeprefix(prefix): value for name, value in model.items() if name.startswith(prefix)}
    bert |= {"model_type": "bert", "vocab_size": model["vocab_size"], "pad_token_id": PAD_ID}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(bert))
        built: nn.Module = CustomTextCLIP(
            embed_dim=model["embed_dim"],
            vision_cfg={
                "image_size": model["image_resolution"], "layers": model["vision_layers"],
                "width": model["vision_width"], "patch_size": model["vision_patch_size"],
            },
            text_cfg={
                "hf_model_name": folder, "hf_model_pretrained": False, "hf_proj_type": "linear",
                "hf_pooler_type": "cls_last_hidden_state_pooler",
            },
            quick_gelu=True,
            output_dict=True,
        )  # fmt: skip
    return built


if __name__ == "__main__":
    main()
