from __future__ import annotations

import json
from pathlib import Path

import pytest

from cn_clip.errors import DataError
from data_tools.reference_templates import USED, main


def write_copy(folder: Path, **lists: str) -> Path:
    """A folder like an installed cn-clip, whose file of prompts would end the process if it were run."""
    lines = ["raise SystemExit('this file was run')"]
    lines += [f"{name} = {lists.get(name, DEFAULT_LIST)}" for name in sorted(set(USED.values()))]
    path = folder / "cn_clip" / "eval" / "cvinw_zeroshot_templates.py"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines), encoding="utf-8")
    return folder


DEFAULT_LIST = "[lambda c: f'图中有{c}。', lambda name: f'{name}']"


@pytest.mark.parametrize("below", ["", "cn_clip", "cn_clip/eval"])
def test_lambdas_become_templates(below: str, tmp_path: Path) -> None:
    copy = write_copy(
        tmp_path,
    )
    main(["--reference", str(copy / below), "--output", str(tmp_path / "out.json")])
    sets = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert set(sets) == set(USED)
    assert all(templates == ["图中有{}。", "{}"] for templates in sets.values())


@pytest.mark.parametrize(
    "prompt",
    [
        "lambda c: f'{c!r}'",
        "lambda c: f'{c:>9}'",
        "lambda c: f'{c.upper()}'",
        "lambda c: f'{other}'",
        "lambda c: f'{{}}{c}'",
        "lambda c: open(c).read()",
        "lambda c, d: f'{c}'",
    ],
)
def test_anything_else_is_refused_with_its_line(prompt: str, tmp_path: Path) -> None:
    copy = write_copy(tmp_path, food_templates=f"[{prompt}]")
    with pytest.raises(DataError, match=r"cvinw_zeroshot_templates.py line \d+"):
        main(["--reference", str(copy), "--output", str(tmp_path / "out.json")])
    assert not (tmp_path / "out.json").exists()


def test_a_folder_without_prompts_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no cn_clip/eval"):
        main(["--reference", str(tmp_path), "--output", str(tmp_path / "out.json")])


def test_a_copy_without_the_never_used_lists_is_another_version(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is it a copy of cn-clip 1.6.0"):
        main(
            ["--reference", str(write_copy(tmp_path)), "--output", str(tmp_path / "out.json"), "--every-set"]
        )
