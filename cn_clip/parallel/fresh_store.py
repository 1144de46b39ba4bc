"""A store that no earlier try of the same run has written to.

torchrun's agent keeps one key-value store for all restarts of its processes, so that a process that starts again may read
the address that a dead one left there, and wait for it in vain. The restart count cannot tell tries apart: each machine
counts its own. So the ranks first agree on a name of this try, in the store itself.
"""

from __future__ import annotations

import json
import time
import uuid
from datetime import timedelta

from torch import distributed as dist

LONGEST_PAUSE_S = 0.5


def fresh_store(store: dist.Store, *, rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """`store` under a prefix that is this try's alone. Every rank calls it. Raises TimeoutError when the ranks do not agree in time.

    Rank 0 offers a name; each rank signs under the offer that it finds; rank 0 closes the list when all have signed. A
    rank that found an offer of an earlier try is not on that list, and looks for a newer offer.
    """
    signature = uuid.uuid4().hex
    if rank == 0:
        store.set("try/offer", signature)
    deadline, pause_s = time.monotonic() + timeout.total_seconds(), 0.01
    while time.monotonic() < deadline:
        if store.check(["try/offer"]):
            offer = store.get("try/offer").decode()
            store.set(f"try/{offer}/{rank}", signature)
            if offer == signature:
                _close_when_signed(store, offer, world_size)
            if signature in _closed_list(store, offer):
                return dist.PrefixStore(f"try/{offer}", store)
        time.sleep(pause_s)
        pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
    raise TimeoutError(f"rank {rank} did not find all {world_size} ranks within {timeout}")


def _close_when_signed(store: dist.Store, offer: str, world_size: int) -> None:
    places = [f"try/{offer}/{rank}" for rank in range(world_size)]
    if store.check(places):
        store.set(f"try/{offer}/closed", json.dumps([store.get(place).decode() for place in places]))


def _closed_list(store: dist.Store, offer: str) -> list[str]:
    closed = f"try/{offer}/closed"
    names: list[str] = json.loads(store.get(closed)) if store.check([closed]) else []
    return names
