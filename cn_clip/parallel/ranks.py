"""Who this process is among the processes of a run: one process without torchrun, or one of torchrun's workers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from cn_clip.errors import DeviceError, LaunchError
from cn_clip.parallel.fresh_store import fresh_store
from cn_clip.parallel.host_memory import keep_freed_memory

# a rank may decode its first batches for long before the first collective
JOIN_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Ranks:
    """This process among the `world_size` processes of a run."""

    rank: int
    world_size: int
    local_rank: int
    """Among the processes of this machine; picks the device."""
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


@contextmanager
def start_ranks(device: str = "auto", timeout: timedelta = JOIN_TIMEOUT) -> Iterator[Ranks]:
    """Join the other ranks when torchrun started this process, else be the only one; leave them at the end.

    `timeout`: how long a rank waits for the others, to join and in each collective. Raises DeviceError for a device that is not there, LaunchError when the ranks cannot meet.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = pick_device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    elif chosen.type == "cpu":
        keep_freed_memory()
    if "LOCAL_RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks(rank=0, world_size=1, local_rank=local_rank, device=chosen)
        return
    _join("nccl" if chosen.type == "cuda" else "gloo", timeout)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), local_rank, chosen)
        dist.barrier()  # or a rank that is done closes the connections that a slower one still needs
    finally:
        dist.destroy_process_group()


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """`auto` is this rank's CUDA device if there is one, else the CPU; other names are torch's."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(
            f"run.device is {name!r}, which torch does not know: use auto, cpu or cuda"
        ) from error
    if device.type == "cuda":
        _check_cuda(device, local_rank)
        return torch.device("cuda", local_rank) if device.index is None else device
    _check_other(device)
    return device


def _check_other(device: torch.device) -> None:
    """torch knows more names of devices than it can compute on here."""
    try:
        torch.ones(1, device=device).item()
    except (RuntimeError, NotImplementedError, AssertionError, ImportError) as error:
        raise DeviceError(
            f"run.device is {device}, on which torch cannot compute here: use auto, cpu or cuda"
        ) from error


def _check_cuda(device: torch.device, local_rank: int) -> None:
    if not torch.cuda.is_available():
        raise DeviceError(
            "run.device asks for CUDA, but torch sees no GPU here: install a driver and a CUDA build of torch, "
            "or set run.device=cpu"
        )
    wanted = local_rank if device.index is None else device.index
    if wanted >= torch.cuda.device_count():
        raise DeviceError(
            f"rank {local_rank} of this machine needs GPU {wanted}, but there are {torch.cuda.device_count()}: "
            "lower GPUS_PER_NODE"
        )


def _join(backend: str, timeout: timedelta) -> None:
    try:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            store = fresh_store(store, rank=rank, world_size=world_size, timeout=timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    except (dist.DistError, ValueError, RuntimeError, TimeoutError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LaunchError(
            f"the ranks cannot meet at {address} ({reason}): check that MASTER_ADDR is the first node, "
            "that MASTER_PORT is free there, and that every node runs the same command"
        ) from error


def joined_world() -> tuple[int, int]:
    """(rank, number of processes) of the group that this process has joined by whatever means, or (0, 1)."""
    if not dist.is_available() or not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()
