import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from cn_clip.parallel.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():
    for _ in range(8):
        torch.ones(8 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
first = faults()
print(faults() - first)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
def test_memory_that_was_freed_is_not_asked_for_again() -> None:
    as_it_was = page_faults("leave")
    assert page_faults("keep") < as_it_was / 4
    assert (
        page_faults("keep", MALLOC_MMAP_THRESHOLD_="131072") > as_it_was / 2
    )  # who says otherwise has it so


def page_faults(word: str, **environment: str) -> int:
    """Of making and dropping a tensor of 32 MiB eight times, when that has been done before."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, word],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)
