"""The guide of importing has every kind, every flag with its default, and commands that can be given as they stand."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from cn_clip.preprocess.importing.command import kinds, parse
from cn_clip.preprocess.importing.run_options import RunOptions

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "docs/importing.md", ROOT / "docs/zh/importing.md"]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def commands(page: Path) -> list[list[str]]:
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    return [words[2:] for words in lines if words[:2] == ["cn-clip", "import"]]


@each_page
def test_every_command_parses_and_every_kind_has_one(page: Path) -> None:
    found = {parse(words, "")[0] for words in commands(page)}
    assert found == set(kinds())


def test_both_languages_give_the_same_commands_and_parts() -> None:
    assert commands(PAGES[0]) == commands(PAGES[1])
    levels = [re.findall(r"^#+ ", page.read_text(encoding="utf-8"), flags=re.M) for page in PAGES]
    assert levels[0] == levels[1]


def flags_of(cls: type) -> dict[str, object]:
    """Flag -> its default."""
    found = {}
    for field in dataclasses.fields(cls):
        flag = f"--{field.name.replace('_', '-')}"
        found["--no-header" if flag == "--header" else flag] = False if flag == "--header" else field.default
    return found


@each_page
def test_every_flag_stands_with_its_default(page: Path) -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `--")
    ]
    table = {(flag, cells[1]) for cells in rows for flag in re.findall(r"`(--[\w-]+)`", cells[0])}
    for name, cls in {
        "every kind": RunOptions,
        **{kind: module.Options for kind, module in kinds().items()},
    }.items():
        for flag, default in flags_of(cls).items():
            usual = {repr(None): ("-", "-"), repr(False): ("off", "关"), repr(()): ("all", "全部")}
            shown = usual.get(repr(default), (f"`{default}`",) * 2)
            if default is dataclasses.MISSING:
                shown = ("required", "必填")
            assert any((flag, cell) in table for cell in shown), (
                f"{flag} of {name}: its default is {default!r}"
            )


def test_every_kind_says_what_was_taken_as_given() -> None:
    for kind, module in kinds().items():
        assert kind == "folder" or "Taken as given" in " ".join(module.__doc__.split()), kind


def test_no_flag_hides_another() -> None:
    for module in kinds().values():
        names = [field.name for cls in (module.Options, RunOptions) for field in dataclasses.fields(cls)]
        assert len(set(names)) == len(names)
    with pytest.raises(SystemExit):
        parse(["folder"], "")
