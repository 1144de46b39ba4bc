"""Augmentation that depends on where a pair stands in the run, not on which worker reads it or when."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch.utils.data import get_worker_info

from cn_clip.parallel.rng import stable_seed


@contextmanager
def seeded_by(*parts: int) -> Iterator[None]:
    """Python's, numpy's and torch's generators are a function of the numbers inside, and go on as before outside.

    In a loader's worker they are not put back: nothing but pictures draws there, and each picture is seeded itself.
    """
    # putting them back takes 80 us, a tenth of what a picture takes
    with _put_back() if get_worker_info() is None else nullcontext():
        seed = stable_seed(*parts)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # numpy takes no more
        # not torch.manual_seed, which seeds every device and costs as much as a resize
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def _put_back() -> Iterator[None]:
    of_python, of_numpy, of_torch = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        torch.random.set_rng_state(of_torch)
