"""Dropout that a pair's key decides, in the place of torch's own.

Parameters, state-dict keys and what a module does in eval mode or without keys stay as they were. Shapes: B pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

from torch import Tensor, nn

from cn_clip.towers.pair_random import kept, quantised
from cn_clip.towers.sites import Site, Sites


class Tower(Protocol):
    """What of a tower is needed here; it is an `nn.Module` too."""

    @property
    def sites(self) -> Sites: ...
    def blocks(self) -> list[nn.Module]: ...


def key_dropout(tower: Tower) -> None:
    """Put keyed dropout in the place of each `nn.Dropout` that a tower has by now; once more after adding modules.

    A dropout whose module only reads its `p` (that of an attention) stays, and so do others that nobody calls.
    """
    module = cast(nn.Module, tower)  # every tower is one; a Protocol cannot say so
    replace(module, nn.Dropout, lambda old, name: KeyedDropout(old, tower.sites.add(name)))
    for block in tower.blocks():
        # the contract of cn_clip/parallel/recompute.py
        vars(block)["remember"] = tower.sites.remember


def replace(root: nn.Module, kind: type[nn.Module], build: Callable[[Any, str], nn.Module]) -> None:
    """Replace each module that is exactly of `kind` by what `build` makes of it and of its name."""
    for parent_name, parent in list(root.named_modules()):
        for name, child in list(parent.named_children()):
            if type(child) is kind and not _is_only_read(parent, name):
                full_name = f"{parent_name}.{name}" if parent_name else name
                parent.register_module(name, build(child, full_name).train(child.training))


def _is_only_read(parent: nn.Module, name: str) -> bool:
    """Whether a dropout is never called, its `p` being handed to an attention function (a convention of transformers)."""
    is_attention = "Attention" in type(parent).__name__ and "scaling" in vars(parent)
    return is_attention and name in ("dropout", "attention_dropout")


class KeyedDropout(nn.Dropout):
    """Dropout of features (B, ...), one element at a time."""

    def __init__(self, stock: nn.Dropout, site: Site) -> None:
        super().__init__(stock.p)
        self.site = site

    def forward(self, input: Tensor) -> Tensor:
        keys_B = self.site.keys_B
        if not self.training or self.p == 0 or keys_B is None or len(input) != len(keys_B):
            return super().forward(input)
        return dropped(input, keys_B, self.p)


def dropped(values: Tensor, keys_B: Tensor, drop: float) -> Tensor:
    """Values (B, ...) with a share `drop` of the elements zero and the others scaled up for it."""
    drop = quantised(drop)
    if drop >= 1:
        return values * 0
    # a boolean mask is all the backward pass keeps: a quarter of a mask in fp32
    return values * kept(keys_B, values.shape[1:], drop) * (1 / (1 - drop))
