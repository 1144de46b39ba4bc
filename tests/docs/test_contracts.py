"""The developers' documents name tests and files that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
TOP = ("cn_clip", "configs", "data_tools", "docs", "run_scripts", "tests")
ARCHITECTURE = DOCS / "architecture.md"
DEVELOPERS = [
    *(
        DOCS / f"{name}.md"
        for name in ("architecture", "benchmarks", "change", "changelog", "contracts", "contributing")
    ),
    *sorted((DOCS / "decisions").glob("*.md")),
]
NAMES_TESTS = ("contracts.md", "change.md", "contributing.md")
NAMES_FILES = ("architecture.md", "contracts.md", "change.md", "contributing.md", "benchmarks.md")


@cache
def functions_of(path: Path) -> frozenset[str]:
    """Names of the test functions of a file, also those inside classes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return frozenset(node.name for node in functions if node.name.startswith("test"))


def named_tests(text: str) -> list[tuple[str, str]]:
    return re.findall(r"(tests/[\w/.-]+\.py)::(\w+)", text)


def named_files(text: str) -> set[str]:
    """Words in backticks that are paths below one of the top folders; patterns and `NAME` are no file."""
    words = {word for span in re.findall(r"`([^`\n]+)`", text) for word in span.split()}
    paths = {word.rstrip(",;:.").partition("::")[0] for word in words}
    below = {path for path in paths if path.split("/")[0] in TOP and "/" in path}
    return {path for path in below if "NAME" not in path and not set("*{<$…") & set(path)}


@pytest.mark.parametrize("name", NAMES_TESTS)
def test_every_named_test_exists(name: str) -> None:
    named = named_tests((DOCS / name).read_text(encoding="utf-8"))
    assert named or name != "contracts.md"
    missing = [
        f"{path}::{test}"
        for path, test in named
        if not (ROOT / path).is_file() or test not in functions_of(ROOT / path)
    ]
    assert missing == []


@pytest.mark.parametrize("name", NAMES_FILES)
def test_every_named_file_exists(name: str) -> None:
    named = named_files((DOCS / name).read_text(encoding="utf-8"))
    assert named
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


def test_every_folder_of_the_package_is_explained() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    folders = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "cn_clip").rglob("*.py")}
    assert sorted(folder for folder in folders if f"{folder}/" not in text) == []


def test_the_layers_are_those_that_are_checked() -> None:
    """The drawing and import-linter's list name the same folders."""
    drawing = ARCHITECTURE.read_text(encoding="utf-8").split("```")[1]
    checked = re.findall(
        r"cn_clip\.(\w+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("layers = [")[1]
    )
    assert checked
    assert [name for name in checked if not re.search(rf"\b{name}(/|\.py)", drawing)] == []


@pytest.mark.parametrize("path", DEVELOPERS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    here = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in here if not (path.parent / link).exists()] == []


def test_decisions_are_numbered_without_gaps_and_say_their_three_parts() -> None:
    notes = sorted((DOCS / "decisions").glob("*.md"))
    assert [int(note.name[:4]) for note in notes] == list(range(1, len(notes) + 1))
    for note in notes:
        text = note.read_text(encoding="utf-8")
        assert [
            part for part in ("## Context", "## Decision", "## Consequences") if part not in text
        ] == [], note.name
