"""Time to open a split of millions of pairs and to begin at a random place of it.

python tests/benchmarks/open_split.py --pairs 10000000

The split is made first, one tiny picture and one caption with tokens per pair: a minute and a half and 3.6 GB for ten million.
`--folder` keeps it for the next run. Each figure comes from a process of its own, once with the files dropped from the
page cache (Linux only) and then with them in it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from cn_clip.data.store import SplitWriter  # noqa: E402

OPEN = """
import json, random, resource, sys, time
from cn_clip.data.sampler import EpochOrder, MicroBatches
from cn_clip.data.store import open_split

times = {}
started = time.perf_counter()
def lap(name):
    global started
    times[name] = time.perf_counter() - started
    started = time.perf_counter()

started = time.perf_counter()
split = open_split(sys.argv[1])
lap("open")
order = EpochOrder.over(len(split.pairs), micro_global=1024, accumulate=1, seed=123)
step = order.steps_per_epoch * 7 + order.steps_per_epoch // 2
batches = MicroBatches(order, rank=0, world_size=8, batch_size=128, first_step=step, last_step=step + 9)
first = next(iter(batches))[0]
split.images.read(split.pairs.read(first.pair).image_id)
lap("first pair of a step in the middle of epoch 8")
columns = split.pairs.columns()
lap("columns")
place = random.randrange(len(split.pairs))
pair = split.pairs.read(place)
picture = split.images.read(pair.image_id)
tokens = split.tokens.read(place)
lap("first read")
for place in random.sample(range(len(split.pairs)), 1000):
    split.images.read(split.pairs.read(place).image_id)
lap("1,000 reads more")
times["peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
assert columns.image_ids[place] == split.pairs.read(place).image_id
print(json.dumps(times))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the split is kept (default: a temporary one)")
    parser.add_argument("--repeat", type=int, default=3)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        path = (flags.folder or Path(temporary)) / f"pairs_{flags.pairs}"
        if not path.is_dir():
            write_split(path, flags.pairs)
        for _ in range(flags.repeat):
            drop_from_cache(path)
            report("cold", path)
            report("warm", path)


def write_split(path: Path, num_pairs: int) -> None:
    started, started_cpu = time.perf_counter(), time.process_time()
    with SplitWriter(path, tokenizer="benchmark") as writer:
        for number in range(num_pairs):
            writer.add_pair(number, number, f"第{number}张图片的说明", (5018, number % 20_000, 1920, 2476))
            writer.add_image(number, b"picture %d" % number, size=(500, 375))
    size_mb = sum(file.stat().st_size for file in path.rglob("data.mdb")) / 1e6
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
    print(f"{num_pairs:,} pairs, {size_mb:,.0f} MB, written in {seconds:.0f} s ({cpu_seconds:.0f} s of CPU)")


def drop_from_cache(path: Path) -> None:
    for file in path.rglob("data.mdb"):
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def report(name: str, path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    times = json.loads(done.stdout)
    peak_mb = times.pop("peak MB")
    laps = ", ".join(f"{lap} {seconds * 1e3:.1f} ms" for lap, seconds in times.items())
    print(f"{name}: {laps}; peak {peak_mb:.0f} MB")


if __name__ == "__main__":
    main()
