"""Every YAML of the page on training sets is one that training takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from cn_clip.training.build import build_config

DOCS = Path(__file__).parents[2] / "docs"
BLOCKS = [
    pytest.param(block, id=f"{page.parent.name}-{number}")
    for page in (DOCS / "training-sets.md", DOCS / "zh" / "training-sets.md")
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.S))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_settings_to_copy_are_settings(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAPATH", "/data")
    assert build_config(yaml.safe_load(block)).data.train is not None


def test_both_languages_give_the_same_settings() -> None:
    blocks = [param.values[0] for param in BLOCKS]
    half = len(blocks) // 2
    assert half > 5 and blocks[:half] == blocks[half:]
