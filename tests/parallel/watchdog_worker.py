"""One rank that steps until something happens: seconds of the timeout, folder for its process id, rank that breaks or -1."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from cn_clip.errors import DataError, run_door
from cn_clip.parallel.ranks import start_ranks
from cn_clip.parallel.watchdog import Watchdog


def main(timeout_seconds: str, folder: str, breaks: str) -> None:
    torch.set_num_threads(1)
    with start_ranks("cpu") as ranks:
        log, timeout = Path(folder) / f"log{ranks.rank}", timedelta(seconds=float(timeout_seconds))
        with Watchdog(ranks, timeout, log=log, beat_seconds=0.2) as watchdog:
            for step in range(1, 100_000):
                watchdog.note(step, "reading its pairs")
                if step == 20:
                    (Path(folder) / f"pid{ranks.rank}").write_text(str(os.getpid()))
                if step == 30 and ranks.rank == int(breaks):
                    raise DataError("its pair 5 is broken")
                time.sleep(0.01)
                watchdog.note(step, "waiting for the gradients of all ranks")
                dist.all_reduce(torch.ones(3))


if __name__ == "__main__":
    run_door(lambda: main(*sys.argv[1:]))
