"""Device and versions: what this run computes on, and which files it runs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

import cn_clip
from cn_clip.parallel.gather import gather_objects
from cn_clip.parallel.ranks import Ranks
from cn_clip.training.diagnosis.finding import Finding, Number, in_bytes

OLD_CUDA = (7, 0)
"""Compute capability (Volta) from which fp16 matrix products are fast."""
BF16_CUDA = (8, 0)
"""Compute capability (Ampere) from which bf16 is."""


def check_machine(ranks: Ranks) -> list[Finding]:
    """Device, then versions and the place the package comes from."""
    return [_cuda(ranks.device) if ranks.device.type == "cuda" else _cpu(ranks.device), check_package()]


def _cuda(device: torch.device) -> Finding:
    facts = torch.cuda.get_device_properties(device)
    free, whole = torch.cuda.mem_get_info(device)
    numbers: dict[str, Number] = {
        "device": facts.name,
        "compute_capability": f"{facts.major}.{facts.minor}",
        "memory_bytes": whole,
        "free_bytes": free,
        "bf16": (facts.major, facts.minor) >= BF16_CUDA,
        "driver": driver_version(),
        "cuda": torch.version.cuda,
    }
    says = (
        f"{facts.name}, {in_bytes(whole)} of memory of which {in_bytes(free)} are free, driver {numbers['driver']}, "
        f"CUDA {torch.version.cuda}, {'bf16' if numbers['bf16'] else 'no fast bf16'}"
    )
    if free < 0.9 * whole:
        return Finding(
            check="device",
            says=says,
            verdict="slow",
            numbers=numbers,
            next_step="another process holds memory of this GPU: find it with nvidia-smi, or take another GPU "
            "(CUDA_VISIBLE_DEVICES)",
        )
    if not numbers["bf16"]:
        return Finding(
            check="device",
            says=says,
            verdict="ok" if (facts.major, facts.minor) >= OLD_CUDA else "slow",
            numbers=numbers,
            next_step="train with train.precision=amp (fp16 with a gradient scaler), not amp_bf16",
        )
    return Finding(check="device", says=says, numbers=numbers)


def _cpu(device: torch.device) -> Finding:
    threads, num_cores = torch.get_num_threads(), cores()
    numbers: dict[str, Number] = {
        "device": device.type,
        "processor": platform.processor() or platform.machine(),
        "cores": num_cores,
        "threads": threads,
        "memory_bytes": host_memory(),
        "bf16_instructions": _cpu_capability(),
    }
    says = f"{device.type} with {num_cores} cores, {threads} threads of torch, {in_bytes(host_memory())} of memory free"
    if device.type == "cpu" and driver_version() is not None and not torch.cuda.is_available():
        return Finding(
            check="device",
            says=f"{says}; there is a GPU driver, but torch sees no GPU (its CUDA is {torch.version.cuda})",
            verdict="wrong",
            numbers=numbers,
            next_step="install the torch build for this driver's CUDA (https://pytorch.org/get-started/locally), and look at "
            "CUDA_VISIBLE_DEVICES; for the CPU on purpose set run.device=cpu",
        )
    return Finding(check="device", says=says, numbers=numbers)


def _cpu_capability() -> str:
    return torch.backends.cpu.get_cpu_capability()


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def driver_version() -> str | None:
    """As nvidia-smi tells it; None without one."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else None


def local_ranks() -> int:
    """Processes of the run on this machine, as torchrun says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def available_bytes(ranks: Ranks) -> float:
    """Bytes that a rank may take of its device's memory, the least of all ranks. Collective."""
    device = ranks.device
    if device.type == "cuda":
        free = float(torch.cuda.mem_get_info(device)[0])
    else:
        free = host_memory() / local_ranks()
    return min(gather_objects(free, ranks))


def host_memory() -> int:
    """Bytes that this process may still take: what the system has, and no more than its control group lets it."""
    free = _available_bytes()
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        allowed, taken = _number(limit), _number(used)
        if allowed is not None and taken is not None:
            free = min(free, max(0, allowed - taken))
    return free


def _available_bytes() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # no Linux: the whole memory is the best there is
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):  # no such file, or `max`
        return None


def check_package() -> Finding:
    """Versions, and whether the installed package is the one that runs (another `cn_clip` may shadow a checkout)."""
    here = Path(cn_clip.__file__).resolve().parent
    numbers: dict[str, Number] = {
        "version": cn_clip.__version__,
        "imported_from": str(here),
        "python": platform.python_version(),
        **{
            name: _version(name) for name in ("torch", "transformers", "open_clip_torch", "timm", "deepspeed")
        },
    }
    says = (
        f"cn_clip {cn_clip.__version__} from {here}; Python {numbers['python']}, torch {numbers['torch']}, "
        f"transformers {numbers['transformers']}, open_clip {numbers['open_clip_torch']}"
    )
    return judge_place(says, numbers, here, Path.cwd())


def check_same_versions(ranks: Ranks) -> list[Finding]:
    """Nothing where all ranks have the same versions of what computes. Collective."""
    names = {
        name: _version(name) for name in ("torch", "transformers", "open_clip_torch", "timm", "deepspeed")
    }
    own = f"{cn_clip.__version__} {sorted(names.items())}"
    everybody = gather_objects(own, ranks)
    others = [rank for rank, versions in enumerate(everybody) if versions != everybody[0]]
    return [] if not others else [unlike_versions(others)]


def unlike_versions(others: list[int]) -> Finding:
    return Finding(
        check="package",
        says=f"rank {others[0]} and {len(others) - 1} more have other versions than rank 0",
        verdict="wrong",
        numbers={"ranks": ", ".join(map(str, others))},
        next_step="install the same versions of cn_clip, torch, transformers, open_clip and timm on every node",
    )


def judge_place(says: str, numbers: dict[str, Number], here: Path, cwd: Path) -> Finding:
    """`wrong` where the user stands in a checkout and another copy runs."""
    checkout = next((folder for folder in (cwd, *cwd.parents) if is_checkout(folder)), None)
    if checkout is not None and (checkout / "cn_clip").resolve() != here:
        return Finding(
            check="package",
            says=f"{says}; but this is a checkout in {checkout}, whose files are not the ones that run",
            verdict="wrong",
            numbers=numbers,
            next_step=f"pip uninstall cn_clip, then pip install -e {checkout}; the run scripts use the checkout they lie in",
        )
    return Finding(check="package", says=says, numbers=numbers)


def is_checkout(folder: Path) -> bool:
    return (folder / "cn_clip" / "training" / "main.py").is_file() and (folder / "run_scripts").is_dir()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
