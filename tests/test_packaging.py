"""The built package holds what the checkout holds, and an older installed one cannot take the checkout's place."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

import cn_clip

ROOT = Path(__file__).resolve().parents[1]
SETUP = """
import json, setuptools, sys
sys.path.insert(0, "")
found = {}
setuptools.setup = lambda **words: found.update(words)
exec(compile(open("setup.py").read(), "setup.py", "exec"), {"__file__": "setup.py", "__name__": "setup"})
print(json.dumps(found))
assert "cn_clip" not in sys.modules and "torch" not in sys.modules
"""


@pytest.fixture(scope="module")
def metadata() -> dict:
    done = subprocess.run([sys.executable, "-c", SETUP], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_version_is_read_without_importing(metadata: dict) -> None:
    assert metadata["version"] == cn_clip.__version__


def test_every_file_of_the_package_is_packed(metadata: dict) -> None:
    packages = {name.replace(".", "/") for name in metadata["packages"]}
    patterns = metadata["package_data"]["cn_clip"]
    for path in (ROOT / "cn_clip").rglob("*"):
        if not path.is_file() or "__pycache__" in path.parts:
            continue
        inside = path.relative_to(ROOT / "cn_clip")
        if path.suffix == ".py":
            assert str(path.parent.relative_to(ROOT)) in packages, f"{path.parent} has no __init__.py"
        else:
            assert any(fnmatch(str(inside), pattern.replace("**/", "*")) for pattern in patterns), inside


def test_requirements_agree_with_the_package(metadata: dict) -> None:
    declared = set(metadata["install_requires"]) | {
        need for extra in metadata["extras_require"].values() for need in extra
    }
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    needs = {line for line in lines if line and not line.startswith("#")}
    assert needs <= declared
    assert not [need for need in needs if "==" in need]


def test_what_the_main_job_imports_is_declared(metadata: dict) -> None:
    imported = set()
    for path in (ROOT / "cn_clip").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    third_party = imported - set(sys.stdlib_module_names) - {"cn_clip", "__future__"}
    names = {"open_clip": "open_clip_torch", "PIL": "pillow", "yaml": "pyyaml"}
    brought = {
        "huggingface_hub": "transformers",
        "safetensors": "transformers",
        "markupsafe": "jinja2",
    }  # hard requirements of those
    declared = {re.split(r"[<>=\[]", need)[0] for need in metadata["install_requires"]}
    optional = {
        re.split(r"[<>=\[]", need)[0] for extra in metadata["extras_require"].values() for need in extra
    }
    optional |= {"faiss"}
    missing = {
        name for name in third_party if names.get(name, brought.get(name, name)) not in declared | optional
    }
    assert missing == set()


@pytest.mark.parametrize(
    "door", ["training/main.py", "eval/evaluation.py", "preprocess/build_lmdb_dataset.py"]
)
@pytest.mark.parametrize("cwd", ["/", "old"])
def test_an_older_installed_package_does_not_shadow_a_door_run_by_path(
    door: str, cwd: str, tmp_path: Path
) -> None:
    old = tmp_path / "cn_clip"
    for folder in ("", "training", "eval", "preprocess", "config"):
        (old / folder).mkdir(parents=True, exist_ok=True)
        (old / folder / "__init__.py").write_text("raise SystemExit('the older package was imported')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    words = [sys.executable, str(ROOT / "cn_clip" / door), "--help"]
    folder = tmp_path if cwd == "old" else Path("/")
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
