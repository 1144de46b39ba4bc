"""Running out of memory, told from other failures: the size of a micro-batch changes nothing but speed, so it can shrink."""

from __future__ import annotations

import gc
import logging

import torch

logger = logging.getLogger(__name__)

CPU_MESSAGES = (
    "DefaultCPUAllocator",
    "not enough memory",
    "Cannot allocate memory",
    "std::bad_alloc",
    "could not create a primitive",  # oneDNN, for its own buffers
)


class MicroBatchTooLargeError(Exception):
    """Some rank ran out of memory; every rank raises this at the same place, before anything was applied."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether smaller micro-batches could help."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # the allocator of the CPU has no class of its own
    return isinstance(error, RuntimeError) and any(message in str(error) for message in CPU_MESSAGES)


def free_memory() -> None:
    """Give back what the failed attempt held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
