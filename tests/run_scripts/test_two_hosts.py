"""Two hosts on one machine: network namespaces joined by a cable (veth), a run script started on each, gloo between them.

A host that goes is its processes killed at once. The run folder is on a file system that both have, as a cluster's is.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from tests.run_scripts.conftest import (
    FLAGS,
    SCRIPT,
    STEPS,
    assert_same_weights,
    checkpoints,
    clean_environment,
    wait_for_checkpoint,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@dataclass
class Host:
    """One machine of the cluster, in a network namespace of its own."""

    namespace: str
    cable: str
    address: str
    rank: int
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, datapath: Path, **environment: str) -> subprocess.Popen[str]:
        """The run script, as a person or a cluster manager starts it on this host."""
        wanted = {
            "WORKER_CNT": "2",
            "RANK": str(self.rank),
            "GPUS_PER_NODE": "1",
            "MASTER_ADDR": "10.213.7.1",
            "MASTER_PORT": "8514",
            "GLOO_SOCKET_IFNAME": self.cable,
        }
        with Path(f"{datapath}-{self.namespace}.log").open("a") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, "bash", SCRIPT, str(datapath), *FLAGS],
                env=clean_environment(wanted | environment),
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def said(self, datapath: Path) -> str:
        return Path(f"{datapath}-{self.namespace}.log").read_text()

    def kill(self) -> None:
        """All that runs here at once, as when the power goes."""
        listed = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True)
        for pid in listed.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        for process in self.started:
            process.wait()


def ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def remove_leftovers() -> None:
    """Namespaces of a test that was itself killed: their names tell whose they are."""
    for line in ip("netns", "list").splitlines():
        found = re.match(r"cnclip-(\d+)-([01])\b", line)
        if found and not Path("/proc", found[1]).exists():
            Host(found[0], "", "", int(found[2])).kill()
            ip("netns", "delete", found[0])


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` (iproute2) here")
    remove_leftovers()
    pair = tuple(
        Host(f"cnclip-{os.getpid()}-{rank}", f"cable{rank}", f"10.213.7.{rank + 1}", rank) for rank in (0, 1)
    )
    made: list[str] = []
    try:
        try:
            for host in pair:
                ip("netns", "add", host.namespace)
                made.append(host.namespace)
            first, second = pair
            ip(
                *("link", "add", first.cable, "netns", first.namespace),
                *("type", "veth", "peer", "name", second.cable, "netns", second.namespace),
            )
            for host in pair:
                ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", host.cable)
                ip("-n", host.namespace, "link", "set", host.cable, "up")
                ip("-n", host.namespace, "link", "set", "lo", "up")
        except OSError as error:
            pytest.skip(f"network namespaces cannot be made here ({error})")
        yield first, second
    finally:
        for host in pair:
            if host.namespace in made:
                host.kill()
                ip("netns", "delete", host.namespace)


def test_a_host_that_goes_ends_the_run_and_one_that_comes_back_continues_it(
    hosts: tuple[Host, Host], datapath: Path, uninterrupted: Mapping[str, torch.Tensor]
) -> None:
    first, second = hosts

    # without restarts: the other host ends with a message, and not in the middle of a wait
    runs = [host.start(datapath) for host in hosts]
    wait_for_checkpoint(datapath, 8, *runs)
    second.kill()
    assert runs[0].wait(timeout=60) not in (0, 2, 75)
    assert "error: " in first.said(datapath)
    assert not list(checkpoints(datapath).glob(f"epoch_*_{STEPS}.pt"))

    # with restarts: the host that is left waits for the one that is gone, even for the one where all meet
    runs = [host.start(datapath, MAX_RESTARTS="3") for host in hosts]
    wait_for_checkpoint(datapath, 16, *runs)
    first.kill()
    again = first.start(datapath, MAX_RESTARTS="3")
    assert (again.wait(timeout=120), runs[1].wait(timeout=120)) == (0, 0), second.said(datapath)[-3000:]
    assert "restart 1 of 3" in second.said(datapath)
    assert "=> loaded checkpoint" in first.said(datapath)
    assert_same_weights(datapath, uninterrupted)
