"""Names of cn-clip's training modules: kept, or an import error that names the replacement."""

from __future__ import annotations

import importlib
import pkgutil
import re
from types import SimpleNamespace

import pytest
import torch

from cn_clip.training.main import is_master
from cn_clip.training.scheduler import cosine_lr
from cn_clip.training.train import REPLACEMENTS


def test_cosine_lr_sets_every_group_and_stays_a_plain_float() -> None:
    optimizer = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)], lr=1.0)
    set_lr = cosine_lr(optimizer, 0.1, 4, 20)
    assert [round(set_lr(step), 6) for step in (0, 3, 4, 12, 20)] == [0.025, 0.1, 0.1, 0.05, 0.0]
    set_lr(12)
    assert all(
        type(group["lr"]) is float and group["lr"] == pytest.approx(0.05) for group in optimizer.param_groups
    )


@pytest.mark.parametrize("name", REPLACEMENTS)
def test_loop_functions_name_what_replaces_them(name: str) -> None:
    with pytest.raises(ImportError, match="is not kept; use "):
        getattr(importlib.import_module("cn_clip.training.train"), name)


def test_replacements_exist() -> None:
    named = [word for words in REPLACEMENTS.values() for word in re.findall(r"cn_clip(?:\.\w+)+", words)]
    assert len(named) >= len(REPLACEMENTS)
    for word in named:
        pkgutil.resolve_name(word)


def test_is_master() -> None:
    assert is_master(SimpleNamespace(rank=0)) and not is_master(SimpleNamespace(rank=1))


def test_main_offers_convert_models_to_fp32() -> None:
    from cn_clip.training.main import convert_models_to_fp32

    model = torch.nn.Linear(2, 2).half()
    convert_models_to_fp32(model)
    assert all(parameter.dtype is torch.float32 for parameter in model.parameters())
