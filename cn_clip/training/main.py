"""Train image and text towers on pairs: `python cn_clip/training/main.py --train-data ... `, alone or under torchrun.

Settings come from `--config x.yaml`, cn-clip's flags and `--set name=value`; docs/training.md lists them all.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if __name__ == "__main__":  # run by path: this checkout first on sys.path, and not the door's own folder
    sys.path[0] = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))

from cn_clip.errors import run_door

if TYPE_CHECKING:  # --help must not wait for torch
    from torch import nn


def main(words: Sequence[str] | None = None) -> None:
    # Before torch is loaded: threads that spin while they wait take the cores that loader workers need (2.3 times the
    # time of a quickstart step on two cores).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from cn_clip.config.legacy_flags import parse_train_flags, wants_dry_run
    from cn_clip.config.load import merge, read_yaml

    config_path, overrides = parse_train_flags(words)
    settings = merge(read_yaml(config_path) if config_path else {}, overrides)

    from cn_clip.training.build import build_config

    config = build_config(settings)
    if wants_dry_run(words):
        from cn_clip.training.dry_run import check

        for line in check(config):
            print(line)
        return
    from cn_clip.training.run import train

    train(config)


def convert_models_to_fp32(model: nn.Module) -> None:
    """Old name: cast a model's parameters and gradients to fp32."""
    from cn_clip.clip.model import convert_models_to_fp32 as convert

    convert(model)


def is_master(args: object) -> bool:
    """Old name: whether `args.rank` is the main rank's."""
    return getattr(args, "rank", 0) == 0


if __name__ == "__main__":
    run_door(main)
