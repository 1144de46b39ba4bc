"""The one place that knows torchrun, with a small script in the place of training."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.run_scripts.conftest import free_port

Launch = Callable[..., subprocess.CompletedProcess[str]]

STAND_IN = """
import json, os, sys
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "PYTHONPATH")
facts = {name: os.environ.get(name) for name in names} | {"words": sys.argv[1:]}
if facts["WORLD_SIZE"]:
    import torch, torch.distributed as dist
    dist.init_process_group("gloo")
    total = torch.ones(())
    dist.all_reduce(total)
    facts["summed"] = int(total)
    dist.destroy_process_group()
open(os.path.join(os.environ["FACTS"], f"{facts['RANK'] or 'alone'}.json"), "w").write(json.dumps(facts))
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    path = tmp_path / "main.py"
    path.write_text(STAND_IN)
    return path


@pytest.fixture
def facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict]:
    folder = tmp_path / "facts"
    folder.mkdir()
    monkeypatch.setenv("FACTS", str(folder))
    return lambda rank: json.loads((folder / f"{rank}.json").read_text())


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        yield server.getsockname()[1]


def test_one_rank_runs_without_torchrun(launch: Launch, stand_in: Path, facts: Callable[[str], dict]) -> None:
    done = launch(stand_in, "--logs=a b", "--name", "x", RANK="0", WORLD_SIZE="8", LOCAL_RANK="3")
    assert done.returncode == 0, done.stderr
    alone = facts("alone")
    assert alone["words"] == ["--logs=a b", "--name", "x"]
    assert (alone["WORLD_SIZE"], alone["LOCAL_RANK"], alone["MASTER_PORT"]) == (None, None, None)


def test_this_checkout_comes_first_on_the_path(
    launch: Launch, stand_in: Path, facts: Callable[[str], dict]
) -> None:
    launch(stand_in, PYTHONPATH="/elsewhere")
    root = str(Path(__file__).resolve().parents[2])
    assert facts("alone")["PYTHONPATH"] == f"{root}:/elsewhere"
    launch(stand_in, PYTHONPATH="")
    assert facts("alone")["PYTHONPATH"] == root  # an empty entry would be the current folder


def test_several_ranks_meet_and_get_flags_torchrun_would_take(
    launch: Launch, stand_in: Path, facts: Callable[[str], dict]
) -> None:
    done = launch(stand_in, "--logs=x", "--nnodes=9", GPUS_PER_NODE="2")
    assert done.returncode == 0, done.stderr
    for rank in "01":
        assert facts(rank)["words"] == ["--logs=x", "--nnodes=9"]
        assert (facts(rank)["summed"], facts(rank)["WORLD_SIZE"]) == (2, "2")


def test_two_machines_meet(
    launch: Launch, stand_in: Path, facts: Callable[[str], dict], own_name: str
) -> None:
    """Both on this machine, which has to be known by a name other than localhost."""
    machine = {"WORKER_CNT": "2", "GPUS_PER_NODE": "1", "MASTER_ADDR": own_name, "MASTER_PORT": free_port()}
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(launch, stand_in, RANK=rank, **machine) for rank in "01"]
    assert [done.result().returncode for done in both] == [0, 0], both[0].result().stderr
    assert (facts("0")["summed"], facts("1")["summed"]) == (2, 2)


def test_runs_that_start_at_once_on_one_machine_have_ports_of_their_own(
    launch: Launch, stand_in: Path, facts: Callable[[str], dict]
) -> None:
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(launch, stand_in, GPUS_PER_NODE="2") for _ in range(2)]
    assert [done.result().returncode for done in both] == [0, 0], both[0].result().stderr
    assert facts("0")["MASTER_PORT"] != "8514"


def test_a_port_that_was_asked_for_and_is_taken_is_an_error(
    launch: Launch, stand_in: Path, taken_port: int
) -> None:
    done = launch(stand_in, GPUS_PER_NODE="2", MASTER_PORT=str(taken_port))
    assert done.returncode == 2
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith(
        f"error: port {taken_port} is in use on this machine: set MASTER_PORT to a free one"
    )


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"WORKER_CNT": "two"}, "WORKER_CNT is 'two'; give a whole number"),
        ({"WORKER_CNT": "0"}, "WORKER_CNT is 0; give the number of machines, 1 or more"),
        ({"RANK": "1"}, "RANK is 1 with WORKER_CNT=1; machines are numbered 0 to WORKER_CNT - 1"),
        ({"WORKER_CNT": "2"}, "MASTER_ADDR is localhost with WORKER_CNT=2; give the address of machine 0"),
        ({"WORKER_CNT": "2", "MASTER_ADDR": "XX.XX.XX.XX"}, "MASTER_ADDR is XX.XX.XX.XX with WORKER_CNT=2;"),
        ({"GPUS_PER_NODE": "0"}, "GPUS_PER_NODE is '0'; give auto or the number of processes"),
        ({"GPUS_PER_NODE": "2", "MASTER_PORT": "port"}, "MASTER_PORT is 'port'; give auto or a port"),
        ({"GPUS_PER_NODE": "2", "MASTER_PORT": "70000"}, "MASTER_PORT is '70000'; give auto or a port"),
    ],
)
def test_settings_that_cannot_be_launched(
    environment: dict[str, str], sentence: str, launch: Launch, stand_in: Path
) -> None:
    done = launch(stand_in, **environment)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {sentence}")
    assert len(done.stderr.splitlines()) == 1


def test_a_failing_script_fails_the_launch(launch: Launch, tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text("import sys; sys.exit(3)")
    assert launch(script).returncode == 3
    assert launch(script, GPUS_PER_NODE="2").returncode != 0


def test_gpus_are_counted_by_torch_where_there_is_a_driver(
    launch: Launch, tmp_path: Path, echo_python: str
) -> None:
    driver = tmp_path / "bin" / "nvidia-smi"
    driver.parent.mkdir()
    driver.write_text("#!/bin/sh\necho 'GPU 0: some model (UUID: GPU-0)'\n")
    driver.chmod(0o755)
    done = launch("main.py", "--name=x", PYTHON=echo_python, PATH=f"{driver.parent}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert "--nproc_per_node=4" in words
    assert words[-3:] == ["--", "main.py", "--name=x"]
