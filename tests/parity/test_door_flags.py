"""Flags of the evaluation and preprocessing commands beside those of the reference's scripts."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.parity

COMMANDS = [
    "eval.extract_features",
    "eval.make_topk_predictions",
    "eval.make_topk_predictions_tr",
    "eval.zeroshot_evaluation",
    "eval.transform_ir_annotation_to_tr",
    "preprocess.build_lmdb_dataset",
    "preprocess.transform_openai_pretrain_weights",
]
FREED = {"--vision-model", "--text-model"}
"""The reference lists six and three names; ours takes any preset, JSON or folder, and the towers refuse the rest."""

NEEDED = {"--label-file", "--resume"}
"""The reference lets zero-shot start without them and ends in a traceback; here the parser says so."""

LIST_FLAGS = """
import argparse, json, runpy, sys

class Listed(Exception):
    pass

def list_actions(parser, *words):
    raise Listed([
        {"names": a.option_strings, "type": getattr(a.type, "__name__", None), "default": a.default,
         "choices": a.choices, "nargs": a.nargs, "required": a.required}
        for a in parser._actions if a.dest != "help"
    ])

argparse.ArgumentParser.parse_args = list_actions
found = {}
for command in sys.argv[2:]:
    try:
        runpy.run_module("cn_clip." + command, run_name="__main__")
    except Listed as listed:
        found[command] = listed.args[0]
json.dump(found, open(sys.argv[1], "w"))
"""


@pytest.fixture(scope="module")
def reference_flags(
    run_reference: Callable[..., subprocess.CompletedProcess[str]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, Any]]]:
    answer = tmp_path_factory.mktemp("flags") / "flags.json"
    run_reference(LIST_FLAGS, answer, *COMMANDS)
    return json.loads(answer.read_text())


class ListedError(Exception):
    """Ends a command where its flags would be read."""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_is_there_with_its_default(
    command: str, reference_flags: dict[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    parsers: list[argparse.ArgumentParser] = []

    def keep(parser: argparse.ArgumentParser, *_: object) -> None:
        parsers.append(parser)
        raise ListedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", keep)
    with pytest.raises(ListedError):
        importlib.import_module(f"cn_clip.{command}").main([])
    ours = {name: action for action in parsers[0]._actions for name in action.option_strings}
    assert reference_flags[command]
    for theirs in reference_flags[command]:
        (name,) = theirs["names"]
        mine = ours[name]
        assert mine.default == theirs["default"], name
        assert mine.nargs == theirs["nargs"], name
        assert getattr(mine.type, "__name__", None) in (theirs["type"], None), name
        if theirs["choices"] and name not in FREED:
            assert set(theirs["choices"]) <= set(mine.choices or theirs["choices"]), name
        assert not mine.required or theirs["required"] or name in NEEDED, f"{name} was optional"
