"""How much is lost with a tar that cannot be read to its end, as far as somebody has counted its samples."""

from __future__ import annotations

from pathlib import Path

from cn_clip.data.tars.counts import COUNTED, given_counts
from cn_clip.data.tars.shards import is_remote
from cn_clip.errors import DataError

ITEMS_OF_A_SAMPLE = 2
"""A picture and a caption."""


def lost_items(url: str, num_read: int) -> int | None:
    """Pictures and captions behind the break, from img2dataset's statistics or an earlier run's counts; None: nobody knows."""
    name = url.rpartition("/")[2]
    # of the shard as it was when it was whole
    kept = None if is_remote(url) else Path(url).parent / COUNTED
    files = [None] if kept is None or not kept.is_file() else [None, str(kept)]
    for file in files:
        try:
            count = given_counts([url], [name], file).get(url)
        except DataError:  # then the shard counts as a whole one
            continue
        if count is not None and count > num_read:
            return (count - num_read) * ITEMS_OF_A_SAMPLE
    return None
