"""Bytes of the tensors that are alive, counted as operations make them and Python lets go of them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """While it is on, counts the memory behind every tensor that an operation returns, once for all its views.

    Works for real tensors and for fake ones (`FakeTensorMode`), which have sizes and no memory. It does not see what a
    kernel allocates for itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        """Bytes alive."""
        self.peak = 0
        """Most bytes that were alive at once."""
        self.peak_beside = 0
        """The same without what was put aside by then."""
        self._aside = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Leave these, which were there before, out of the count."""
        for tensor in tensors:
            self._remember(tensor.untyped_storage(), 0)

    def put_aside(self, tensor: Tensor) -> None:
        """From now on `peak_beside` does without this tensor, which stays alive."""
        self._aside += tensor.nbytes

    def __torch_dispatch__(
        self,
        function: Any,  # Any: the signature is torch's
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        result = function(*arguments, **(options or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        known = self._known.get(id(storage))
        if known is not None and known() is storage:
            return
        self._remember(storage, storage.nbytes())
        self.peak = max(self.peak, self.now)
        self.peak_beside = max(self.peak_beside, self.now - self._aside)

    def _remember(self, storage: torch.UntypedStorage, num_bytes: int) -> None:
        key = id(storage)

        def forget(reference: weakref.ref[torch.UntypedStorage]) -> None:
            self.now -= num_bytes
            if self._known.get(key) is reference:
                del self._known[key]

        self._known[key] = weakref.ref(storage, forget)
        self.now += num_bytes
