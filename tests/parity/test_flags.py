"""The training flags beside the reference's own parser."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable

import pytest

from cn_clip.config.legacy_flags import parse_train_flags, parser, reference_params
from cn_clip.config.load import build, merge
from cn_clip.config.schema import TrainConfig

LIST_FLAGS = """
import argparse, json, runpy, sys

def list_actions(parser, *words):
    actions = [
        {"names": a.option_strings, "type": getattr(a.type, "__name__", None), "default": a.default,
         "choices": a.choices, "nargs": a.nargs, "required": a.required}
        for a in parser._actions if a.dest != "help"
    ]
    with open(sys.argv[1], "w") as file:
        json.dump(actions, file)
    sys.exit(0)

argparse.ArgumentParser.parse_args = list_actions
from cn_clip.training.params import parse_args
parse_args()
"""


@pytest.fixture(scope="session")
def reference_actions(
    run_reference: Callable[..., subprocess.CompletedProcess[str]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict]:
    answer = tmp_path_factory.mktemp("flags") / "flags.json"
    run_reference(LIST_FLAGS, str(answer))
    return {action["names"][-1]: action for action in json.loads(answer.read_text())}


@pytest.fixture(scope="session")
def our_actions() -> dict[str, argparse.Action]:
    return {action.option_strings[-1]: action for action in parser()._actions if action.dest != "help"}


@pytest.mark.parity
def test_same_flags_and_no_more_than_config_set_and_dry_run(
    reference_actions: dict, our_actions: dict
) -> None:
    assert len(reference_actions) == 46
    assert set(our_actions) == set(reference_actions) | {"--config", "--set", "--dry-run"}


@pytest.mark.parity
def test_same_types_and_arities(reference_actions: dict, our_actions: dict) -> None:
    for name, theirs in reference_actions.items():
        ours = our_actions[name]
        assert getattr(ours.type, "__name__", None) in (
            theirs["type"],
            "str" if theirs["choices"] else theirs["type"],
        ), name
        assert ours.nargs == theirs["nargs"], name
        assert ours.default is argparse.SUPPRESS, name


@pytest.mark.parity
def test_defaults_agree_value_by_value(reference_actions: dict) -> None:
    from cn_clip.training.registry import resolve_options

    config = build(TrainConfig, merge({}, parse_train_flags(["--train-data", "/d"])[1]), resolve_options)
    params = reference_params(config)
    expected = {
        name.lstrip("-").replace("-", "_"): action["default"] for name, action in reference_actions.items()
    }
    expected |= {"train_data": "/d", "aggregate": True}
    assert params == expected
