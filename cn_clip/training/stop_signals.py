"""Being asked to stop: Slurm's and Kubernetes' signals before a job is taken off its machine, and Ctrl-C.

A signal only sets a flag. The trainer asks for it between steps, saves, and raises `Preempted`.
"""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

logger = logging.getLogger(__name__)

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
"""SIGHUP: the terminal was closed. Under nohup it is ignored, and stays so."""


class StopSignals:
    """While its context is open, the first signal asks this process to stop; a second SIGINT raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        """The first one; None while nobody has asked."""
        self._before: dict[signal.Signals, Any] = {}  # Any: what signal.signal returns

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is not threading.main_thread():
            logger.debug("Signals do not save this run: it is not in the main thread.")
            return self
        for number in STOPPING:
            # one who started us may have it ignored on purpose, as nohup does
            if signal.getsignal(number) is not signal.SIG_IGN or number is signal.SIGUSR1:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """No logging here: the signal may have come while a log line was being written."""
        if number == signal.SIGINT and self.received is signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None:
            self.received = signal.Signals(number)
