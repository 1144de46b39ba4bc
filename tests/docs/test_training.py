"""Every YAML and every command of the guide to training is one that training takes, in both languages the same."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from cn_clip.config.legacy_flags import parse_train_flags
from cn_clip.config.load import merge, read_yaml
from cn_clip.training.build import build_config

DOCS = Path(__file__).parents[2] / "docs"
PAGES = (DOCS / "training.md", DOCS / "zh" / "training.md")


def fenced(page: Path, language: str) -> list[str]:
    """Code blocks of a language, those inside lists without their indentation."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.M | re.S)
    return [re.sub(rf"^{indent}", "", block, flags=re.M) for indent, block in found]


def commands(page: Path) -> list[str]:
    """Words of each command of training, continued lines joined; sketches with `...` left out."""
    lines = "".join(fenced(page, "bash")).replace("\\\n", " ").splitlines()
    found = [line.partition("cn_clip/training/main.py ")[2] for line in lines]
    return [words.partition(" #")[0] for words in found if words and "..." not in words]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the guide's first YAML as `mine.yaml`, which its others are laid over."""
    monkeypatch.setenv("DATAPATH", "/data")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(fenced(PAGES[0], "yaml")[0], encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("block", fenced(PAGES[0], "yaml"))
def test_settings_to_copy_are_settings(block: str, mine: Path) -> None:
    (mine / "other.yaml").write_text(block, encoding="utf-8")
    assert build_config(read_yaml(mine / "other.yaml")).data.train is not None


@pytest.mark.parametrize("words", commands(PAGES[0]))
def test_commands_to_copy_are_commands(words: str, mine: Path) -> None:
    config_path, overrides = parse_train_flags(shlex.split(words.replace("$DATAPATH", "/data")))
    settings = read_yaml(config_path) if config_path else {}
    if config_path or "--train-data" in words:
        assert build_config(merge(settings, overrides)).data.train is not None


def test_both_languages_give_the_same() -> None:
    blocks: list[list[Any]] = [list(map(yaml.safe_load, fenced(page, "yaml"))) for page in PAGES]
    assert blocks[0] == blocks[1] and len(blocks[0]) > 10
    assert commands(PAGES[0]) == commands(PAGES[1]) and len(commands(PAGES[0])) > 10
