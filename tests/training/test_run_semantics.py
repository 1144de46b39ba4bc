"""When a run saves, validates, clamps and says what: the rows of docs/contracts.md that a tiny run can show."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch

from cn_clip.clip.model import build_model
from cn_clip.clip.presets import text_preset
from cn_clip.clip.tower_tokenizer import TowerTokenizer
from cn_clip.config.legacy_flags import FLAGS
from cn_clip.config.load import merge
from cn_clip.data.store import SplitWriter
from cn_clip.parallel.ranks import Ranks
from cn_clip.training.build import build_config
from cn_clip.training.checkpoints import Position, steps_done
from cn_clip.training.run_dir import RunDir, logging_to
from cn_clip.training.trainer import Plan
from cn_clip.training.training_data import CaptionTokens
from tests.training.conftest import Train, png


def said(run: Path) -> list[str]:
    """Messages of the run's log, oldest first, without the prefix."""
    (log,) = run.glob("out_*.log")
    return [line.split(" | ", 3)[3] for line in log.read_text(encoding="utf-8").splitlines()]


def said_by_all(run: Path) -> list[str]:
    """Messages of every log of a run folder; two runs of one second share one."""
    logs = sorted(run.glob("out_*.log"))
    return [line.split(" | ", 3)[3] for log in logs for line in log.read_text(encoding="utf-8").splitlines()]


def places(messages: list[str], part: str) -> list[int]:
    return [place for place, message in enumerate(messages) if part in message]


def valid_losses(run: Path) -> list[str]:
    found = [re.search(r"Valid Loss: ([\d.]+)", message) for message in said(run)]
    return [match[1] for match in found if match]


def start_file(path: Path, logit_scale: float) -> Path:
    torch.manual_seed(3)
    model = build_model("tiny-vit", "tiny-bert")
    model.logit_scale.data.fill_(logit_scale)
    torch.save({f"module.{name}": value for name, value in model.state_dict().items()}, path)
    return path


@pytest.mark.parametrize(("start", "end"), [(9.0, 4.6052), (-3.0, 0.0), (2.5, 2.5)])
def test_the_logit_scale_is_clamped_after_each_step(
    train: Train, tmp_path: Path, start: float, end: float
) -> None:
    weights = start_file(tmp_path / "start.pt", start)
    run = train("--max-steps=1", "--lr=0", f"--set=model.init_from={weights}")
    saved = torch.load(run / "checkpoints" / "epoch_latest.pt", weights_only=True)["state_dict"]
    assert saved["module.logit_scale"].item() == pytest.approx(end, abs=1e-6)


def test_epoch_files_come_at_their_frequency_and_the_last_always(train: Train) -> None:
    run = train("--max-epochs=3", "--batch-size=21", "--save-epoch-frequency=2")
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "epoch2.pt",
        "epoch3.pt",
        "epoch_latest.pt",
    ]
    saved = [message for message in said(run) if message.startswith("Saved checkpoint")]
    latest = [message for message in saved if "epoch_latest.pt" in message]
    assert len(latest) == 3  # each epoch, also the one without a file of its own
    shape = r"Saved checkpoint \S+epoch_latest\.pt \(epoch 1 @ 1 steps\) \(writing took [\d.e-]+ seconds\)"
    assert re.fullmatch(shape, latest[0])


def test_a_last_epoch_that_is_cut_by_max_steps_is_saved_as_an_epoch(train: Train) -> None:
    run = train("--max-steps=8", "--max-epochs=1")  # six steps an epoch: max_steps wins over max_epochs
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "epoch1.pt",
        "epoch2.pt",
        "epoch_latest.pt",
    ]
    saved = torch.load(run / "checkpoints" / "epoch2.pt", weights_only=True)
    assert (saved["epoch"], saved["step"]) == (2, 8)


def test_validation_runs_at_its_intervals_and_before_saving(train: Train, tiny_split: Path) -> None:
    words = ("--max-epochs=2", "--valid-step-interval=4", "--save-step-frequency=4")
    messages = said(train(*words, f"--val-data={tiny_split}"))
    begun = [message for message in messages if message.startswith("Begin to eval on validation set")]
    assert begun == [
        f"Begin to eval on validation set (epoch {epoch} @ {step} steps)..."
        for epoch, step in ((1, 4), (1, 6), (2, 8), (2, 12))
    ]
    for epoch, step in ((1, 4), (1, 6), (2, 8), (2, 12)):
        (result,) = places(messages, f"Validation Result (epoch {epoch} @ {step} steps)")
        assert result < min(
            place for place in places(messages, f"(epoch {epoch} @ {step} steps) (writing took")
        )


@pytest.mark.parametrize("words", [("--precision=amp_bf16",), ("--mask-ratio=0.5",), ("--use-augment",)])
def test_validation_is_in_full_precision_with_whole_pictures(
    train: Train, tiny_split: Path, words: tuple[str, ...]
) -> None:
    """At a rate of 0 the weights stay, so whatever validation took over from training would show."""
    common = ("--max-steps=1", "--lr=0", "--valid-step-interval=1", f"--val-data={tiny_split}")
    assert valid_losses(train(*common, name="plain")) == valid_losses(train(*common, *words, name="other"))


def test_the_notes_of_a_run(train: Train) -> None:
    words = ("--max-steps=1", "--grad-checkpointing", "--freeze-vision", "--use-flash-attention")
    run = train(*words)
    messages = said(run)
    for note in (
        "Params:",
        "Grad-checkpointing activated.",
        "Using FlashAttention."
        if torch.cuda.is_available()
        else "model.flash_attention (--use-flash-attention) does nothing on this device: no flash kernel.",
        "The visual encoder is freezed during training.",
    ):
        assert messages.count(note) == 1, note
    resumed = train(
        "--max-steps=1", f"--resume={run / 'checkpoints/epoch1.pt'}", "--freeze-vision", name="on"
    )
    shown = said(resumed)
    assert shown.count(f"=> begin to load checkpoint '{run / 'checkpoints/epoch1.pt'}'") == 1
    assert shown.count(f"=> loaded checkpoint '{run / 'checkpoints/epoch1.pt'}' (epoch 1 @ 1 steps)") == 1


def test_params_file_lists_every_flag_sorted_with_defaults_filled_in(train: Train) -> None:
    run = train("--max-steps=1", "--vision-model=tiny-resnet")
    (params,) = run.glob("params_*.txt")
    lines = params.read_text(encoding="utf-8").splitlines()
    listed = dict(line.split(": ", 1) for line in lines)
    assert lines == sorted(lines)
    assert {flag.dest for flag in FLAGS} <= listed.keys()
    found_out = {
        "rank",
        "local_device_rank",
        "world_size",
        "device",
        "log_path",
        "checkpoint_path",
        "log_level",
    }
    assert found_out <= listed.keys() and listed["max_steps"] == "1"
    assert (listed["lr"], listed["beta2"], listed["eps"]) == ("0.0005", "0.999", "1e-08")  # a ResNet's own
    assert [f"  {line}" for line in lines] == [message for message in said(run) if message.startswith("  ")]


@pytest.mark.parametrize(
    ("image", "own"),
    [
        ("RN50", (5e-4, 0.9, 0.999, 1e-8)),
        ("ViT-B-32", (5e-4, 0.9, 0.98, 1e-6)),
        ("ViT-L-14-336", (4e-4, 0.9, 0.98, 1e-6)),
        ("ViT-H-14", (5e-4, 0.9, 0.98, 1e-6)),
    ],
)
def test_the_optimizer_s_defaults_are_the_image_tower_s(image: str, own: tuple[float, ...]) -> None:
    settings = merge({}, [("data.train", {"type": "lmdb_pairs", "path": "/d"}), ("model.image", image)])
    optim = build_config(settings).optim
    assert (optim.lr, optim.beta1, optim.beta2, optim.eps) == own
    assert build_config(merge(settings, [("optim.beta2", 0.95)])).optim.beta2 == 0.95


def test_training_captions_are_prepared_where_clip_tokenize_is_not() -> None:
    """D-43: curly quotes are [UNK] to the vocabulary, so training straightens them; `clip.tokenize` is as it was."""
    from cn_clip.clip import tokenize

    tokenizer = TowerTokenizer.of(text_preset("tiny-bert"), 12)
    prepared = CaptionTokens(tokenizer)(["“你好” ABC"])
    assert torch.equal(prepared, tokenize(['"你好" abc'], 12))
    assert not torch.equal(prepared, tokenize(["“你好” ABC"], 12))


def test_a_position_counts_only_among_as_many_steps_per_epoch() -> None:
    assert steps_done(Position(epoch=2, step=7), steps_per_epoch=6) == 7  # inside epoch 2
    assert steps_done(Position(epoch=2, step=12), steps_per_epoch=6) == 12  # at its end
    assert (
        steps_done(Position(epoch=2, step=12), steps_per_epoch=50) == 100
    )  # of another batch size: after epoch 2


def test_a_plan_that_max_steps_cuts() -> None:
    plan = Plan(steps_per_epoch=6, first_step=0, max_steps=8)
    assert plan.max_epochs == 2
    assert [plan.epoch_of(step) for step in (1, 6, 7, 8)] == [1, 1, 2, 2]
    assert [step for step in range(1, 9) if plan.ends_epoch(step)] == [6, 8]


def test_train_lines_come_at_their_interval(train: Train) -> None:
    messages = said(train("--max-steps=7", "--log-interval=3"))
    found = [message.split(" | ")[0] for message in messages if message.startswith("Global Steps")]
    assert found == ["Global Steps: 3/7", "Global Steps: 6/7"]


def test_long_validation_says_how_far_it_is(train: Train, tmp_path: Path) -> None:
    with SplitWriter(tmp_path / "valid") as writer:
        writer.add_image(1, png(1))
        for number in range(103):
            writer.add_pair(1, number, "花")
    words = ("--max-steps=1", "--valid-batch-size=1", f"--val-data={tmp_path / 'valid'}")
    messages = said(train(*words))
    assert [message for message in messages if message.startswith("Evaluated")] == [
        "Evaluated 100/103 batches..."
    ]


@pytest.mark.parametrize(("debug", "rank"), [(True, 0), (False, 3)])
def test_the_prefix_of_a_line_and_the_level(
    debug: bool, rank: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ranks = Ranks(rank, 4, rank, torch.device("cpu"))
    run_dir = RunDir(str(tmp_path), "run", writes=ranks.is_main)
    with logging_to(run_dir, ranks, debug=debug):
        logging.getLogger("some.module").debug("quiet")
        logging.getLogger("some.module").warning("loud %d", 7)
    shown = capsys.readouterr().err.splitlines()
    time = r"\d{4}-\d\d-\d\d,\d\d:\d\d:\d\d"
    assert re.fullmatch(rf"{time} \| WARNING \| Rank {rank} \| loud 7", shown[-1])
    assert any(line.endswith(f"DEBUG | Rank {rank} | quiet") for line in shown) == debug
    assert run_dir.log.is_file() == (rank == 0)  # other ranks are heard, but write no file


def test_weight_paths_fill_their_own_tower_only(train: Train, tmp_path: Path) -> None:
    torch.manual_seed(5)
    source = build_model("tiny-vit", "tiny-bert").state_dict()
    source["logit_scale"].fill_(3.0)
    image = {name: value for name, value in source.items() if not name.startswith("bert.")}
    text = {name: value for name, value in source.items() if name.startswith("bert.")}
    torch.save(image, tmp_path / "image.pt")
    torch.save({**text, "bert.pooler.dense.bias": torch.zeros(4)}, tmp_path / "text.pt")
    words = (f"--clip-weight-path={tmp_path / 'image.pt'}", f"--bert-weight-path={tmp_path / 'text.pt'}")
    run = train("--max-steps=1", "--lr=0", *words)
    saved = torch.load(run / "checkpoints" / "epoch_latest.pt", weights_only=True)["state_dict"]
    differing = {name for name, value in source.items() if not torch.equal(saved[f"module.{name}"], value)}
    assert differing == {"text_projection"}  # neither file is asked for it


def test_resuming_at_another_picture_size_stretches_the_positions(train: Train, tmp_path: Path) -> None:
    torch.manual_seed(5)
    larger = build_model("tiny-vit", "tiny-bert", image_px=64).state_dict()
    state = {f"module.{name}": value for name, value in larger.items()}
    torch.save({"epoch": 3, "step": 9, "name": "x", "state_dict": state, "optimizer": {}}, tmp_path / "64.pt")
    words = (f"--resume={tmp_path / '64.pt'}", "--reset-optimizer", "--reset-data-offset", "--lr=0")
    run = train("--max-steps=1", *words)
    saved = torch.load(run / "checkpoints" / "epoch_latest.pt", weights_only=True)
    key = "module.visual.positional_embedding"
    grids = [
        len(positions) - 1 for positions in (larger["visual.positional_embedding"], saved["state_dict"][key])
    ]
    assert grids[0] == 4 * grids[1]
    assert torch.equal(
        saved["state_dict"][key][0], larger["visual.positional_embedding"][0]
    )  # the class token's
    assert (saved["epoch"], saved["step"]) == (1, 1)


@pytest.mark.parametrize(
    ("flags", "step", "moments_step"),
    [((), 4, 4), (("--reset-optimizer",), 4, 1), (("--reset-data-offset",), 1, 4)],
    ids=["neither", "optimizer", "position"],
)
def test_each_reset_flag_resets_its_own(
    train: Train, flags: tuple[str, ...], step: int, moments_step: int
) -> None:
    first = train("--max-steps=3", name="first") / "checkpoints" / "epoch_latest.pt"
    run = train(f"--resume={first}", f"--max-steps={step}", *flags, name="second")
    saved = torch.load(run / "checkpoints" / "epoch_latest.pt", weights_only=True)
    assert saved["step"] == step
    assert {int(moments["step"]) for moments in saved["optimizer"]["state"].values()} == {moments_step}


def test_a_named_checkpoint_wins_over_the_run_s_own(train: Train) -> None:
    other = train("--max-steps=2", name="other") / "checkpoints" / "epoch_latest.pt"
    train("--max-steps=1")
    shown = said_by_all(train("--max-steps=3", f"--resume={other}"))
    assert [message for message in shown if message.startswith("=> loaded")] == [
        f"=> loaded checkpoint '{other}' (epoch 1 @ 2 steps)"
    ]
