"""Encode the pictures of an LMDB and the captions of a JSONL into files of unit-length features."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # run by path: this checkout first on sys.path, and not the door's own folder
    sys.path[0] = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))

import argparse
from collections.abc import Sequence
from pathlib import Path

from cn_clip.errors import ConfigError, DataError, run_door
from cn_clip.eval.params import format_params
from cn_clip.eval.whole_file import check_writable


def main(words: Sequence[str] | None = None) -> None:
    """Write the feature files asked for, texts first."""
    flags = _parser().parse_args(words)
    text_output, image_output = _check(flags)
    print(format_params(flags))

    from cn_clip.eval.device import pick_device
    from cn_clip.eval.features.embed import ImageJob, TextJob
    from cn_clip.eval.features.encoder import Choice, open_encoder

    device = pick_device(flags.device)
    choice = Choice(
        image=flags.vision_model,
        text=flags.text_model,
        weights=flags.resume,
        device=device,
        precision=flags.precision,
    )
    print(f"Begin to load model checkpoint from {flags.resume}.")
    encoder = open_encoder(choice)
    print(f"=> loaded checkpoint '{flags.resume}'" + (f" ({encoder.position})" if encoder.position else ""))
    if flags.extract_text_feats:
        texts = TextJob(
            captions=Path(flags.text_data),
            output=Path(text_output),
            batch_size=flags.text_batch_size,
            context_length=flags.context_length,
        )
        print(f"{texts.run(encoder)} text features are stored in {text_output}")
    if flags.extract_image_feats:
        images = ImageJob(
            store=Path(flags.image_data),
            output=Path(image_output),
            batch_size=flags.img_batch_size,
            transform=flags.transform,
            num_workers=_num_workers(flags.num_workers, device.type),
        )
        print(f"{images.run(encoder)} image features are stored in {image_output}")
    print("Done!")


def _check(flags: argparse.Namespace) -> tuple[str, str]:
    """Refuse at once what would fail after the model is loaded; returns the output paths of texts and images."""
    if not (flags.extract_image_feats or flags.extract_text_feats):
        raise ConfigError("nothing to do: give --extract-image-feats, --extract-text-feats or both")
    if flags.resume is None:
        raise ConfigError("--resume is missing: give the checkpoint whose model should encode")
    if flags.num_workers is not None and flags.num_workers < 0:
        raise ConfigError(f"--num-workers is {flags.num_workers}, which should be 0 or more")
    # both default paths come from --text-data, as other tools expect them
    text_output = flags.text_feat_output_path or f"{flags.text_data[: -len('.jsonl')]}.txt_feat.jsonl"
    image_output = (
        flags.image_feat_output_path or f"{flags.text_data.replace('_texts.jsonl', '_imgs')}.img_feat.jsonl"
    )
    if flags.extract_text_feats:
        if not os.path.isfile(flags.text_data):
            raise DataError(f"there is no file {flags.text_data}: give the captions with --text-data")
        check_writable(text_output)
    if flags.extract_image_feats:
        if not os.path.isdir(flags.image_data):
            raise DataError(f"there is no folder {flags.image_data}: give the imgs LMDB with --image-data")
        if not (flags.image_feat_output_path or os.path.isdir(os.path.dirname(image_output) or ".")):
            raise ConfigError(
                f"the features of the pictures would go to {image_output}, named after --text-data, whose folder does not exist: "
                "give --image-feat-output-path"
            )
        check_writable(image_output)
    return text_output, image_output


def _num_workers(asked: int | None, device_type: str) -> int:
    if asked is not None:
        return asked
    # on a CPU they would fight the model for the cores
    return min(8, os.cpu_count() or 1) if device_type == "cuda" else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--extract-image-feats", action="store_true", help="encode the pictures of --image-data")
    add("--extract-text-feats", action="store_true", help="encode the captions of --text-data")
    add(
        "--image-data",
        default="../Multimodal_Retrieval/lmdb/test/imgs",
        metavar="LMDB",
        help="folder imgs of a split, of either format (default: %(default)s)",
    )
    add(
        "--text-data",
        default="../Multimodal_Retrieval/test_texts.jsonl",
        metavar="JSONL",
        help="captions; its name also gives both default output paths (default: %(default)s)",
    )
    add(
        "--image-feat-output-path",
        metavar="JSONL",
        help="default: X_imgs.img_feat.jsonl for --text-data X_texts.jsonl",
    )
    add(
        "--text-feat-output-path",
        metavar="JSONL",
        help="default: X_texts.txt_feat.jsonl for --text-data X_texts.jsonl",
    )
    add(
        "--img-batch-size",
        type=int,
        default=64,
        metavar="N",
        help="pictures encoded at once (default: %(default)s)",
    )
    add(
        "--text-batch-size",
        type=int,
        default=64,
        metavar="N",
        help="captions encoded at once (default: %(default)s)",
    )
    add(
        "--context-length",
        type=int,
        default=52,
        metavar="L",
        help="tokens of a caption, [CLS] and [SEP] included (default: %(default)s)",
    )
    add("--resume", metavar="PT", help="checkpoint of both towers (needed)")
    add(
        "--precision",
        choices=["amp", "amp_bf16", "fp16", "fp32"],
        default="amp",
        help="amp and fp32 both compute in fp32; fp16 casts the weights; amp_bf16 autocasts to bfloat16, the quick "
        "one where the device multiplies it natively (default: %(default)s)",
    )
    add("--vision-model", default="ViT-B-16", help="image tower: preset name or path (default: %(default)s)")
    add(
        "--text-model",
        default="RoBERTa-wwm-ext-base-chinese",
        help="text tower: preset name or path (default: %(default)s)",
    )
    add("--device", default="auto", help="auto (CUDA when there is one), cpu or cuda (default: auto)")
    add(
        "--transform",
        choices=["exact", "fast"],
        default="exact",
        help="exact reads pictures with PIL, like cn-clip to the bit; fast decodes and resizes JPEG two to "
        "three times quicker, with pixels off by about 1 of 255 (default: %(default)s)",
    )
    add(
        "--num-workers",
        type=int,
        metavar="N",
        help="processes that read pictures (default: 0 on a CPU, else up to 8)",
    )
    add("--debug", action="store_true", help="accepted for old commands; changes nothing")
    return parser


if __name__ == "__main__":
    run_door(main)
