"""See whether this machine, these ranks and these settings make a good run, and what bounds it, before it starts.

cn-clip doctor --config configs/muge_finetune_vit-b-16_rbt-base.yaml; under torchrun for several ranks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

if __name__ == "__main__":  # run by path: this checkout first on sys.path, and not the door's own folder
    sys.path[0] = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from cn_clip.errors import ConfigError, run_door
from cn_clip.files import write_atomically

EXIT_WRONG = 1


def main(words: Sequence[str] | None = None) -> None:
    """Print what was found, as it is found; exit code 1 where something is wrong."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as training itself does
    flags, train_words = _parser().parse_known_args(words)
    if flags.json is not None and not flags.json.resolve().parent.is_dir():
        raise ConfigError(f"the folder of {flags.json} does not exist: make it first")
    from cn_clip.config.legacy_flags import parse_train_flags
    from cn_clip.config.load import merge, read_yaml

    config_path, overrides = parse_train_flags(train_words)
    settings = merge(read_yaml(config_path) if config_path else {}, overrides)

    from cn_clip.parallel.ranks import start_ranks
    from cn_clip.training.diagnosis.examine import Examination, any_wrong, config_of
    from cn_clip.training.diagnosis.finding import text_of

    config = config_of(settings)
    with start_ranks(config.run.device) as ranks:
        findings = []
        for finding in Examination(config, ranks, flags.seconds).run(flags.only):
            findings.append(finding)
            if ranks.is_main:
                print(text_of(finding), flush=True)
        is_wrong = any_wrong(findings, ranks)
        if ranks.is_main and flags.json is not None:
            content = [asdict(finding) for finding in findings]
            write_atomically(flags.json, json.dumps(content, indent=1, ensure_ascii=False).encode())
            print(f"Written: {flags.json.resolve()}")
    if is_wrong:
        sys.exit(EXIT_WRONG)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="See whether this machine, these ranks and these settings make a good run, and what bounds it.",
        epilog="All flags of training are taken too: --config FILE, --set NAME=VALUE, --train-data ... (cn-clip train --help). "
        "Without training pairs everything but the loader is looked at.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--json", type=Path, metavar="FILE", help="write all findings with their numbers")
    add(
        "--only",
        type=lambda text: tuple(text.split(",")),
        default=(),
        metavar="CHECK,...",
        help="machine, kernels, exactness, network, memory, loader, step, bound (default: all)",
    )
    add(
        "--seconds",
        type=float,
        default=60.0,
        metavar="S",
        help="how long the timed steps may take; longer ones are computed (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    run_door(main)
