"""Memory and time of the loss of a large global batch on one device: never the table of all logits."""

from __future__ import annotations

import resource
import time

import torch
from torch.nn.functional import normalize

from cn_clip.losses.pair import PairIds
from cn_clip.training.registry import module_of
from gpu.outcome import Outcome, passes
from gpu.workplace import Workplace

WIDTH = 512
SHARE = 0.2
"""Of one table of N x N fp32 logits, that the loss may take at most; a dense form needs several such tables."""


def check_loss_memory(place: Workplace) -> list[Outcome]:
    """Forward and backward at N = 32,768 (4,096 for tiny), E = 512."""
    num_pairs = 4096 if place.is_tiny else 32768
    module = module_of("pair_loss", "contrastive")
    loss = module.build(module.Options(tile=512) if place.is_tiny else module.Options())
    image_NE, text_NE = (normalize(torch.randn(num_pairs, WIDTH, device=place.device), dim=-1) for _ in "it")
    scale = torch.tensor(14.3, device=place.device)
    warm = _ids(256, place)
    loss(image_NE[:256], text_NE[:256], scale, warm, warm, lambda columns: columns[None])
    ids = _ids(num_pairs, place)
    before = _bytes_now(place)
    started = time.perf_counter()
    value = float(loss(image_NE, text_NE, scale, ids, ids, lambda columns: columns[None]).loss)
    place.finish()
    seconds, taken = time.perf_counter() - started, _most_bytes(place) - before
    table = 4 * num_pairs**2
    says = (
        f"N = {num_pairs:,}, E = {WIDTH}: {seconds:.2f} s and {taken / 2**20:,.0f} MiB above the features; one table of all "
        f"logits is {table / 2**20:,.0f} MiB; loss {value:.3f}"
    )
    return [passes("loss memory", taken < SHARE * table + 4 * 4 * num_pairs * WIDTH, says)]


def _ids(num_pairs: int, place: Workplace) -> PairIds:
    ids = torch.arange(num_pairs, device=place.device)
    return PairIds(ids, ids, ids, ids, ids)


def _bytes_now(place: Workplace) -> int:
    """Held on the device from now on; on the CPU, by this process at its largest."""
    if not place.is_cuda:
        return _most_bytes(place)
    torch.cuda.reset_peak_memory_stats(place.device)
    return torch.cuda.memory_allocated(place.device)


def _most_bytes(place: Workplace) -> int:
    if not place.is_cuda:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return torch.cuda.max_memory_allocated(place.device)
