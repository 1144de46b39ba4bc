"""Memory does not grow with the number of rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import io, resource, sys
from pathlib import Path
from PIL import Image
from cn_clip.preprocess.importing.items import BytesContent, Part, Picture, Source, Text
from cn_clip.preprocess.importing import progress
from cn_clip.preprocess.importing.run import run_import
from cn_clip.preprocess.importing.run_options import RunOptions
from cn_clip.preprocess.importing.split_choice import SplitChoice

count, folder = int(sys.argv[1]), Path(sys.argv[2])
progress._CACHE_KIB = 1024  # else the cache fills for as long as this test may take
file = io.BytesIO()
Image.new("RGB", (8, 8)).save(file, "PNG")
content = BytesContent(file.getvalue())

def items():
    for number in range(count):
        key = f"a/folder/of/pictures/{number * 7919 % count:09d}.jpg"
        yield Picture(key, content, "here")
        yield Text(f"caption {number}", (key,), "here")

choice = SplitChoice(valid_share=0.1)
source = Source(parts=[Part("rows", items)], splits=choice.names(), choice=choice)
for _ in range(2):  # the second one reads the maps of the first
    run_import("test", None, source, RunOptions(output_dir=folder, workers=0))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_is_flat(tmp_path: Path) -> None:
    taken_kib = []
    for count in (2_000, 60_000):
        words = [sys.executable, "-c", CODE, str(count), str(tmp_path / str(count))]
        taken_kib.append(int(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
    assert taken_kib[1] - taken_kib[0] < 5 << 10, taken_kib
