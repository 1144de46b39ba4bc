"""`--dry-run`: a plan for a run that can start, the run's own error for one that cannot, and nothing left behind."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cn_clip.clip.model import build_model
from cn_clip.errors import CnClipError, ConfigError, DataError, DeviceError, WeightsError
from cn_clip.training.diagnosis.output_folder import DiskNeed, check_disk
from cn_clip.training.main import main
from tests.training.conftest import Train

TINY = (
    "--vision-model=tiny-vit", "--text-model=tiny-bert", "--batch-size=4", "--valid-batch-size=7", "--warmup=2",
    "--max-epochs=3", "--precision=fp32", "--name=run",
)  # fmt: skip
DryRun = Callable[..., dict[str, list[str]]]


@pytest.fixture
def dry_run(tiny_split: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> DryRun:
    """Lines of the plan by subject. Whatever comes of it, the folder of runs is as it was."""

    def run(*words: str) -> dict[str, list[str]]:
        before = files_in(tmp_path)
        try:
            main([f"--train-data={tiny_split}", f"--logs={tmp_path}", *TINY, *words, "--dry-run"])
        finally:
            assert files_in(tmp_path) == before
        plan: dict[str, list[str]] = {}
        for line in capsys.readouterr().out.splitlines():
            subject, _, says = line.partition("  ")
            plan.setdefault(subject, []).append(says.strip())
        return plan

    return run


def files_in(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


def test_a_run_that_can_start_has_a_plan(dry_run: DryRun, tiny_split: Path) -> None:
    plan = dry_run(f"--val-data={tiny_split}")
    assert plan["settings"] == ["tiny-vit and tiny-bert on cpu, one process, fp32"]
    assert plan["weights"] == ["fresh, from the seed"]
    assert "21 pairs of 21 pictures, validation 21" in plan["data"][0]
    assert "steps 1 to 18, 3 epochs of 6 steps; batches of 4 pairs" in plan["plan"][0]
    assert "learning rate 0.00025 at the first step, at most 0.0005 after 2" in plan["plan"][0]
    assert "optimizer" in plan["memory"][0]
    assert "4 at once at most" in plan["disk"][0]
    assert "18 of 18 steps are to be done" in plan["result"][0]


def test_a_run_that_goes_on_says_from_where(dry_run: DryRun, train: Train) -> None:
    train("--max-steps=4", "--save-step-frequency=2")
    plan = dry_run()
    assert "epoch 1, step 4; 4 steps are done" in plan["resume"][0]
    assert plan["weights"][0].endswith("epoch_latest.pt")
    assert "14 of 18 steps" in plan["result"][0]
    assert "nothing is left to do" in dry_run("--max-steps=4")["result"][0]


def test_the_size_of_checkpoints_is_known_before_there_is_one(dry_run: DryRun, train: Train) -> None:
    run = train("--max-steps=1")
    real = (run / "checkpoints" / "epoch_latest.pt").stat().st_size
    predicted = float(dry_run("--resume=none")["disk"][0].split()[2]) * 2**20
    assert predicted == pytest.approx(real, rel=0.05)


def test_stages_are_planned_one_by_one(dry_run: DryRun, tmp_path: Path) -> None:
    config = tmp_path / "stages.yaml"
    config.write_text(
        "stages:\n- {name: locked, epochs: 1, model: {freeze_image: true, mask_ratio: 0.5}}\n"
        "- {name: open, steps: 5, optim: {lr: 1.0e-5}}\n"
    )
    plan = dry_run(f"--config={config}", "--warmup=1")
    assert plan["stage 1"][0].startswith("locked: steps 1 to 6")
    assert "image tower frozen; 50% of the patches masked for 6 steps" in plan["stage 1"][0]
    assert plan["stage 2"][0].startswith("open: steps 7 to 11")
    assert "at most 1e-05" in plan["stage 2"][0]
    assert len(plan["memory"]) == 2


@pytest.mark.parametrize(
    ("words", "error", "sentence"),
    [
        (("--train-data=/nowhere",), DataError, "/nowhere is not a folder"),
        (("--val-data=/nowhere",), DataError, "/nowhere is not a folder"),
        (("--resume=/nowhere/epoch9.pt",), WeightsError, "no checkpoint found at '/nowhere/epoch9.pt'"),
        (("--set=model.init_from=/nowhere.pt",), WeightsError, "/nowhere.pt"),
        (("--bert-weight-path=/nowhere.bin",), WeightsError, "/nowhere.bin"),
        (("--precision=fp16",), DeviceError, "needs a GPU"),
        (("--use-bn-sync",), DeviceError, "GPUs"),
        (("--set=run.device=cuda",), DeviceError, "no GPU"),
        (("--set=optim.type=adamv",), ConfigError, "adamv"),
        (("--set=optim.schedule=cooldown",), ConfigError, "cooldown_steps"),
        (("--set=model.attention=flash_attn",), DeviceError, "flash_attn"),
        (("--set=model.freeze_text_blocks=3",), ConfigError, "has 2 blocks"),
        (("--set=checkpoint.best=mean_recall",), ConfigError, "nothing is validated"),
        (("--set=parallel.engine=zero1", "--precision=bf16"), ConfigError, "train.precision=bf16"),
        (
            ("--set=parallel.engine=zero1", "--set=parallel.deepspeed_config=/no.json"),
            ConfigError,
            "/no.json",
        ),
        (("--distillation", "--teacher-model-name=/no/teacher"), WeightsError, "/no/teacher"),
        (("--batch-size=4000000", "--set=train.on_out_of_memory=stop"), DeviceError, "too little"),
        (('--set=stages=[{"steps": 1, "optim": {"lrr": 1}}]',), ConfigError, r"stages\[0\].*did you mean"),
        (('--set=stages=[{"optim": {"lr": 1}}]',), ConfigError, r"stages\[0\].*how long"),
    ],
)
def test_what_is_missing_is_said_before_the_run(
    dry_run: DryRun, words: tuple[str, ...], error: type[CnClipError], sentence: str
) -> None:
    with pytest.raises(error, match=sentence) as caught:
        dry_run(*words)
    assert "\n" not in str(caught.value)


def test_weights_of_other_towers_do_not_fit(dry_run: DryRun, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.save(build_model("tiny-resnet", "tiny-bert").state_dict(), file)
    with pytest.raises(WeightsError, match="does not fit the model"):
        dry_run(f"--set=model.init_from={file}")
    assert str(file) in dry_run(f"--set=model.init_from={file}", "--vision-model=tiny-resnet")["weights"][0]


def test_another_optimizers_state_does_not_fit(dry_run: DryRun, train: Train) -> None:
    train("--max-steps=2")
    with pytest.raises(WeightsError, match="optim"):
        dry_run("--set=optim.type=lion")
    assert dry_run("--set=optim.type=lion", "--reset-optimizer")["result"]


def test_a_picture_that_cannot_be_read_is_named(dry_run: DryRun, tmp_path: Path, tiny_split: Path) -> None:
    from cn_clip.data.store import SplitWriter

    with SplitWriter(tmp_path / "holed") as writer:
        for number in range(4):
            writer.add_pair(number, number, "花")
        writer.add_image(9, b"no picture")
    with pytest.raises(DataError, match="no picture with id"):
        dry_run(f"--train-data={tmp_path / 'holed'}")


def test_a_folder_that_cannot_be_written_is_named(dry_run: DryRun, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot make the run folder"):
        dry_run(f"--logs={tmp_path / 'file'}")


def test_checkpoints_must_fit_on_the_disk(tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)
    assert "2 at once" in check_disk(DiskNeed(1000.0, 2), tmp_path)
    with pytest.raises(DataError, match="checkpoint.keep_last=9"):
        check_disk(DiskNeed(usage.free / 10.5, 20), tmp_path)
    with pytest.raises(DataError, match="another disk"):
        check_disk(DiskNeed(2.0 * usage.free, 2), tmp_path)
    assert "no checkpoints" in check_disk(DiskNeed(1e30, 0), tmp_path)


@pytest.mark.parametrize(
    ("words", "num_files"),
    [
        ((), 4),
        (("--save-epoch-frequency=2",), 3),
        (("--save-step-frequency=6",), 7),
        (("--set=checkpoint.keep_last=2",), 3),
        (("--set=checkpoint.every_epochs=null",), 2),
        (("--logs=None",), 0),
    ],
)
def test_files_that_will_lie_there_are_counted(
    dry_run: DryRun, words: tuple[str, ...], num_files: int
) -> None:
    said = dry_run(*words)["disk"][0]
    assert (f"{num_files} at once" in said) if num_files else ("no checkpoints" in said)


def test_the_door_plans_and_leaves_nothing(
    tiny_split: Path, tmp_path: Path, run_ours: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """By its path, as a user does."""
    words = (f"--train-data={tiny_split}", f"--logs={tmp_path / 'logs'}", *TINY, "--dry-run")
    done = run_ours("cn_clip/training/main.py", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("result ")
    assert not (tmp_path / "logs").exists()
