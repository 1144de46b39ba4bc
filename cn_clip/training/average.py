"""Exponential moving average of the weights over steps (Polyak and Juditsky 1992; EMA of arXiv:1703.01780)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cn_clip.config.schema import Ema, Parallel
from cn_clip.errors import ConfigError
from cn_clip.parallel.shards import drop_gathered, own_part, shard_like

logger = logging.getLogger(__name__)


def check_average(settings: Ema, parallel: Parallel) -> None:
    """ConfigError where an average is asked for that the engine's weights cannot have."""
    if settings.decay is not None and parallel.engine == "zero3":
        raise ConfigError(
            "ema.decay averages the weights of each rank, which parallel.engine=zero3 keeps elsewhere: use "
            "parallel.engine=fsdp, or leave ema.decay out"
        )


class WeightAverage:
    """Average in fp32 of each parameter that is trained; frozen ones and BatchNorm's statistics are the model's own.

    Make it from the wrapped model's bare module (`engine.module`), whose weights are the first average.
    """

    def __init__(self, model: nn.Module, settings: Ema, parallel: Parallel) -> None:
        check_average(settings, parallel)
        assert settings.decay is not None  # else there is no average
        self._decay, self._warmup = settings.decay, settings.warmup
        self._model = model
        drop_gathered(model)
        self._live = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._averages = {name: p.detach().float().clone() for name, p in self._live.items()}
        self.num_updates = 0
        """Steps that are in the average."""

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after an optimizer step into the average; not after a step that was skipped."""
        self.num_updates += 1
        averages = [own_part(average) for average in self._averages.values()]
        live = [own_part(p.detach()).float() for p in self._live.values()]
        torch._foreach_lerp_(averages, live, 1 - self.decay)

    @property
    def decay(self) -> float:
        """Weight of the old average in the last update."""
        if not self._warmup:
            return self._decay
        return min(self._decay, (1 + self.num_updates) / (10 + self.num_updates))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights inside, and its own again, to the bit, outside."""
        kept = self._swap_in()
        try:
            yield
        finally:
            self._swap_out(kept)

    @torch.no_grad()
    def _swap_in(self) -> dict[str, Tensor]:
        kept = {}
        for name, p in self._live.items():
            weight = own_part(p.detach())
            kept[name] = weight.clone()
            weight.copy_(own_part(self._averages[name]))
        drop_gathered(self._model)
        return kept

    @torch.no_grad()
    def _swap_out(self, kept: Mapping[str, Tensor]) -> None:
        for name, p in self._live.items():
            own_part(p.detach()).copy_(kept[name])
        drop_gathered(self._model)

    def state(self) -> dict[str, Tensor]:
        """Averages by the model's names, sharded as its parameters are (`Engine.whole` joins them)."""
        return dict(self._averages)

    @torch.no_grad()
    def load(self, whole: Mapping[str, Tensor], num_updates: int) -> None:
        """Go on from averages of a file: whole tensors, the same on every rank.

        What the file has no average of, or one of another shape (an adapter of another rank), starts from its weights now.
        """
        fresh = []
        for name, average in self._averages.items():
            if name in whole and whole[name].shape == average.shape:
                own_part(average).copy_(own_part(shard_like(whole[name].to(average.dtype), average)))
            else:
                fresh.append(name)
        if fresh:
            logger.info(
                "%d parameters have no average in the checkpoint, so theirs starts from the weights: %s, ...",
                len(fresh),
                fresh[0],
            )
        self.num_updates = num_updates
