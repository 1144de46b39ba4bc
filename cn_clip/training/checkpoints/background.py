"""One job at a time beside the training."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """Runs a job in a thread of its own; what it raises is raised by the next `wait`."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Begin a job; the one before must have been waited for."""
        assert self._thread is None, "the job before was not waited for"
        # daemon: a run that is aborted does not wait for a file nobody asked to finish
        self._thread = threading.Thread(target=self.run, args=(job,), name="checkpoint writer", daemon=True)
        self._thread.start()

    @property
    def has_failed(self) -> bool:
        """Whether the next `wait` raises, as far as is known now."""
        return self._error is not None

    def wait(self) -> None:
        """Until the job is done; raises what it raised, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def run(self, job: Callable[[], None]) -> None:
        """Do the job here and now; what it raises waits all the same."""
        try:
            job()
        except BaseException as error:  # handed over whole: the training thread raises it
            self._error = error
