from __future__ import annotations

import json
from pathlib import Path

import pytest

from cn_clip.errors import ConfigError
from cn_clip.eval.zeroshot import chinese_prompts
from cn_clip.eval.zeroshot.templates import choose_templates, fill, read_templates


def test_our_prompts_name_the_class_and_do_not_repeat() -> None:
    assert len(chinese_prompts.GENERAL) >= 30
    for templates in (chinese_prompts.GENERAL, *chinese_prompts.BY_DATASET.values()):
        assert len(set(templates)) == len(templates)
        assert all(template.count("{}") == 1 for template in templates)


def test_sets_with_prompts_of_their_own() -> None:
    own = {
        "fgvc-aircraft-2013b-variants102",
        "food-101",
        "oxford-flower-102",
        "eurosat_clip",
        "resisc45_clip",
    }
    assert own | {"country211"} <= set(chinese_prompts.BY_DATASET)
    assert choose_templates("food-101") == chinese_prompts.BY_DATASET["food-101"]
    assert choose_templates("imagenet") == choose_templates("a set of mine") == chinese_prompts.GENERAL


def test_fill_keeps_other_braces() -> None:
    assert fill(("一张{}的{x}",), "{0}猫") == ["一张{0}猫的{x}"]


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_list_is_for_every_set(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"templates.{suffix}"
    path.write_text(
        '["一张{}的照片", "{}"]' if suffix == "json" else "- 一张{}的照片\n- '{}'\n", encoding="utf-8"
    )
    assert choose_templates("any", path) == ("一张{}的照片", "{}")


def test_lists_by_set_and_default(tmp_path: Path) -> None:
    path = tmp_path / "templates.json"
    path.write_text(json.dumps({"default": ["{}"], "food-101": ["一盘{}"]}), encoding="utf-8")
    assert choose_templates("food-101", path) == ("一盘{}",)
    assert choose_templates("imagenet", path) == ("{}",)
    path.write_text(json.dumps({"food-101": ["一盘{}"]}), encoding="utf-8")
    with pytest.raises(ConfigError, match="food-101, but neither for imagenet nor under default"):
        choose_templates("imagenet", path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no templates"),
        ("[]", "not a list of templates"),
        ("7", "holds no templates"),
        ('{"default": "一张{}"}', "not a list"),
        ('["一张照片"]', "'一张照片' has no {}"),
        ("[5]", "5 has no {}"),
        ("[", "neither JSON nor YAML"),
        ("!!python/object/apply:os.system [echo]", "neither JSON nor YAML"),
    ],
)
def test_bad_files_are_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "templates.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as error:
        read_templates(path)
    assert str(path) in str(error.value)


def test_missing_and_undecodable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the template file"):
        read_templates(tmp_path / "none.json")
    (tmp_path / "gbk.json").write_bytes('["一张{}"]'.encode("gbk"))
    with pytest.raises(ConfigError, match="UTF-8"):
        read_templates(tmp_path / "gbk.json")
