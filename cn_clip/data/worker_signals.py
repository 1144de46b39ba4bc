"""Signals in loader processes: a run that is asked to stop needs them until it has saved.

Slurm, torchrun and a terminal signal the whole group of processes. A loader process that ended then would end the run, as if
it had crashed, before the run can save.
"""

from __future__ import annotations

import os
import signal
import threading

IGNORED = (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


def outlive_stop_signals() -> None:
    """From now on this process ends only when its parent ends it: on SIGTERM from there, or when the parent is gone."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    # blocked, so that the thread can ask who sent it, which no handler is told
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with, args=(os.getppid(),), name="stop signals", daemon=True).start()


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
