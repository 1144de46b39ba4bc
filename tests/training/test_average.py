"""The average of the weights: its formula, swapping it in and out, going on from a file."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from cn_clip.clip.model import CLIP, build_model
from cn_clip.config.schema import Ema, Model, Parallel
from cn_clip.errors import ConfigError
from cn_clip.training.average import WeightAverage
from cn_clip.training.freezing import freeze_towers


@pytest.fixture
def model() -> CLIP:
    torch.manual_seed(0)
    return build_model("tiny-resnet", "tiny-bert")


def move(model: CLIP, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator).to(p.dtype), alpha=0.01)


def copies(model: CLIP) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("warmup", [True, False])
def test_the_formula(model: CLIP, warmup: bool) -> None:
    average = WeightAverage(model, Ema(decay=0.3, warmup=warmup), Parallel())
    expected = model.text_projection.detach().double()
    for step in range(1, 6):
        move(model, step)
        average.update()
        decay = min(0.3, (1 + step) / (10 + step)) if warmup else 0.3
        expected = decay * expected + (1 - decay) * model.text_projection.detach().double()
        torch.testing.assert_close(
            average.state()["text_projection"].double(), expected, rtol=1e-6, atol=1e-8
        )
    assert average.num_updates == 5


def test_weights_come_back_to_the_bit(model: CLIP) -> None:
    average = WeightAverage(model, Ema(decay=0.9), Parallel())
    move(model, 1)
    average.update()
    live, parameter = copies(model), model.text_projection
    memory = parameter.data_ptr()
    with pytest.raises(KeyboardInterrupt), average.applied():
        for name, tensor in average.state().items():
            assert torch.equal(model.state_dict()[name], tensor), name
        assert not torch.equal(model.text_projection, live["text_projection"])
        raise KeyboardInterrupt
    assert all(torch.equal(tensor, live[name]) for name, tensor in model.state_dict().items())
    assert (model.text_projection is parameter, parameter.data_ptr()) == (True, memory)


def test_small_steps_are_not_lost_in_bf16(model: CLIP) -> None:
    model.text_projection.data = torch.ones_like(model.text_projection).bfloat16()
    average = WeightAverage(model, Ema(decay=0.999, warmup=False), Parallel())
    with torch.no_grad():
        model.text_projection.fill_(1.0078125)  # the next number of that type
    average.update()
    assert average.state()["text_projection"].dtype == torch.float32
    assert float(average.state()["text_projection"][0, 0]) == pytest.approx(1.0000078, abs=1e-7)
    with average.applied():
        assert model.text_projection.dtype == torch.bfloat16
        assert float(model.text_projection[0, 0].detach()) == 1.0
    assert float(model.text_projection[0, 0].detach()) == 1.0078125


def test_what_is_frozen_and_statistics_are_not_averaged(model: CLIP) -> None:
    freeze_towers(model, Model(freeze_text=True))
    average = WeightAverage(model, Ema(decay=0.9), Parallel())
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert average.state().keys() == trained


def test_going_on_from_a_file_is_going_on(model: CLIP) -> None:
    average = WeightAverage(model, Ema(decay=0.99), Parallel())
    for seed in range(3):
        move(model, seed)
        average.update()
    kept, num_updates = {name: t.clone() for name, t in average.state().items()}, average.num_updates
    other = build_model("tiny-resnet", "tiny-bert")
    other.load_state_dict(model.state_dict())
    resumed = WeightAverage(other, Ema(decay=0.99), Parallel())
    resumed.load(kept, num_updates)
    for which, towers in ((average, model), (resumed, other)):
        move(towers, 9)
        which.update()
    assert all(torch.equal(tensor, resumed.state()[name]) for name, tensor in average.state().items())


def test_what_a_file_has_no_average_of_starts_from_the_weights(
    model: CLIP, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    average = WeightAverage(model, Ema(decay=0.99), Parallel())
    file = {
        "text_projection": torch.zeros_like(model.text_projection),
        "visual.conv1.weight": torch.zeros(2, 2),
    }
    average.load(file, 7)
    assert average.num_updates == 7
    assert not average.state()["text_projection"].any()
    assert torch.equal(average.state()["visual.conv1.weight"], model.state_dict()["visual.conv1.weight"])
    assert f"{len(average.state()) - 1} parameters have no average in the checkpoint" in caplog.text


def test_zero3_is_refused(model: CLIP) -> None:
    with pytest.raises(ConfigError, match="zero3"):
        WeightAverage(model, Ema(decay=0.9), Parallel(engine="zero3"))
