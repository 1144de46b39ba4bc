"""The loss scale of fp16 moves as torch's own does; the arithmetic of a step under it is in tests/exactness."""

from __future__ import annotations

import pytest
import torch

from cn_clip.parallel.precision import GROWTH_INTERVAL, LossScale, Precision


def their_scale(finite: list[bool], tracker: int) -> list[dict[str, float]]:
    """State of torch's scaler after each step with these gradients."""
    scaler = torch.amp.GradScaler("cpu")
    scaler.load_state_dict({**scaler.state_dict(), "_growth_tracker": tracker})
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight])
    states = []
    for is_finite in finite:
        scaler.scale(weight.sum()).backward()
        if not is_finite:
            weight.grad = torch.tensor([1.0, float("inf")])
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        states.append(dict(scaler.state_dict()))
    return states


@pytest.mark.parametrize("tracker", [0, GROWTH_INTERVAL - 2])
def test_it_shrinks_and_grows_as_torch_s_does(tracker: int) -> None:
    finite = [True, False, False, True, True, True]
    ours = LossScale(enabled=True)
    ours.load_state_dict({**ours.state_dict(), "_growth_tracker": tracker})
    states = []
    for is_finite in finite:
        ours.update(applied=is_finite)
        states.append(ours.state_dict())
    assert states == their_scale(finite, tracker)


def test_it_grows_after_a_long_row() -> None:
    scale = LossScale(enabled=True)
    for _ in range(GROWTH_INTERVAL):
        scale.update(applied=True)
    assert scale.value == 2.0**17


def test_torch_s_scaler_goes_on_from_its_state_and_it_from_torch_s() -> None:
    ours = LossScale(enabled=True)
    ours.update(applied=False)
    theirs = torch.amp.GradScaler("cpu")
    theirs.load_state_dict(ours.state_dict())
    assert theirs.get_scale() == ours.value == 2.0**15
    again = LossScale(enabled=True)
    again.load_state_dict(theirs.state_dict())
    assert again.state_dict() == ours.state_dict()


def test_without_fp16_there_is_none() -> None:
    precision = Precision("amp_bf16", torch.device("cpu"))
    precision.loss_scale.update(applied=False)
    precision.load_state_dict({"scale": 4.0, "_growth_tracker": 1})  # of a run on a GPU
    assert (precision.loss_scale.value, precision.state_dict()) == (1.0, {})
