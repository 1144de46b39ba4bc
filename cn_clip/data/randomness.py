"""Augmentation that depends on where a pair stands in the run, not on which worker reads it or when."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from cn_clip.parallel.rng import seeded, stable_seed


@contextmanager
def seeded_by(*parts: int) -> Iterator[None]:
    """Python's, numpy's and torch's generators are a function of the numbers inside, and go on as before outside."""
    seed = stable_seed(*parts)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with seeded(seed, torch.device("cpu")):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # numpy takes no more; timm's augmentation draws from it
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
