"""What a checkpoint holds: the weights to use in `state_dict`, and beside them only what these cannot tell."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cn_clip.clip.weights import Checkpoint, Weights
from cn_clip.errors import WeightsError
from cn_clip.training.checkpoints.content import Captured, check_format, own_weights, to_content
from cn_clip.training.checkpoints.position import Position

LIVE = {"visual.w": torch.tensor([1.0, -0.0, 3.0]), "bert.w": torch.tensor([4.0]), "scale": torch.tensor(2.0)}


def content(
    live: Weights, average: Weights | None = None, merge: Callable[[Weights], Weights] = dict
) -> Checkpoint:
    captured = Captured(
        name="run",
        position=Position(1, 2, 3),
        live=live,
        average=average,
        num_updates=7,
        optimizer={},
        scaler={},
        origin={"settings": {}, "world_size": 1},
        best=0.5,
    )
    return to_content(captured, merge)


def same(one: Weights | None, other: Weights) -> bool:
    return one is not None and one.keys() == other.keys() and all(bits(one[n]) == bits(other[n]) for n in one)


def bits(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()


def test_without_average_and_adapters_nothing_stands_beside() -> None:
    made = content(LIVE)
    assert same(made["state_dict"], {f"module.{name}": tensor for name, tensor in LIVE.items()})
    assert made["cn_clip"]["live"]["differ"] == {} and made["cn_clip"]["average"] is None
    assert same(own_weights(made, "live"), LIVE) and own_weights(made, "average") is None


def test_the_average_is_used_and_the_live_weights_stand_beside() -> None:
    average = {"visual.w": torch.tensor([1.0, 0.0, 3.0]), "bert.w": torch.tensor([5.0])}
    made = content(LIVE, average)
    assert made["state_dict"]["module.bert.w"].item() == 5
    # 0.0 and -0.0 are equal and yet not the same
    assert made["cn_clip"]["live"]["differ"].keys() == {"visual.w", "bert.w"}
    assert made["cn_clip"]["average"]["differ"] == {}
    assert same(own_weights(made, "live"), LIVE) and same(own_weights(made, "average"), average)


def test_an_average_finer_than_the_weights_is_kept_whole() -> None:
    live, average = {"w": torch.ones(2, dtype=torch.bfloat16)}, {"w": torch.tensor([1.0001, 1.0])}
    made = content(live, average)
    assert made["state_dict"]["module.w"].dtype == torch.bfloat16
    assert same(own_weights(made, "average"), average)


def test_adapters_are_merged_and_come_back() -> None:
    def merge(weights: Weights) -> Weights:
        return {"w": weights["w.base"] + weights["w.adapter"], "other": weights["other"]}

    live = {"w.base": torch.ones(2), "w.adapter": torch.tensor([0.0, 2.0]), "other": torch.zeros(1)}
    average = {"w.adapter": torch.tensor([0.0, 1.0])}
    made = content(live, average, merge)
    assert made["state_dict"].keys() == {"module.w", "module.other"}
    assert made["state_dict"]["module.w"].tolist() == [1, 2]
    assert same(own_weights(made, "live"), live) and same(own_weights(made, "average"), average)


def test_a_newer_format_is_refused_by_name() -> None:
    with pytest.raises(WeightsError, match=r"new\.pt was written by cn_clip 9 in format 99"):
        check_format({"cn_clip": {"format": 99, "version": "9"}}, "new.pt")
    check_format({}, "one of the reference")
