"""The flags of the zero-shot command: the reference's, and ours after them."""

from __future__ import annotations

import argparse

from cn_clip.errors import ConfigError


def zeroshot_parser(description: str | None) -> argparse.ArgumentParser:
    """Parser of the command; no torch is imported."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--vision-model", default="ViT-B-16", help="image tower: a name or a JSON file")
    parser.add_argument(
        "--text-model", default="RoBERTa-wwm-ext-base-chinese", help="text tower: a name or a JSON file"
    )
    parser.add_argument(
        "--precision", choices=["amp", "fp16", "fp32"], default="amp", help="of the weights; amp is fp32 here"
    )
    parser.add_argument("--label-file", required=True, help="names of the classes, one per line")
    parser.add_argument("--datapath", required=True, help="folder with one folder of pictures per class")
    parser.add_argument("--dataset", default="imagenet", help="chooses the prompts and names the output")
    parser.add_argument(
        "--index", default="", help="JSON list: order of the pictures in the saved predictions"
    )
    parser.add_argument("--save-dir", default="", help="folder for DATASET.json, made when missing")
    parser.add_argument("--img-batch-size", type=int, default=64, help="pictures at once")
    parser.add_argument(
        "--context-length", type=int, default=52, help="tokens of a prompt with [CLS] and [SEP]"
    )
    parser.add_argument("--resume", required=True, help="checkpoint with the weights")
    parser.add_argument("--num-workers", type=int, default=4, help="processes that read pictures")
    parser.add_argument("--template-file", help="JSON or YAML list of prompts with {}, or lists by data set")
    parser.add_argument(
        "--labels-by",
        choices=["number", "order"],
        default="number",
        help="class of a folder: the number that is its name, or (as cn-clip has it) its place in sorted order",
    )
    parser.add_argument(
        "--scale",
        choices=["100", "model"],
        default="100",
        help="of the cosines under the softmax: 100 as cn-clip has it, or what the model has learned",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    return parser


def check_sizes(flags: argparse.Namespace) -> None:
    """ConfigError for a batch size or number of processes that cannot be."""
    if flags.img_batch_size < 1:
        raise ConfigError(f"--img-batch-size is {flags.img_batch_size}, which should be at least 1")
    if flags.num_workers < 0:
        raise ConfigError(f"--num-workers is {flags.num_workers}, which should be 0 or more")
