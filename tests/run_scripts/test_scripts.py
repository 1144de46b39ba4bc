"""The scripts by name: their words reach the door, and every recipe loads."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Bash = Callable[..., subprocess.CompletedProcess[str]]

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path.stem for path in (ROOT / "run_scripts").glob("*_finetune_*.sh"))


def test_the_reference_s_names_are_there() -> None:
    assert SCRIPTS == [
        "coco-cn_finetune_vit-b-16_rbt-base",
        "flickr30k_finetune_vit-b-16_rbt-base",
        "flickr30k_finetune_vit-b-16_rbt-base_flip",
        "muge_finetune_vit-b-16_rbt-base",
        "muge_finetune_vit-b-16_rbt-base_distillation",
        "muge_finetune_vit-b-16_rbt-base_flashattn",
        "muge_finetune_vit-b-16_rbt-base_flip",
    ]
    assert (ROOT / "run_scripts" / "zeroshot_eval.sh").exists()


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_hands_its_recipe_and_words_on(
    name: str, bash: Bash, echo_python: str, tmp_path: Path
) -> None:
    (tmp_path / "my data").mkdir()
    done = bash(
        f"{ROOT}/run_scripts/{name}.sh", "my data", "--lr=1e-5", "--set", "run.name=a b", PYTHON=echo_python
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == [
        f"DATAPATH={tmp_path / 'my data'}",
        f"PYTHONPATH={ROOT}",
        "-u",
        f"{ROOT}/cn_clip/training/main.py",
        "--config",
        f"{ROOT}/configs/{name}.yaml",
        "--lr=1e-5",
        "--set",
        "run.name=a b",
    ]


@pytest.mark.parametrize("words", [[], ["--lr=1"], ["/no/such/folder"]])
def test_a_script_without_its_data_says_how_it_is_used(words: list[str], bash: Bash) -> None:
    done = bash(f"{ROOT}/run_scripts/{SCRIPTS[0]}.sh", *words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert f"usage: bash {ROOT}/run_scripts/{SCRIPTS[0]}.sh DATAPATH" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_zeroshot_takes_the_reference_s_places(bash: Bash, echo_python: str, tmp_path: Path) -> None:
    (tmp_path / "d" / "datasets" / "cifar-10" / "test").mkdir(parents=True)
    words = ["0", "d", "cifar-10", "ViT-B-16", "RoBERTa-wwm-ext-base-chinese", "a.pt"]
    script = f"{ROOT}/run_scripts/zeroshot_eval.sh"
    done = bash(script, *words, PYTHON=echo_python)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2:] == [
        "-u",
        f"{ROOT}/cn_clip/eval/zeroshot_evaluation.py",
        "--datapath=d/datasets/cifar-10/test",
        "--label-file=d/datasets/cifar-10/label_cn.txt",
        "--save-dir=d/save_predictions",
        "--dataset=cifar-10",
        "--img-batch-size=64",
        "--resume=a.pt",
        "--vision-model=ViT-B-16",
        "--text-model=RoBERTa-wwm-ext-base-chinese",
    ]
    assert "--index=i.json" in bash(script, *words, "i.json", PYTHON=echo_python).stdout
    assert (
        bash(script, *words, "", "--num-workers=0", PYTHON=echo_python).stdout.splitlines()[-1]
        == "--num-workers=0"
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["0", "d"], "error: usage: "),
        (["0", "d", "no-set", "V", "T", "a.pt"], "error: there is no folder d/datasets/no-set/test"),
    ],
)
def test_zeroshot_refuses_what_cannot_be(words: list[str], sentence: str, bash: Bash) -> None:
    done = bash(f"{ROOT}/run_scripts/zeroshot_eval.sh", *words)
    assert done.returncode == 2
    assert done.stderr.startswith(sentence)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_scripts_pass_shellcheck() -> None:
    scripts = [*(ROOT / "run_scripts").glob("*.s*"), *(ROOT / "tests").glob("*.sh")]
    done = subprocess.run(["shellcheck", "-x", *map(str, scripts)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
