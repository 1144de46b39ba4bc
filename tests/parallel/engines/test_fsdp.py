"""How a model is prepared for FSDP2. What it does is in tests/exactness, with real ranks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cn_clip.clip.model import build_model
from cn_clip.clip.precision import convert_weights
from cn_clip.config.schema import Parallel
from cn_clip.errors import ConfigError
from cn_clip.parallel.engines import ddp, fsdp
from cn_clip.parallel.precision import Precision
from cn_clip.parallel.ranks import Ranks

CPU = torch.device("cpu")


def test_what_is_left_out_comes_back_to_its_place() -> None:
    model = build_model("tiny-vit", "tiny-bert")
    before = dict(model.named_parameters())
    with fsdp._left_out(model, fsdp._kept_whole(model)):
        inside = dict(model.named_parameters())
        model.text_projection = nn.Parameter(torch.zeros(3, 3))  # as sharding puts another object there
    assert inside and all(parameter.dim() >= 2 for parameter in inside.values())
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert after["text_projection"].shape == (3, 3)
    assert all(after[name] is parameter for name, parameter in before.items() if name != "text_projection")


def test_few_weights_are_kept_whole() -> None:
    model = build_model("ViT-B-16", "RoBERTa-wwm-ext-base-chinese")
    whole = sum(parameter.numel() for parameter in fsdp._kept_whole(model))
    assert whole < 0.002 * sum(parameter.numel() for parameter in model.parameters())


def test_weights_of_another_type_than_most_are_kept_whole() -> None:
    model = build_model("tiny-vit", "tiny-bert")
    convert_weights(model, torch.bfloat16)
    kept = fsdp._kept_whole(model)
    cut = {parameter.dtype for parameter in model.parameters() if parameter not in kept}
    assert cut == {torch.bfloat16}


@pytest.mark.parametrize("size", [3, 8])
def test_shards_that_ranks_cannot_be_divided_into(size: int) -> None:
    with pytest.raises(ConfigError, match=f"shard_ranks is {size}, but 4 ranks are no multiple of it"):
        fsdp._mesh(Parallel(engine="fsdp", shard_ranks=size), Ranks(0, 4, 0, CPU))


def test_one_process_has_plain_copies() -> None:
    engine = fsdp.build(nn.Linear(2, 2), Parallel(engine="fsdp"), Precision("fp32", CPU), Ranks(0, 1, 0, CPU))
    assert isinstance(engine, ddp.CopiesEngine)
