"""Which of memory, loader, network and arithmetic bounds a run: one plain sentence."""

from __future__ import annotations

from dataclasses import dataclass

from cn_clip.training.diagnosis.finding import Finding, Number, rounded

LOADER_MARGIN = 1.1
"""A loader that is no faster than this times the step lets it wait now and then: pictures are of unequal size."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Of one rank, in pairs a second; None where it is not known."""

    step: float
    """Steps with all their pairs there, gradients exchanged where that was measured."""
    loader: float | None
    network_seconds: float | None
    """For the gradients and features of one step, one after the other, with nothing computed beside."""
    step_seconds: float
    memory_bytes: float
    available_bytes: float
    num_workers: int
    cores_a_rank: float
    wastes: bool = False
    """Whether steps reach little of the device's arithmetic (the line `step` says so)."""


def check_bound(rates: Rates) -> Finding:
    """The last line of the doctor."""
    loader, step = rates.loader, rates.step
    numbers: dict[str, Number] = {
        "step_pairs_per_second": step,
        "loader_pairs_per_second": loader,
        "network_seconds": rates.network_seconds,
        "step_seconds": rates.step_seconds,
    }
    if rates.memory_bytes > rates.available_bytes:
        return Finding(
            check="bound",
            says="Memory bounds this run: a step does not fit.",
            verdict="wrong",
            numbers=numbers | {"bound": "memory"},
            next_step="do what the line `memory` says",
        )
    if loader is not None and loader < step * LOADER_MARGIN:
        return Finding(
            check="bound",
            says=f"The loader bounds this run: it reads {rounded(loader)} pairs/s a rank, steps could take {rounded(step)}; the device "
            f"waits {max(0.0, 1 - loader / step):.0%} of the time.",
            verdict="slow",
            numbers=numbers | {"bound": "loader"},
            next_step=_faster_loader(rates),
        )
    if rates.network_seconds is not None and rates.network_seconds > 0.5 * rates.step_seconds:
        return Finding(
            check="bound",
            says=f"The network bounds this run: what a step exchanges takes {rates.network_seconds:.3g} s of its "
            f"{rates.step_seconds:.3g} s.",
            verdict="slow",
            numbers=numbers | {"bound": "network"},
            next_step="raise train.accumulate (gradients meet once a step), or use parallel.shard_ranks with the ranks of a "
            "node (parallel.engine=fsdp)",
        )
    reads = "" if loader is None else f", and the loader could read {rounded(loader)}"
    if rates.wastes:
        return Finding(
            check="bound",
            says=f"Steps bound this run, and most of a step is no arithmetic: a rank trains on {rounded(step)} pairs/s{reads}.",
            verdict="slow",
            numbers=numbers | {"bound": "compute"},
            next_step="do what the line `step` says",
        )
    return Finding(
        check="bound",
        says=f"Arithmetic bounds this run, as it should: a rank trains on {rounded(step)} pairs/s{reads}.",
        numbers=numbers | {"bound": "compute"},
    )


def _faster_loader(rates: Rates) -> str:
    if rates.num_workers < rates.cores_a_rank:
        return f"raise data.num_workers (--num-workers) from {rates.num_workers} towards {rates.cores_a_rank:.0f}, the cores a rank has"
    return (
        "all cores read already: leave out data.augment, use data.transform=fast, store smaller pictures "
        "(cn-clip build-lmdb --help), or take a machine with more cores for each device"
    )
