"""Captions of like length together, so that short ones are not encoded with the padding of long ones.

Shapes: B captions, L tokens of the longest, D width of a feature.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Encode = Callable[[Tensor, Tensor | None], Tensor]
"""Token ids (b, l) and keys (b,) of some captions -> features (b, D)."""


def encode_in_groups(
    encode: Encode, tokens_BL: Tensor, keys_B: Tensor | None, *, num_groups: int, pad_id: int
) -> Tensor:
    """Features (B, D) in the order of the captions, encoded in `num_groups` calls from the shortest to the longest.

    There are always that many calls, since sharded weights (FSDP) are gathered by all ranks in each.
    """
    lengths_B = _lengths(tokens_BL, pad_id)
    order_B = lengths_B.argsort(stable=True)
    num_captions = len(order_B)
    if num_captions < num_groups:
        # too few captions for a call each: the longest is encoded several times
        order_B = torch.cat([order_B, order_B[-1:].expand(num_groups - num_captions)])
    groups = order_B.tensor_split(num_groups)
    # one wait for the device
    longest = torch.stack([lengths_B[group[-1]] for group in groups]).tolist()
    features = [
        encode(tokens_BL[group, : max(length, 1)], None if keys_B is None else keys_B[group])
        for group, length in zip(groups, longest, strict=True)
    ]
    place_B = torch.empty_like(order_B[:num_captions])
    place_B[order_B[:num_captions]] = torch.arange(num_captions, device=order_B.device)
    return torch.cat(features)[place_B]


def _lengths(tokens_BL: Tensor, pad_id: int) -> Tensor:
    """(B,) tokens up to the last that counts."""
    ends_L = torch.arange(1, tokens_BL.shape[1] + 1, device=tokens_BL.device)
    return (tokens_BL.ne(pad_id) * ends_L).amax(1)
