"""Programs that are measured beside each other, each in a process of its own for the whole run, asked in turn.

So what else the machine does falls on all of them alike. A benchmark starts its own file once for each program, with that
program's package first on the path: two of them may have the same name.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]

Answer = Mapping[str, Any]
"""Plain JSON: what a program measured, by name."""


class Side:
    """One program that answers questions."""

    def __init__(self, script: str, program: str, words: Sequence[str], package: Path, threads: int) -> None:
        self.name = program
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", script, f"--program={program}", *words],
            env={**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **question: Any) -> Answer:
        """What it measured; the program ends where the process died."""
        _pipe(self._process.stdin).write(json.dumps(question) + "\n")
        _pipe(self._process.stdin).flush()
        line = _pipe(self._process.stdout).readline()
        if not line:
            raise SystemExit(f"{self.name} ended with {self._process.wait()}; its last words stand above")
        answer: Answer = json.loads(line)
        return answer

    def close(self) -> None:
        _pipe(self._process.stdin).close()
        self._process.wait()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


@contextmanager
def sides(
    script: str, packages: Mapping[str, Path], words: Sequence[str], threads: int
) -> Iterator[dict[str, Side]]:
    """Program -> its process, ready; `packages` says whose package each finds."""
    with ExitStack() as open_until_the_end:
        started = {}
        for program, package in packages.items():
            started[program] = Side(script, program, words, package, threads)
            open_until_the_end.callback(started[program].close)
        yield started


def serve(answer: Callable[..., Answer]) -> None:
    """In the process of a program: answer until nobody asks any more."""
    # libraries print too
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), file=answers, flush=True)
    answers.flush()
    # as our doors end: gloo's threads outlive the group
    os._exit(0)


def clock(cpu: bool) -> Callable[[], float]:
    """Seconds of the clock, or of CPU."""
    return time.process_time if cpu else time.perf_counter


def middle(answers: Sequence[Answer], name: str) -> float:
    """Median of one number."""
    return statistics.median(answer[name] for answer in answers)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What every such benchmark can be told."""
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3, help="that are timed, after one that is not")
    parser.add_argument(
        "--cpu",
        action="store_true",
        help="compare CPU seconds, which other work on the machine distorts less than those of the clock; give\n"
        "--threads 1 then, since waiting threads count too",
    )
    parser.add_argument("--program", help=argparse.SUPPRESS)


def words_of(flags: argparse.Namespace) -> list[str]:
    """The same flags as words for the processes of the programs."""
    words = []
    for name, value in vars(flags).items():
        flag = f"--{name.replace('_', '-')}"
        if name == "program" or value is None or value is False:
            continue
        if isinstance(value, list):
            words += [flag, *map(str, value)]
        else:
            words.append(flag if value is True else f"{flag}={value}")
    return words
