"""One optimizer step is a function of the weights, the global batch and the seed, not of how the batch was cut.

Real processes over gloo, with dropout and FLIP on: every engine under every cut against one process with one batch. Each
number of processes is started once for all cases; then one process goes on from what two have saved.

Bounds: sums of fp32 in another order differ by some 1e-7 of their size, and a gradient is such a sum over pairs, ranks
and blocks. Seen: gradients 4e-7 to 1e-6 of their length, weights after two steps 3e-8; asserted: five times as much. A
wrong scale, a lost or doubled micro-batch or another mask is 0.01 to 1.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cn_clip.parallel import sharded_files

WORKER = Path(__file__).with_name("gradients_worker.py")
ROOT = Path(__file__).resolve().parents[2]
GRADIENT_BOUND, WEIGHT_BOUND = 5e-6, 2e-7

pytestmark = pytest.mark.slow  # processes, each importing torch

PLAIN: dict[str, Any] = {
    "engine": "ddp", "image": "tiny-vit", "frozen": "none", "dropout": 0.1, "mask_ratio": 0.5, "keyed": True,
    "targets": "diagonal", "gather": True, "gradient": "exact", "tile": 5, "recompute": False, "trim": True,
    "precision": "fp32", "max_norm": None, "scaled": False, "poisoned": False, "kept": None, "resumed": None,
    "parallel": {}, "dense": 0,
}  # fmt: skip
ENGINES = ("ddp", "fsdp", "zero1", "zero2", "zero3")
ZERO = ("zero1", "zero2", "zero3")
SHARDING = ("ddp", "fsdp")
"""Engines whose parts can be written to a folder."""
CUTS = ((1, 4), (2, 2), (4, 1))
"""World size and micro-batches per rank, each against (1, 1)."""
CUT_UP = {"parallel": {"deepspeed_config": str(Path(__file__).with_name("zero3.json"))}}
"""ZeRO-3 keeps small parameters whole; without this all of a small model would be."""

ALIKE: tuple[tuple[str, dict[str, Any]], ...] = (
    *(("ddp", variant) for variant in (
        {"targets": "positives"}, {"recompute": True}, {"trim": False}, {"tile": 1}, {"tile": 16},
        {"frozen": "image"}, {"frozen": "text"}, {"max_norm": 0.5}, {"scaled": True, "max_norm": 0.5},
        {"poisoned": True},
    )),
    *(("fsdp", variant) for variant in (
        {"recompute": True}, {"frozen": "image"}, {"frozen": "text"}, {"max_norm": 0.5},
        {"scaled": True, "max_norm": 0.5}, {"scaled": True, "poisoned": True}, {"parallel": {"reshard": False}},
        {"parallel": {"sync": "micro_batch"}},
    )),
    *(("zero1", variant) for variant in ({"frozen": "text"}, {"max_norm": 0.5}, {"poisoned": True})),
    *(("zero2", variant) for variant in ({"max_norm": 0.5}, {"poisoned": True})),
    *(("zero3", variant) for variant in (
        CUT_UP, {"recompute": True, **CUT_UP}, {"frozen": "image"}, {"max_norm": 0.5, **CUT_UP}, {"poisoned": True},
    )),
)  # fmt: skip
"""(engine, variant) on two ranks with two micro-batches, against the same variant in one process with one batch."""
HSDP: tuple[dict[str, Any], ...] = (
    {"parallel": {"shard_ranks": 2}, "max_norm": 0.5},
    {"parallel": {"shard_ranks": 2, "sync": "micro_batch"}, "max_norm": 0.5},
)
RESNET = {"image": "tiny-resnet", "mask_ratio": 0.0}
LOOSE: tuple[dict[str, Any], ...] = ({"gather": False}, {"gradient": "reference"}, {"keyed": False})

Step = Callable[..., dict[str, Any]]


def start(world_size: int, cases: list[dict[str, Any]], output: Path) -> list[dict[str, Any]]:
    """Results of cases in `world_size` processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world_size}", "--"]
    words = [*(torchrun if world_size > 1 else []), str(WORKER), json.dumps(cases), str(output)]
    done = subprocess.run(
        [sys.executable, *words],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
    )
    said = [line for line in done.stderr.splitlines() if world_size == 1 or line.startswith("[rank0]")]
    assert done.returncode == 0, "\n".join([*done.stdout.splitlines()[-1:], *said[-40:]])
    results: list[dict[str, Any]] = torch.load(output, weights_only=True)
    return results


def case_of(engine: str, accumulate: int, **variant: Any) -> dict[str, Any]:
    return {**PLAIN, "engine": engine, "accumulate": accumulate, **variant}


def alone(variant: dict[str, Any]) -> dict[str, Any]:
    """The variant without what only several ranks can have."""
    return {**variant, "parallel": {}, "poisoned": False, "scaled": False}


def all_cases(folder: Path) -> list[tuple[int, list[dict[str, Any]]]]:
    """World size and its cases, in the order in which they are started: later ones go on from what earlier ones kept."""
    whole = str(folder / "ddp1.pt")
    one = [case_of("ddp", 1, kept=whole), case_of("ddp", 4)]
    one += [case_of("ddp", 1, **variant) for variant in (*LOOSE, *(alone(variant) for _, variant in ALIKE))]
    one += [case_of("ddp", 1, gather=False, dense=2)]
    one += [case_of("ddp", 4, keyed=False), case_of("ddp", 4, **RESNET)]
    one += [case_of(engine, 4) for engine in ZERO]
    two = [case_of(engine, 2, kept=str(folder / f"{engine}.pt")) for engine in ENGINES]
    two += [case_of(engine, 2, **variant) for engine, variant in ALIKE]
    two += [case_of(engine, 2, resumed=whole) for engine in ENGINES]
    two += [case_of("ddp", 2, **variant) for variant in LOOSE]
    two += [case_of(engine, 2, gather=False) for engine in ("fsdp", "zero2")]
    two += [case_of(engine, 2, **RESNET) for engine in SHARDING]
    # last: DeepSpeed keeps for the process that autocast was once chosen
    two += [case_of(engine, 2, precision="amp_bf16") for engine in ENGINES]
    four = [case_of(engine, 1) for engine in ENGINES] + [case_of("fsdp", 2, **variant) for variant in HSDP]
    four += [case_of("fsdp", 1, resumed=str(folder / "fsdp"))]
    again = [case_of("ddp", 1, resumed=str(folder / f"{engine}.pt")) for engine in ENGINES]
    again += [case_of("ddp", 1, resumed=str(folder / engine)) for engine in SHARDING]
    return [(1, _distinct(one)), (2, _distinct(two)), (4, four), (1, again)]


def _distinct(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({json.dumps(case, sort_keys=True): case for case in cases}.values())


def _key(world_size: int, case: dict[str, Any]) -> str:
    return json.dumps([world_size, {**case, "kept": None}], sort_keys=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gradients")


@pytest.fixture(scope="module")
def step(folder: Path) -> Step:
    """`step(engine, world_size, accumulate, **variant)`: what came of that case."""
    found: dict[str, dict[str, Any]] = {}
    for number, (world_size, cases) in enumerate(all_cases(folder)):
        results = start(world_size, cases, folder / f"results{number}.pt")
        found |= {_key(world_size, case): result for case, result in zip(cases, results, strict=True)}
    return lambda engine, world_size, accumulate, **variant: found[
        _key(world_size, case_of(engine, accumulate, **variant))
    ]


def distance(one: dict[str, Any], other: dict[str, Any], what: str = "gradients") -> float:
    """Length of the difference of all tensors over the length of the first ones."""
    a, b = one[what], other[what]
    assert a.keys() == b.keys()
    assert all(a[name].shape == b[name].shape for name in a)
    difference = sum((a[name].double() - b[name].double()).norm() ** 2 for name in a)
    return float((difference / sum(t.double().norm() ** 2 for t in a.values())) ** 0.5)


def assert_same_step(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert other["report"] == pytest.approx(one["report"], abs=2e-6)
    assert distance(one, other) < GRADIENT_BOUND
    assert distance(one, other, "weights") < WEIGHT_BOUND
    assert distance(one, other, "moments") < GRADIENT_BOUND
    assert other["moments"]["step"] == one["moments"]["step"]
    for norms in other["norms"]:
        assert norms == other["norms"][0]  # every rank has the same number, to the bit
        assert norms == pytest.approx(one["norms"][0][-len(norms) :], rel=GRADIENT_BOUND)


@pytest.mark.parametrize(("world_size", "accumulate"), CUTS)
@pytest.mark.parametrize("engine", ENGINES)
def test_any_cut_under_any_engine_gives_the_step_of_one_process(
    step: Step, engine: str, world_size: int, accumulate: int
) -> None:
    if (engine, world_size) == ("fsdp", 1):
        pytest.skip("one process shares its weights with nobody: it is ddp's")
    assert_same_step(step("ddp", 1, 1), step(engine, world_size, accumulate))


@pytest.mark.parametrize(
    ("engine", "variant"), ALIKE, ids=[f"{engine}-{json.dumps(variant)}" for engine, variant in ALIKE]
)
def test_two_ranks_with_two_micro_batches_give_the_step_of_one_process(
    step: Step, engine: str, variant: dict[str, Any]
) -> None:
    cut = step(engine, 2, 2, **variant)
    assert_same_step(step("ddp", 1, 1, **alone(variant)), cut)
    if variant.get("poisoned"):  # the step before was left out on every rank, and left no trace
        assert not any(torch.tensor(cut["poisoned"]).isfinite())
    if variant.get("frozen", "none") != "none":
        prefix = {"image": "visual.", "text": "bert."}[variant["frozen"]]
        assert not any(name.startswith(prefix) for name in cut["gradients"])


@pytest.mark.parametrize("variant", HSDP, ids=json.dumps)
def test_copies_of_the_shards_on_four_ranks_give_the_step_of_one_process(
    step: Step, variant: dict[str, Any]
) -> None:
    assert_same_step(step("ddp", 1, 1, max_norm=0.5), step("fsdp", 4, 2, **variant))


def test_what_must_not_matter_does_not_and_what_must_does(step: Step) -> None:
    """The cases above could not tell a clipped, masked or dropped step from another if these were equal."""
    plain = step("ddp", 1, 1)
    for variant in ({"recompute": True}, {"trim": False}, {"tile": 1}):
        assert_same_step(plain, step("ddp", 2, 2, **variant))
    assert distance(plain, step("ddp", 1, 1, max_norm=0.5), "weights") > 1e-3
    assert distance(plain, step("ddp", 1, 1, image="tiny-vit", keyed=False)) > 0.1  # other masks
    assert distance(plain, step("ddp", 1, 1, targets="positives")) > 0.1


@pytest.mark.parametrize("engine", ENGINES)
def test_a_checkpoint_of_two_ranks_goes_on_in_one_process(step: Step, engine: str, folder: Path) -> None:
    assert_same_step(step("ddp", 1, 1), step("ddp", 1, 1, resumed=str(folder / f"{engine}.pt")))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_checkpoint_of_one_process_goes_on_on_two_ranks(step: Step, engine: str, folder: Path) -> None:
    assert_same_step(step("ddp", 1, 1), step(engine, 2, 2, resumed=str(folder / "ddp1.pt")))


@pytest.mark.parametrize(
    ("engine", "by", "world_size"), [("fsdp", "fsdp", 4), ("fsdp", "ddp", 1), ("ddp", "ddp", 1)]
)
def test_a_sharded_checkpoint_of_two_ranks_goes_on_on_any_number(
    step: Step, engine: str, by: str, world_size: int, folder: Path
) -> None:
    assert_same_step(step("ddp", 1, 1), step(by, world_size, 1, resumed=str(folder / engine)))


@pytest.mark.parametrize("engine", SHARDING)
def test_a_sharded_checkpoint_becomes_whole_without_ranks(step: Step, engine: str, folder: Path) -> None:
    """Equal to the whole file that the same run wrote after the same step, to the bit."""
    step(engine, 2, 2)
    found = sharded_files.consolidate(folder / engine)
    whole = torch.load(folder / f"{engine}.pt", weights_only=True)
    assert found["facts"] == {"step": 1}
    assert found["model"].keys() == whole["model"].keys()
    assert all(torch.equal(found["model"][name], value) for name, value in whole["model"].items())
    by_name = {}
    for state in (found["optimizer"], whole["optimizer"]):
        names = [name for group in state["param_groups"] for name in group["param_names"]]
        by_name[id(state)] = {names[n]: entry["exp_avg"] for n, entry in state["state"].items()}
    ours, theirs = by_name.values()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("engine", ENGINES)
def test_bf16_moves_as_ddp_does(step: Step, engine: str) -> None:
    """What FSDP gathers in bf16 is what autocast computes with, so they agree far below the rounding of bf16 (0.4 %)."""
    fp32, ddp = step("ddp", 1, 1), step("ddp", 2, 2, precision="amp_bf16")
    found = step(engine, 2, 2, precision="amp_bf16")
    assert distance(fp32, ddp) > 1e-3  # it is bf16
    if engine == "zero3":  # its linear layers round in places of their own
        assert distance(fp32, found) < 1.5 * distance(fp32, ddp)
        return
    assert distance(ddp, found) < GRADIENT_BOUND
    assert distance(ddp, found, "weights") < WEIGHT_BOUND


def test_fp16_s_scale_is_undone_and_moves(step: Step) -> None:
    assert step("ddp", 2, 2, scaled=True, max_norm=0.5)["scale"] == 2.0**16
    assert step("fsdp", 2, 2, scaled=True, poisoned=True)["scale"] == 2.0**15


def test_randomness_of_a_micro_batch_follows_the_micro_batch_not_the_rank(step: Step) -> None:
    one, two = step("ddp", 1, 4, keyed=False), step("ddp", 2, 2, keyed=False)
    assert_same_step(one, two)


def test_reference_gradient_leaves_one_share_on_the_towers_and_all_on_the_scale(step: Step) -> None:
    exact = step("ddp", 2, 2)["lengths"]
    reference = step("ddp", 2, 2, gradient="reference")["lengths"]
    assert reference["logit_scale"] == pytest.approx(exact["logit_scale"], rel=GRADIENT_BOUND)
    for name in ("visual.conv1.weight", "text_projection", "bert.encoder.layer.0.output.dense.weight"):
        assert reference[name] * 2 == pytest.approx(exact[name], rel=GRADIENT_BOUND)


@pytest.mark.parametrize("engine", ["ddp", "fsdp", "zero2"])
def test_local_loss_is_the_mean_of_the_ranks_own(step: Step, engine: str) -> None:
    """Against autograd through the dense losses of both ranks, in one process."""
    dense, local = step("ddp", 1, 1, gather=False, dense=2), step(engine, 2, 2, gather=False)
    assert local["losses"] == pytest.approx(dense["losses"], abs=2e-6)
    assert distance(dense, local) < GRADIENT_BOUND
    assert distance(dense, local, "weights") < WEIGHT_BOUND
    assert distance(dense, step("ddp", 2, 2)) > 0.1  # fewer negatives are another loss


@pytest.mark.parametrize("engine", SHARDING)
def test_every_rank_has_the_batchnorm_statistics_of_the_main_rank(step: Step, engine: str) -> None:
    first, second = step(engine, 2, 2, **RESNET)["statistics"]
    assert first and first == second


def test_batchnorm_takes_each_micro_batch_in_once(step: Step) -> None:
    """Two steps of four micro-batches at momentum 0.1 leave 0.9^8 of the first variance of 1; twice as many would not."""
    (statistics,) = step("ddp", 1, 4, **RESNET)["statistics"]
    assert min(min(values) for values in statistics[1::2]) >= 0.9**8 * 0.999
