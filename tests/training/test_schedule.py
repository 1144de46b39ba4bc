"""Learning rate and mask ratio of each step."""

from __future__ import annotations

import pytest

from cn_clip.config.schema import Model, Optim
from cn_clip.errors import ConfigError
from cn_clip.training.mask_schedule import MaskSchedule
from cn_clip.training.schedule import Schedule, warmup_cosine


def curve(total: int, **settings: object) -> list[float]:
    schedule = Schedule(Optim(lr=1.0, **settings), total)  # type: ignore[arg-type]  # each a field of Optim
    return [schedule.lr(step) for step in range(1, total + 1)]


@pytest.mark.parametrize(("warmup", "total"), [(100, 300), (0, 40), (7, 8), (50, 20)])
def test_the_cosine_is_the_reference_s_to_the_bit(warmup: int, total: int) -> None:
    schedule = Schedule(Optim(lr=5e-5, warmup_steps=warmup), total)
    for step in range(1, total + 1):
        expected = warmup_cosine(step - 1, base_lr=5e-5, warmup_steps=warmup, total_steps=total)
        assert schedule.lr(step) == expected


def test_a_cosine_that_ends_above_zero() -> None:
    rates = curve(101, warmup_steps=1, end_lr=0.1)
    assert rates[0] == rates[1] == 1
    assert rates[51] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert rates[1:] == sorted(rates[1:], reverse=True)


def test_warm_up_is_the_same_whatever_follows() -> None:
    curves = [
        curve(40, warmup_steps=8, schedule=kind, cooldown_steps=10, end_lr=0.2)
        for kind in ("cosine", "constant", "cooldown")
    ]
    assert [rates[:8] for rates in curves] == [[step / 8 for step in range(1, 9)]] * 3


def test_constant() -> None:
    assert curve(20, warmup_steps=4, schedule="constant")[3:] == [1.0] * 17


def test_cooldown_is_a_straight_line_at_the_end() -> None:
    rates = curve(20, warmup_steps=2, schedule="cooldown", cooldown_steps=5, end_lr=0.5)
    assert rates[1:16] == [1.0] * 15
    assert rates[16:] == pytest.approx([0.9, 0.8, 0.7, 0.6])


def test_a_cooldown_longer_than_what_follows_the_warm_up() -> None:
    rates = curve(10, warmup_steps=6, schedule="cooldown", cooldown_steps=9)
    assert rates[5:] == pytest.approx([1.0, 1.0, 0.75, 0.5, 0.25])


def test_a_cooldown_of_no_steps() -> None:
    with pytest.raises(ConfigError, match="cooldown_steps is 0"):
        Schedule(Optim(lr=1.0, schedule="cooldown"), 10)


def ratios(total: int, **settings: object) -> list[float]:
    schedule = MaskSchedule(Model(mask_ratio=0.5, **settings), total)  # type: ignore[arg-type]  # fields of Model
    return [schedule.ratio(step) for step in range(1, total + 1)]


def test_a_constant_mask_with_an_unmasked_tail() -> None:
    assert ratios(10) == [0.5] * 10
    assert ratios(10, unmasked_share=0.3) == [0.5] * 7 + [0.0] * 3


@pytest.mark.parametrize(("kind", "middle"), [("linear", 0.25), ("cosine", 0.25)])
def test_a_mask_that_goes_to_zero_before_the_tail(kind: str, middle: float) -> None:
    found = ratios(25, mask_schedule=kind, unmasked_share=0.2)
    assert found[0] == 0.5
    assert found[10] == pytest.approx(middle)
    assert found[:20] == sorted(found[:20], reverse=True)
    assert found[20:] == [0.0] * 5
    assert all(ratio > 0 for ratio in found[:20])


def test_no_mask() -> None:
    schedule = MaskSchedule(Model(mask_schedule="cosine"), 5)
    assert [schedule.ratio(step) for step in range(1, 6)] == [0.0] * 5
