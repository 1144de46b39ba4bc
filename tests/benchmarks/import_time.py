"""Seconds to import `cn_clip.clip`, ours and the reference's, beside `import torch`.

`python tests/benchmarks/import_time.py [REFERENCE_DIR]`: fresh processes in turn, the median of each. The first use of
a function loads what the import left out, so `load_from_name` and `tokenize` are timed too.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUNS = 7
TIMED = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
API = "from cn_clip.clip import load_from_name, available_models, tokenize"


def seconds(statement: str, path: Path) -> float:
    """Wall time of one statement in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", TIMED.format(statement)],
        env={**os.environ, "PYTHONPATH": str(path)},
        cwd=path,  # `-c` puts the working folder first on sys.path
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def main() -> None:
    reference = Path(
        sys.argv[1]
        if len(sys.argv) > 1
        else os.environ.get("CN_CLIP_REFERENCE_DIR", ROOT / ".venv/reference")
    )
    cases = {
        "import torch": ("import torch", ROOT),
        "import cn_clip.clip": ("import cn_clip.clip", ROOT),
        "  and its functions": (API, ROOT),
        "  and one caption": ("import cn_clip.clip as c; c.tokenize('杰尼龟')", ROOT),
    }
    if (reference / "cn_clip").is_dir():
        cases["reference: import cn_clip.clip"] = ("import cn_clip.clip", reference)
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(RUNS):  # in turn, so that a busy minute hits all alike
        for name, (statement, path) in cases.items():
            times[name].append(seconds(statement, path))
    torch_seconds = statistics.median(times["import torch"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:32s} {median:6.3f} s   {median / torch_seconds:5.2f} x torch")


if __name__ == "__main__":
    main()
