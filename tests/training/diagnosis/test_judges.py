"""Verdicts on numbers: what is fine, what is slow, what is wrong, and that each has a next step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cn_clip.parallel.ranks import Ranks
from cn_clip.training.diagnosis import exact_step, kernels
from cn_clip.training.diagnosis.bandwidth import Bandwidth, check_bandwidth
from cn_clip.training.diagnosis.bound import Rates, check_bound
from cn_clip.training.diagnosis.fake_model import AttentionCall
from cn_clip.training.diagnosis.finding import Finding, in_bytes, rounded, text_of
from cn_clip.training.diagnosis.machine import is_checkout, judge_place, unlike_versions
from cn_clip.training.diagnosis.step_rate import StepRate, check_step

ALONE = Ranks(0, 1, 0, torch.device("cpu"))
FINE = Rates(
    step=100.0,
    loader=500.0,
    network_seconds=0.1,
    step_seconds=1.0,
    memory_bytes=1e9,
    available_bytes=2e9,
    num_workers=4,
    cores_a_rank=8,
)


def test_a_bad_finding_needs_a_next_step() -> None:
    with pytest.raises(AssertionError):
        Finding(check="memory", says="too much", verdict="wrong")


def test_a_finding_reads_as_check_verdict_sentence_and_next_step() -> None:
    text = text_of(Finding(check="loader", says="1 pair/s", verdict="slow", next_step="more workers"))
    first, second = text.splitlines()
    assert first.split() == ["loader", "SLOW", "1", "pair/s"]
    assert second.strip() == "-> more workers"
    assert second.index("->") == first.index("1 pair/s")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**30, "3.0 GiB"), (2**42, "4.0 TiB")],
)
def test_bytes_have_a_unit(count: int, text: str) -> None:
    assert in_bytes(count) == text


@pytest.mark.parametrize(
    ("rates", "bound", "verdict"),
    [
        (FINE, "compute", "ok"),
        (replace(FINE, loader=None, network_seconds=None), "compute", "ok"),
        (replace(FINE, wastes=True), "compute", "slow"),
        (replace(FINE, loader=60.0), "loader", "slow"),
        (replace(FINE, loader=105.0), "loader", "slow"),
        (replace(FINE, network_seconds=0.7), "network", "slow"),
        (replace(FINE, memory_bytes=3e9), "memory", "wrong"),
        (replace(FINE, memory_bytes=3e9, loader=1.0, network_seconds=5.0), "memory", "wrong"),
    ],
)
def test_what_bounds_a_run(rates: Rates, bound: str, verdict: str) -> None:
    found = check_bound(rates)
    assert (found.numbers["bound"], found.verdict) == (bound, verdict)
    assert found.says.endswith(".")


def test_a_slow_loader_is_given_workers_while_there_are_cores() -> None:
    assert "data.num_workers" in check_bound(replace(FINE, loader=10.0)).next_step
    assert "cores" in check_bound(replace(FINE, loader=10.0, num_workers=8)).next_step
    assert "90%" in check_bound(replace(FINE, loader=10.0)).says


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [(3e-7, "ok"), (1e-5, "ok"), (0.4, "wrong"), (float("nan"), "wrong"), (float("inf"), "wrong")],
)
def test_a_gradient_that_did_not_meet_is_wrong(difference: float, verdict: str) -> None:
    assert exact_step.judge(difference, "ddp", 2, replace(ALONE, world_size=2)).verdict == verdict


def test_the_difference_of_gradients_is_that_of_all_together() -> None:
    whole = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    assert exact_step.relative_difference(whole, dict(whole)) == 0
    assert exact_step.relative_difference(whole, whole | {"b": torch.tensor([4.5])}) == pytest.approx(0.1)
    assert exact_step.relative_difference(whole, {"a": whole["a"]}) == float("inf")


def test_links_are_judged_by_their_kind() -> None:
    slow = Bandwidth({2**26: 0.1}, {2**26: 0.1}, world_size=2)
    assert check_bandwidth(slow, "cpu").verdict == "ok"
    found = check_bandwidth(slow, "cuda")
    assert found.verdict == "slow" and "NCCL_DEBUG" in found.next_step
    assert check_bandwidth(None, "cpu").verdict == "ok"


def test_rates_are_of_the_largest_size_and_of_what_arrives() -> None:
    found = Bandwidth({8: 1.0, 100: 2.0}, {8: 1.0, 100: 4.0}, world_size=3)
    assert found.reduce_bytes_per_second == 25
    assert found.gather_bytes_per_second == 100


def rate(share: float, *, is_measured: bool = True) -> StepRate:
    return StepRate(10.0, 1.0, is_measured, share * 1e12, 1e12, "" if is_measured else "it is too large")


def test_a_step_that_does_little_arithmetic_is_slow() -> None:
    assert check_step(rate(0.6)).verdict == "ok"
    assert check_step(rate(0.05)).verdict == "slow"
    computed = check_step(rate(0.05, is_measured=False))
    assert computed.verdict == "ok" and "it is too large" in computed.says


CALL = AttentionCall((64, 12, 52, 64), (64, 12, 52, 64), torch.float32, masked=True, dropout=0.0)


def test_kernels_are_judged_by_what_was_asked_for() -> None:
    def verdict(fitting: list[str], device: str, *, wants_flash: bool) -> str:
        return kernels.judge("image", CALL, fitting, device, wants_flash=wants_flash).verdict

    assert verdict(["flash"], "cuda", wants_flash=True) == "ok"
    assert verdict(["memory-efficient"], "cuda", wants_flash=True) == "slow"
    assert verdict(["memory-efficient"], "cuda", wants_flash=False) == "ok"
    assert verdict([], "cuda", wants_flash=False) == "slow"
    assert verdict([], "cpu", wants_flash=False) == "ok"


def test_kernels_are_tried_for_real() -> None:
    cpu = torch.device("cpu")
    assert kernels.fitting_kernels(replace(CALL, masked=False), cpu) == ["flash"]
    # no fused kernel of the CPU drops weights
    assert kernels.fitting_kernels(replace(CALL, dropout=0.1), cpu) == []


def checkout(folder: Path) -> Path:
    (folder / "cn_clip" / "training").mkdir(parents=True)
    (folder / "cn_clip" / "training" / "main.py").touch()
    (folder / "run_scripts").mkdir()
    return folder


def test_another_copy_than_the_checkouts_is_wrong(tmp_path: Path) -> None:
    """D-47: an installed package shadowed the checkout that scripts were run from."""
    here = checkout(tmp_path / "mine")
    (here / "data").mkdir()
    assert is_checkout(here)
    own = here / "cn_clip"
    assert judge_place("1.0", {}, own, here / "data").verdict == "ok"
    assert judge_place("1.0", {}, own, tmp_path).verdict == "ok"
    installed = tmp_path / "site-packages" / "cn_clip"
    found = judge_place("1.0", {}, installed, here / "data")
    assert found.verdict == "wrong" and str(here) in found.says


def test_other_versions_on_other_ranks_are_wrong() -> None:
    assert unlike_versions([3, 5]).verdict == "wrong"


@pytest.mark.parametrize(
    ("rate", "read"), [(1024.4, "1,024"), (150.3, "150"), (12.345, "12.3"), (0.01234, "0.0123")]
)
def test_rates_are_read_as_numbers(rate: float, read: str) -> None:
    assert rounded(rate) == read
