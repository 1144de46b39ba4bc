"""The examples for Slurm and Kubernetes, run here: stand-ins for the cluster's own commands, everything else real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.run_scripts.conftest import (
    FLAGS,
    ROOT,
    SCRIPT,
    Background,
    assert_same_weights,
    clean_environment,
    free_port,
    wait_for_checkpoint,
)

SBATCH = ROOT / "run_scripts" / "slurm.sbatch"
PYTORCHJOB = ROOT / "run_scripts" / "pytorchjob.yaml"

SCONTROL = """#!/bin/bash
case "$1 $2" in
    "show hostnames") printf "%s\\n" "$HOSTNAMES" node-b ;;
    requeue*) echo "$2" >>"$REQUEUED" ;;
    *) exit 1 ;;
esac
"""

SRUN = '''#!{python}
"""A task a node, on this machine; a signal to srun goes to every process of the step, as slurmstepd sends it."""
import os, signal, subprocess, sys, time
from pathlib import Path

step = f"SLURM_TASK_OF={os.getpid()}"
words = sys.argv[1:]
while words[0].startswith("-"):
    words.pop(0)

def to_all(number, frame):
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if step.encode() in path.read_bytes().split(b"\\0"):
                os.kill(int(path.parent.name), number)
        except OSError:
            pass

for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, to_all)
here = os.environ | dict([step.split("=")])
nodes = int(os.environ["SLURM_JOB_NUM_NODES"])
tasks = [subprocess.Popen(words, env=here | {"SLURM_NODEID": str(node)}) for node in range(nodes)]
codes = [task.wait() for task in tasks]
sys.exit(max(128 - code if code < 0 else code for code in codes))
'''


@pytest.fixture
def slurm(tmp_path: Path, own_name: str) -> dict[str, str]:
    """Environment of a job on two machines, with the cluster's commands on PATH."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN.replace("{python}", sys.executable))):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node-[a-b]"}
    here = {"HOSTNAMES": own_name, "REQUEUED": str(tmp_path / "requeued"), "MASTER_PORT": free_port()}
    return job | here | {"PATH": f"{commands}:{os.environ['PATH']}", "GPUS_PER_NODE": "1"}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="srun's stand-in reads /proc")
def test_a_slurm_job_saves_before_its_time_is_over_and_goes_on_when_requeued(
    slurm: dict[str, str],
    datapath: Path,
    tmp_path: Path,
    background: Background,
    uninterrupted: Mapping[str, torch.Tensor],
) -> None:
    log = tmp_path / "slurm.log"

    def submit() -> subprocess.Popen[str]:
        return background("bash", str(SBATCH), SCRIPT, str(datapath), *FLAGS, log=log, **slurm)

    job = submit()
    wait_for_checkpoint(datapath, 8, job)
    job.send_signal(signal.SIGUSR1)  # `--signal=B:USR1@120`: to the batch shell alone
    assert job.wait(timeout=60) == 75, log.read_text()[-3000:]
    assert (tmp_path / "requeued").read_text() == "4711\n"

    assert submit().wait(timeout=90) == 0, log.read_text()[-3000:]
    assert (tmp_path / "requeued").read_text() == "4711\n"  # a run that is done is not
    assert_same_weights(datapath, uninterrupted)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "error: usage: sbatch run_scripts/slurm.sbatch RUN_SCRIPT DATAPATH"),
        (["no.sh", "data"], "error: there is no run script no.sh in "),
    ],
)
def test_a_slurm_job_without_its_words_says_how_it_is_used(
    words: list[str], sentence: str, slurm: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        ["bash", str(SBATCH), *words],
        cwd=tmp_path,
        env=clean_environment(slurm),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(sentence)


@pytest.fixture
def pods() -> list[dict[str, Any]]:  # Any: YAML
    """Specs of the Master's and the Worker's pods."""
    replicas = yaml.safe_load(PYTORCHJOB.read_text())["spec"]["pytorchReplicaSpecs"]
    assert list(replicas) == ["Master", "Worker"]
    assert all(replica["restartPolicy"] == "ExitCode" for replica in replicas.values())
    return [replica["template"]["spec"] for replica in replicas.values()]


def test_a_pod_has_what_the_operator_and_training_need(pods: list[dict[str, Any]]) -> None:
    for pod in pods:
        (container,) = pod["containers"]
        assert container["name"] == "pytorch"
        assert container["ports"][0]["name"] == "pytorchjob-port"
        assert pod["terminationGracePeriodSeconds"] >= 60
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        assert all(isinstance(variable["value"], str) for variable in container["env"])
        code = {variable["name"]: variable["value"] for variable in container["env"]}["STOPPED_EXIT_CODE"]
        assert int(code) >= 128  # below, the operator takes it for a failure that no restart mends


@pytest.mark.slow
def test_pods_that_are_told_to_go_save_and_end_with_a_code_to_be_started_again(
    pods: list[dict[str, Any]], datapath: Path, tmp_path: Path, own_name: str, background: Background
) -> None:
    """The command with the environment that the operator gives; one pod alone gets the signal, as when its node drains."""
    port, runs = free_port(), []
    for rank, pod in enumerate(pods):
        (container,) = pod["containers"]
        given = {variable["name"]: variable["value"] for variable in container["env"]}
        operator = {"MASTER_ADDR": own_name, "MASTER_PORT": port, "RANK": str(rank), "WORLD_SIZE": "2"}
        torchrun = {"PET_NNODES": "2", "PET_NODE_RANK": str(rank), "PET_NPROC_PER_NODE": "auto"}
        here = {"DATAPATH": str(datapath), "GPUS_PER_NODE": "1"}
        # the recipe that the flags are for
        command = [word.replace("rbt-base.sh", "rbt-base_flip.sh") for word in container["command"]]
        words = [*command, *container["args"], *FLAGS]
        log = tmp_path / f"pod{rank}.log"
        runs.append(background(*words, log=log, **(given | operator | torchrun | here)))
    wait_for_checkpoint(datapath, 4, *runs)
    runs[1].terminate()
    assert [run.wait(timeout=60) for run in runs] == [138, 138], (tmp_path / "pod0.log").read_text()[-3000:]
