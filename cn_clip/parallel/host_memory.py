"""Memory of the host that a step has freed is there for the next one.

glibc gives large tensors back to the system when they are freed. The next step asks for them again, and the system clears
each page of them before it hands it out: that cost more than the arithmetic of an activation function on the CPU.
"""

from __future__ import annotations

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Numbers of mallopt(3)."""


def keep_freed_memory() -> None:
    """Let this process keep what it frees, at most what it has held at one time.

    Does nothing where malloc is not glibc's, and where the environment already says how it is to behave.
    """
    is_told = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if platform.libc_ver()[0] != "glibc" or is_told:
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)  # mapped by itself, an allocation is given back whenever it is freed
    libc.mallopt(M_TRIM_THRESHOLD, -1)
