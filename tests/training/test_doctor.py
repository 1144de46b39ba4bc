"""The doctor as it is called: alone on a CPU, on two ranks, on what is wrong."""

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

from cn_clip.errors import ConfigError, DataError
from cn_clip.training import doctor
from cn_clip.training.diagnosis.machine import available_bytes

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--vision-model=tiny-vit", "--text-model=tiny-bert", "--batch-size=4", "--num-workers=1")
Findings = dict[str, list[dict[str, Any]]]


@pytest.fixture
def examine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Findings, str]]:
    """(findings by check, what was printed) of a call in this process."""

    def run(*words: str) -> tuple[Findings, str]:
        report = tmp_path / "report.json"
        doctor.main([*TINY, f"--json={report}", *words])
        return by_check(report), capsys.readouterr().out

    return run


def by_check(report: Path) -> Findings:
    found: Findings = {}
    for finding in json.loads(report.read_text()):
        found.setdefault(finding["check"], []).append(finding)
    return found


def test_a_laptop_is_examined_whole(examine: Callable[..., tuple[Findings, str]], tiny_split: Path) -> None:
    found, printed = examine(f"--train-data={tiny_split}", "--precision=fp32")
    assert list(found) == [
        "device", "package", "kernels", "exactness", "network", "memory", "loader", "step", "bound",
    ]  # fmt: skip
    assert not any(one["verdict"] == "wrong" for findings in found.values() for one in findings)
    assert found["package"][0]["numbers"]["imported_from"] == str(ROOT / "cn_clip")
    assert found["exactness"][0]["numbers"]["relative_difference"] < 1e-5
    assert found["loader"][0]["numbers"]["pairs_per_second"] > 0
    assert found["step"][0]["numbers"]["is_measured"]
    assert found["memory"][0]["numbers"]["total_bytes"] > 1e6
    assert printed.splitlines()[0].startswith("device")
    assert "Written: " in printed.splitlines()[-1]


def test_without_pairs_all_but_the_loader_is_examined(examine: Callable[..., tuple[Findings, str]]) -> None:
    found, _ = examine("--only=loader,memory")
    assert set(found) == {"loader", "memory"}
    assert "no training pairs" in found["loader"][0]["says"]


def test_a_step_that_would_take_too_long_is_computed(examine: Callable[..., tuple[Findings, str]]) -> None:
    found, _ = examine("--only=step", "--seconds=0")
    assert not found["step"][0]["numbers"]["is_measured"]
    assert "would take longer" in found["step"][0]["says"]


def test_each_stage_has_its_memory(
    examine: Callable[..., tuple[Findings, str]], tiny_split: Path, tmp_path: Path
) -> None:
    config = tmp_path / "stages.yaml"
    config.write_text(
        "stages:\n- {name: locked, steps: 2, model: {freeze_image: true}}\n- {name: large, steps: 2, train: {batch_size: 16}}\n"
    )
    found, _ = examine(f"--train-data={tiny_split}", f"--config={config}", "--only=memory")
    locked, large = found["memory"]
    assert locked["says"].startswith("stage 'locked'")
    assert locked["numbers"]["total_bytes"] < large["numbers"]["total_bytes"]


def test_what_is_wrong_has_an_exit_code_of_its_own(
    examine: Callable[..., tuple[Findings, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        examine("--only=memory", "--batch-size=4000000")
    assert ended.value.code == doctor.EXIT_WRONG
    assert "WRONG" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "error", "sentence"),
    [
        (("--only=memry",), ConfigError, "memry"),
        (("--train-data=/nowhere", "--only=loader"), DataError, "/nowhere"),
        (("--batch-sise=4",), ConfigError, "did you mean --batch-size"),
        (("--json=/nowhere/report.json",), ConfigError, "does not exist"),
    ],
)
def test_what_cannot_be_examined_is_said_in_one_sentence(
    words: tuple[str, ...], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence) as caught:
        doctor.main([*TINY, *words])
    assert "\n" not in str(caught.value)


def test_two_ranks_are_compared_with_one(tiny_split: Path, tmp_path: Path) -> None:
    """Real processes under FSDP2; the launch is that of training."""
    report = tmp_path / "report.json"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = [
        *TINY, f"--train-data={tiny_split}", "--set=parallel.engine=fsdp", f"--json={report}",
        "--only=machine,exactness,network,memory,loader,step,bound",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", "cn_clip.training.doctor", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = by_check(report)
    exact = found["exactness"][0]["numbers"]
    assert (exact["world_size"], exact["engine"]) == (2, "fsdp")
    assert exact["relative_difference"] < 1e-5
    assert found["network"][0]["numbers"]["all_reduce_67108864_bytes_seconds"] > 0
    assert len(done.stdout.splitlines()) == len(set(done.stdout.splitlines())), (
        "a rank beside the main one printed"
    )


def test_memory_there_is_what_the_least_lucky_rank_has() -> None:
    from cn_clip.parallel.ranks import Ranks

    assert 2**20 < available_bytes(Ranks(0, 1, 0, torch.device("cpu"))) < 2**50
