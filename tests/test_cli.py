from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cn_clip import __version__, cli
from cn_clip.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]


def cn_clip(*words: str) -> subprocess.CompletedProcess[str]:
    code = "from cn_clip.cli import command; command()"
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize("words", [["--help"], ["-h"], [], ["--version"]])
def test_help_and_version_come_without_torch(words: list[str]) -> None:
    code = f"""
import sys
from cn_clip.cli import main
main({words!r})
assert not {{"torch", "numpy", "yaml", "transformers"}} & set(sys.modules), sorted(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert ("cn_clip " + __version__ if words == ["--version"] else "build-lmdb") in done.stdout


def test_help_answers_in_half_a_second() -> None:
    def seconds() -> float:
        start = time.perf_counter()
        assert cn_clip("--help").returncode == 0
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.5


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_a_door(name: str) -> None:
    module, meaning = cli.COMMANDS[name]
    assert importlib.util.find_spec(module) is not None
    assert meaning in cli.usage()
    done = cn_clip(name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"usage: cn-clip {name} " in done.stdout


@pytest.mark.parametrize(
    ("word", "hint"), [("evalute", "did you mean evaluate?"), ("zzz", "see cn-clip --help")]
)
def test_a_misspelt_command_is_named(word: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"cn-clip has no command '{word}'; {hint}".replace("?", r"\?")):
        cli.main([word])


def test_a_misspelt_command_ends_with_one_sentence_and_2() -> None:
    done = cn_clip("evalute")
    assert done.returncode == 2
    assert done.stderr == "error: cn-clip has no command 'evalute'; did you mean evaluate?\n"


def test_words_reach_the_door() -> None:
    done = cn_clip("train", "--trian-data", "x")
    assert done.returncode == 2
    assert done.stderr == "error: --trian-data is not a flag of training; did you mean --train-data?\n"
