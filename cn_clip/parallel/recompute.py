"""Gradient checkpointing: a block's activations are thrown away and computed again in the backward pass.

The block's `forward` is replaced on the instance, so no parameter or state-dict key changes its name; dropout draws the
same numbers again (`preserve_rng_state`) and BatchNorm statistics are updated once only.

Contract with blocks: one that depends on more than its arguments, such as the keys its dropout follows, has a function
`remember` among its own attributes. It is called when the block runs first, and returns a context for the repetition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # the common base of BatchNorm2d and SyncBatchNorm
from torch.utils.checkpoint import checkpoint


def recompute_blocks(blocks: Iterable[nn.Module]) -> None:
    """From now on each block is recomputed in the backward pass; doing it twice changes nothing."""
    for block in blocks:
        # a bound method, since `copy.deepcopy` binds it to the copy; a closure would call the original block
        vars(block)["forward"] = MethodType(_recomputed_forward, block)


def keep_activations(blocks: Iterable[nn.Module]) -> None:
    """Undo `recompute_blocks`."""
    for block in blocks:
        vars(block).pop("forward", None)


def _recomputed_forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:  # Any: whatever the block takes
    forward = partial(type(block).forward, block)
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    if torch.compiler.is_compiling():
        # the compiler keeps what goes into a block, and computes nothing twice that changes a buffer
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=partial(_contexts, block), **kwargs)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For the first computation and for the repeated one."""
    remember: Callable[[], AbstractContextManager[None]] = vars(block).get("remember", nullcontext)
    return nullcontext(), _repeated(block, remember())


@contextmanager
def _repeated(block: nn.Module, remembered: AbstractContextManager[None]) -> Iterator[None]:
    """The block's inputs are those of the first time; BatchNorm layers still normalise by the batch, but neither their
    averages nor their counters move."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, _copied(norm.num_batches_tracked)) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        with remembered:
            yield
    finally:
        for norm, (momentum, num_batches) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and num_batches is not None:
                norm.num_batches_tracked.copy_(num_batches)


def _copied(count: torch.Tensor | None) -> torch.Tensor | None:
    return None if count is None else count.clone()
