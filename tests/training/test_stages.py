"""A run in stages: what changes between them, and that it can be stopped and gone on with anywhere."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cn_clip.clip.lora import merged
from cn_clip.clip.model import build_model
from cn_clip.errors import ConfigError, Preempted, WeightsError
from cn_clip.training.build import build_config
from cn_clip.training.checkpoints.consolidation import whole_content
from cn_clip.training.checkpoints.content import own_weights
from cn_clip.training.stages import stages_of
from cn_clip.training.step_log import MEASURED, StepLog
from tests.training.conftest import Train

STAGES: list[dict[str, Any]] = [
    {"name": "locked", "steps": 3, "model": {"freeze_image": True}},
    {
        "name": "small",
        "epochs": 1,
        "model": {"mask_ratio": 0.5, "mask_schedule": "linear", "image_px": 16},
        "optim": {"lr": 2e-4, "warmup_steps": 1},
    },
    {"name": "large", "steps": 4, "train": {"batch_size": 8}, "ema": {"decay": 0.9}},
]


@pytest.fixture
def staged(tmp_path: Path) -> str:
    path = tmp_path / "stages.yaml"
    path.write_text(yaml.safe_dump({"stages": STAGES}))
    return f"--config={path}"


def rows(run: Path, kind: str = "train") -> list[dict[str, Any]]:
    found = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in found if row["kind"] == kind]


def checkpoint(run: Path, name: str = "epoch_latest.pt") -> dict[str, Any]:
    found: dict[str, Any] = torch.load(run / "checkpoints" / name, weights_only=True)
    return found


def test_stages_follow_one_another(train: Train, staged: str) -> None:
    run = train(staged)
    steps = rows(run)
    assert [row["step"] for row in steps] == list(range(1, 14))  # 3, 6 of an epoch, 4
    assert [row["epoch"] for row in steps] == [1] * 3 + [2] * 6 + [3] * 3 + [4]
    plans = rows(run, "plan")
    assert [
        (plan["step"], plan["global_batch"], plan["steps_per_epoch"], plan["last_step"]) for plan in plans
    ] == [
        (0, 4, 6, 3),
        (3, 4, 6, 9),
        (9, 8, 3, 13),
    ]
    assert [row["lr"] for row in steps[:2]] == pytest.approx([2.5e-4, 5e-4])
    assert steps[3]["lr"] == pytest.approx(2e-4)  # warms up anew
    locked, small, large = (checkpoint(run, f"epoch{epoch}.pt") for epoch in (1, 2, 4))
    assert locked["state_dict"]["module.visual.positional_embedding"].shape[0] == 17
    assert small["state_dict"]["module.visual.positional_embedding"].shape[0] == 5
    assert large["state_dict"]["module.visual.positional_embedding"].shape[0] == 17
    assert [found["cn_clip"]["stage"] for found in (locked, small, large)] == [0, 1, 2]
    assert large["cn_clip"]["average"] is not None and small["cn_clip"]["average"] is None


def test_a_locked_tower_learns_in_the_next_stage(train: Train, staged: str) -> None:
    run = train(staged, "--save-step-frequency=1")
    before = [checkpoint(run, f"epoch_1_{step}.pt")["state_dict"] for step in (1, 3)]
    key = "module.visual.conv1.weight"
    torch.testing.assert_close(before[0][key], before[1][key], rtol=0, atol=0)
    assert not torch.equal(checkpoint(run, "epoch2.pt")["state_dict"][key], before[0][key])


@pytest.mark.parametrize("step", [2, 3, 5, 9, 11])
def test_a_run_that_is_gone_on_with_from_anywhere_ends_the_same(
    train: Train, staged: str, step: int, tmp_path: Path
) -> None:
    """From the file of any step; 3 and 9 are the last of their stages."""
    whole = train(staged, "--save-step-frequency=1", name="whole")
    (file,) = whole.glob(f"checkpoints/epoch_*_{step}.pt")
    again = train(staged, f"--resume={file}", name="again")
    one, other = checkpoint(whole), checkpoint(again)
    for key, value in one["state_dict"].items():
        torch.testing.assert_close(other["state_dict"][key], value, rtol=0, atol=0)
    for number, state in one["optimizer"]["state"].items():
        torch.testing.assert_close(other["optimizer"]["state"][number], state, rtol=0, atol=0)
    assert rows(again) == rows(whole)[step:]


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([{"model": {"freeze_image": True}}], r"stages\[0\]: give either `steps` or `epochs`"),
        ([{"steps": 1, "epochs": 1}], "either"),
        (
            [{"steps": 1}, {"steps": 1, "model": {"freeze_imag": 1}}],
            r"stages\[1\]: .*did you mean model.freeze_image",
        ),
        ([{"steps": 1, "run": {"seed": 1}}], "run holds for the whole run"),
        ([{"steps": 1, "model": {"image": "RN50"}}], "model.image is what the run begins with"),
        ([{"name": "a", "steps": 1}, {"name": "a", "steps": 1}], "two stages have the name 'a'"),
        ([{"steps": 0}], "train.max_steps is 0"),
        ([{"steps": 1}, {"steps": 1, "optim": {"type": "lion"}}], r"stages\[1\]: optim.type is lion"),
        (
            [{"steps": 1}, {"steps": 1, "optim": {"schedule": "cooldown"}}],
            r"stages\[1\]: .*cooldown_steps is 0",
        ),
        (
            [{"steps": 1}, {"steps": 1, "model": {"freeze_image": True, "freeze_text": True}}],
            r"stages\[1\]: .*nothing but the scale",
        ),
        (
            [{"steps": 1}, {"steps": 1, "model": {"freeze_image": True}, "lora": {"image_rank": 2}}],
            r"stages\[1\]: lora.image_rank trains adapters",
        ),
        (
            [{"steps": 1}, {"steps": 1, "ema": {"decay": 0.9}, "parallel": {"engine": "zero3"}}],
            r"stages\[1\]: ema.decay averages",
        ),
    ],
)
def test_wrong_stages_are_told_before_anything_starts(stages: list[dict[str, Any]], said: str) -> None:
    settings = {"data": {"train": {"type": "lmdb_pairs", "path": "x"}}, "stages": stages}
    with pytest.raises(ConfigError, match=said):
        stages_of(build_config(settings), build_config)


@pytest.mark.parametrize(
    ("distill", "error", "said"),
    [
        ({"teacher": "/nowhere.pt"}, WeightsError, "/nowhere.pt"),
        ({"type": "similarity"}, ConfigError, "captions"),
    ],
)
def test_a_teacher_of_a_later_stage_is_looked_for_before_the_first(
    train: Train, tmp_path: Path, distill: dict[str, Any], error: type[Exception], said: str
) -> None:
    (tmp_path / "features.jsonl").write_text("")
    teacher = {"enabled": True, "teacher": str(tmp_path / "features.jsonl")}
    stages = [{"name": "one", "steps": 1}, {"name": "two", "steps": 1, "distill": {**teacher, **distill}}]
    with pytest.raises(error, match=said):
        train(with_stages(tmp_path, stages, "taught"))
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_files_of_towers_are_read_where_the_run_begins_only(train: Train, tmp_path: Path) -> None:
    weights = tmp_path / "bert.pt"
    model = build_model("tiny-vit", "tiny-bert").state_dict()
    torch.save({name: tensor for name, tensor in model.items() if name.startswith("bert.")}, weights)
    words = [f"--set=model.text_weights={weights}"]
    train(with_stages(tmp_path, SHORT[:1], "one"), *words)
    weights.unlink()
    run = train(with_stages(tmp_path, SHORT, "two"), *words)
    assert [row["step"] for row in rows(run)] == list(range(1, 9))


def test_stages_need_checkpoints(train: Train, staged: str) -> None:
    with pytest.raises(ConfigError, match="checkpoint.enabled"):
        train(staged, "--logs=None")


def with_stages(tmp_path: Path, stages: list[dict[str, Any]], name: str) -> str:
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"stages": stages}))
    return f"--config={path}"


SHORT: list[dict[str, Any]] = [{"name": "one", "steps": 2}, {"name": "two", "epochs": 1}]
"""Of batches of 4: steps 1 and 2, and 3 to 8."""


@pytest.fixture
def short(train: Train, tmp_path: Path) -> Path:
    return train(with_stages(tmp_path, SHORT, "short"), "--save-step-frequency=1", name="short")


@pytest.mark.parametrize(
    ("file", "stages", "words", "steps", "said"),
    [
        # the 4th step is the second of stage two's epoch: with other batches on after that epoch, which is its last
        ("epoch_2_4.pt", SHORT, ["--batch-size=8"], [], "global batch: 4 -> 8"),
        # in the first stage: after its epoch, capped by its end
        ("epoch_1_1.pt", SHORT, ["--batch-size=8"], [3, 4, 5], "global batch: 4 -> 8"),
        # an earlier stage was made longer: the place in its own stage holds, and nothing before it comes again
        ("epoch_2_4.pt", [{"name": "one", "steps": 4}, SHORT[1]], [], [7, 8, 9, 10], "one of 2 steps -> one of 4"),
        ("epoch_2_4.pt", [SHORT[1]], [], [3, 4, 5, 6], "2 stages -> 1"),
        ("epoch_2_4.pt", [{"name": "new", "steps": 1}, *SHORT], [], [6, 7, 8, 9], "2 stages -> 3"),
        ("epoch_2_4.pt", [SHORT[0]], [], [], "has no stage 2, which the checkpoint is from"),
        ("epoch_2_4.pt", [SHORT[0], {"name": "two", "steps": 1}], [], [], "two of 1 epochs -> two of 1 steps"),
    ],
)  # fmt: skip
def test_a_place_is_told_in_the_stages_as_they_are_now(
    train: Train, short: Path, tmp_path: Path, file: str, stages: list[dict[str, Any]], words: list[str],
    steps: list[int], said: str,
) -> None:  # fmt: skip
    source = short / "checkpoints" / file
    run = train(with_stages(tmp_path, stages, "other"), f"--resume={source}", *words, name="other")
    found = [row["step"] for row in rows(run)] if (run / "metrics.jsonl").exists() else []
    assert found == steps
    log = "".join(path.read_text() for path in run.glob("out_*.log"))
    assert said in log and "WARNING" in log


def test_a_validation_put_off_at_the_end_of_a_stage_comes_with_that_stage_s_settings(
    train: Train, tiny_split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [with_stages(tmp_path, SHORT, "valid"), f"--val-data={tiny_split}"]
    whole = train(*words, name="whole")
    advance = StepLog.advance

    def stop_in_the_next_step(log: StepLog) -> None:
        advance(log)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(StepLog, "advance", stop_in_the_next_step)
        with pytest.raises(Preempted, match="after step 2: saved"):
            train(*words, name="cut")
    assert rows(tmp_path / "cut", "valid") == []
    cut = train(*words, name="cut")
    assert [row["step"] for row in rows(cut, "valid")] == [2, 8]
    assert rows(cut, "valid") == rows(whole, "valid") and rows(cut) == rows(whole)


def test_stages_as_they_were_are_not_warned_of(train: Train, short: Path, tmp_path: Path) -> None:
    source = short / "checkpoints" / "epoch_2_4.pt"
    run = train(with_stages(tmp_path, SHORT, "again"), f"--resume={source}", name="again")
    assert [row["step"] for row in rows(run)] == [5, 6, 7, 8]
    log = "".join(path.read_text() for path in run.glob("out_*.log"))
    assert "stages are not those" not in log and "meets other pairs" not in log


LIVE = {"optim": {"lr": 1e-2, "warmup_steps": 0}, "ema": {"decay": 0.999, "warmup": False}}
STILL = {"optim": {"lr": 0.0}, "ema": {"decay": None}}


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("rank", [0, 2], ids=["all weights", "adapters"])
def test_what_a_stage_drops_does_not_cost_the_live_weights(
    train: Train, tmp_path: Path, sharded: bool, rank: int
) -> None:
    """Stage one has an average, a teacher's projection and maybe adapters; then other adapters, then none of them."""
    features = tmp_path / "teacher.jsonl"
    lines = [{"image_id": 100 + n, "feature": [float(n % 5), 1.0, 2.0]} for n in range(21)]
    features.write_text("".join(json.dumps(line) + "\n" for line in lines))
    taught = {"distill": {"enabled": True, "teacher": str(features)}, "lora": {"image_rank": rank}}
    stages: list[dict[str, Any]] = [
        {"name": "taught", "steps": 2, **LIVE, **taught},
        {"name": "other", "steps": 1, **STILL, "lora": {"image_rank": rank and rank + 1}},
        {"name": "none", "steps": 1, **STILL},
    ]
    words = ["--save-step-frequency=1", *(["--set=checkpoint.sharded=true"] if sharded else [])]
    run = train(with_stages(tmp_path, stages, "dropping"), *words)
    first, second, third = (_content(run, step) for step in (2, 3, 4))
    live = own_weights(first, "live")
    assert live is not None
    key = "visual.transformer.resblocks.0.attn.in_proj_weight"
    wanted = merged(live)[key]
    assert not torch.equal(wanted, first["state_dict"][f"module.{key}"])  # the average lags behind
    for later in (second, third):
        torch.testing.assert_close(later["state_dict"][f"module.{key}"], wanted, rtol=0, atol=1e-7)


def _content(run: Path, step: int) -> dict[str, Any]:
    (path,) = run.glob(f"checkpoints/epoch_*_{step}.*")
    found: dict[str, Any] = whole_content(path) if path.is_dir() else torch.load(path, weights_only=True)
    return found


def test_adapters_follow_a_stage_that_trained_all(train: Train, tmp_path: Path) -> None:
    stages = [{"steps": 2}, {"steps": 2, "lora": {"image_rank": 2, "text_rank": 2}}, {"steps": 1}]
    path = tmp_path / "adapters.yaml"
    path.write_text(yaml.safe_dump({"stages": stages}))
    run = train(f"--config={path}", "--save-step-frequency=1")
    assert [row["step"] for row in rows(run)] == [1, 2, 3, 4, 5]
    key = "module.visual.transformer.resblocks.0.attn.in_proj_weight"
    weights = [
        checkpoint(run, file.name)["state_dict"][key] for file in sorted(run.glob("checkpoints/epoch_*_*.pt"))
    ]
    assert all(not torch.equal(one, other) for one, other in zip(weights, weights[1:], strict=False))
