"""`cn-clip <command> …`: one name for the command files. Each is imported when chosen, so `--help` needs no torch."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from cn_clip import __version__
from cn_clip.errors import ConfigError, run_door

COMMANDS = {
    "train": ("cn_clip.training.main", "train image and text towers on pairs"),
    "doctor": ("cn_clip.training.doctor", "what a machine, its ranks and settings make of a run"),
    "import": (
        "cn_clip.preprocess.import_dataset",
        "folders, COCO, MUGE, tars, parquet, ... -> TSV + JSONL or LMDB",
    ),
    "build-lmdb": ("cn_clip.preprocess.build_lmdb_dataset", "TSV + JSONL of pictures and captions -> LMDB"),
    "inspect": (
        "cn_clip.preprocess.inspect_dataset",
        "what is in a data set, and what to mind in training on it",
    ),
    "summary": ("cn_clip.training.write_summary", "summary.md and plots of a run, made again"),
    "consolidate": ("cn_clip.training.consolidate", "a sharded checkpoint -> one file"),
    "convert-openai": (
        "cn_clip.preprocess.transform_openai_pretrain_weights",
        "OpenAI CLIP archive -> plain state dict",
    ),
    "extract": ("cn_clip.eval.extract_features", "features of pictures and captions"),
    "search": ("cn_clip.eval.make_topk_predictions", "pictures found for each caption"),
    "search-texts": ("cn_clip.eval.make_topk_predictions_tr", "captions found for each picture"),
    "transpose": ("cn_clip.eval.transform_ir_annotation_to_tr", "captions' pictures -> pictures' captions"),
    "evaluate": ("cn_clip.eval.evaluation", "recall of the pictures found"),
    "evaluate-texts": ("cn_clip.eval.evaluation_tr", "recall of the captions found"),
    "zeroshot": ("cn_clip.eval.zeroshot_evaluation", "zero-shot classification of a picture folder"),
    "report": ("cn_clip.eval.write_report", "HTML page of a run: recall, found pictures, loss curve"),
}
"""Name -> (module of the door, what it does)."""


def main(words: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if words is None else words)
    if not given or given[0] in ("-h", "--help", "help"):
        print(usage())
    elif given[0] in ("-V", "--version"):
        print(f"cn_clip {__version__}")
    else:
        _run(given[0], given[1:])


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {meaning}" for name, (_, meaning) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: cn-clip COMMAND [FLAGS]",
            "       cn-clip COMMAND --help",
            "       cn-clip --version",
            "",
            *lines,
        ]
    )


def _run(name: str, words: list[str]) -> None:
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "see cn-clip --help"
        raise ConfigError(f"cn-clip has no command {name!r}; {hint}")
    sys.argv[0] = f"cn-clip {name}"  # argparse names the command by it in its usage
    import_module(COMMANDS[name][0]).main(words)


def command() -> NoReturn:
    """The console script."""
    run_door(main)


if __name__ == "__main__":
    command()
