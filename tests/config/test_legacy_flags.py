from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from cn_clip.config.describe import describe
from cn_clip.config.legacy_flags import FLAGS, parse_train_flags, parser, reference_params
from cn_clip.config.schema import TrainConfig
from cn_clip.errors import ConfigError

Builder = Callable[..., TrainConfig]


def overrides(*words: str) -> list:
    return parse_train_flags(words)[1]


def test_only_typed_flags_override() -> None:
    assert parse_train_flags([]) == (None, [])
    assert overrides("--lr", "1e-5", "--batch-size=8") == [("train.batch_size", 8), ("optim.lr", 1e-5)]


def test_flags_reach_existing_settings() -> None:
    known = set(describe(TrainConfig)) | {"loss.gather", "loss.gradient"}  # options of the default loss
    assert {flag.setting for flag in FLAGS if flag.setting} <= known


def test_set_comes_after_typed_flags() -> None:
    config, given = parse_train_flags(
        ["--set", "optim.lr=2", "--config", "a.yaml", "--lr", "1", "--set", "optim.lr=3"]
    )
    assert config == "a.yaml"
    assert given == [("optim.lr", 1.0), ("optim.lr", 2), ("optim.lr", 3)]


@pytest.mark.parametrize(
    ("words", "override"),
    [
        (["--train-data", "/d/train"], ("data.train", {"type": "lmdb_pairs", "path": "/d/train"})),
        (["--val-data", "/d/valid"], ("data.valid", {"type": "lmdb_pairs", "path": "/d/valid"})),
        (["--val-data="], ("data.valid", None)),
        (["--val-data", ""], ("data.valid", None)),
        (["--val-data=None"], ("data.valid", None)),
        (["--valid-step-interval=-1"], ("validate.every_steps", None)),
        (["--valid-step-interval=0"], ("validate.every_steps", None)),
        (["--valid-step-interval=150"], ("validate.every_steps", 150)),
        (["--valid-epoch-interval=-1"], ("validate.every_epochs", None)),
        (["--save-step-frequency=-1"], ("checkpoint.every_steps", None)),
        (["--save-epoch-frequency=0"], ("checkpoint.every_epochs", None)),
        (["--resume", "/x/epoch1.pt"], ("run.resume", "/x/epoch1.pt")),
        (["--resume="], ("run.resume", "none")),
        (["--reset-data-offset"], ("run.reset_position", True)),
        (["--use-augment"], ("data.augment", {"type": "autoaugment"})),
        (["--skip-aggregate"], ("loss.gather", False)),
        (["--gather-with-grad"], ("loss.gradient", "exact")),
        (["--clip-weight-path=None"], ("model.image_weights", None)),
        (["--bert-weight-path", "b.pt"], ("model.text_weights", "b.pt")),
        (["--kd_loss_weight", "0.1"], ("distill.weight", 0.1)),
        (["--logs", "None"], ("checkpoint.enabled", False)),
        (["--logs", "/out"], ("run.logs_dir", "/out")),
        (
            ["--report-training"],
            ("log.batch_accuracy", True),
        ),  # argparse takes a beginning, as the reference does
    ],
)
def test_flag_meanings(words: list[str], override: tuple) -> None:
    assert overrides(*words) == [override]


def test_skip_scheduler_says_that_it_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert overrides("--skip-scheduler") == []
    assert [record.getMessage() for record in caplog.records] == [
        "--skip-scheduler has no effect, as in the reference"
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--trian-data", "x"], "--trian-data is not a flag of training; did you mean --train-data?"),
        (["--batch_size=8"], "--batch_size is not a flag of training; did you mean --batch-size?"),
        (["stray"], "stray is not a flag of training"),
        (["--dry-run", "mine.yaml"], "mine.yaml is not a flag of training; did you mean --config mine.yaml?"),
        (["--batch-size", "x"], "argument --batch-size: invalid int value: 'x'; see --help"),
        (["--lr"], "argument --lr: expected one argument"),
        (["--set", "lr"], "--set takes NAME=VALUE"),
    ],
)
def test_bad_words_get_one_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse_train_flags(words)


@pytest.mark.parametrize("model", ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14", "RN50"])
def test_names_are_left_to_the_towers(model: str) -> None:
    assert overrides("--vision-model", model) == [("model.image", model)]


def test_a_wrong_precision_is_refused_when_settings_are_built(build_config: Builder) -> None:
    with pytest.raises(ConfigError, match=r"train\.precision is 'bf32'; choose from 'amp'"):
        build_config({}, overrides("--precision", "bf32"))


def test_params_speak_the_reference_s_names(build_config: Builder) -> None:
    words = [
        "--train-data",
        "/d",
        "--val-data=",
        "--use-augment",
        "--skip-aggregate",
        "--wd",
        "0.001",
        "--resume",
        "a.pt",
    ]
    params = reference_params(build_config({}, overrides(*words)))
    assert params["train_data"] == "/d"
    assert params["val_data"] is None
    assert params["use_augment"] is True
    assert (params["skip_aggregate"], params["aggregate"]) == (True, False)
    assert params["wd"] == 0.001
    assert params["resume"] == "a.pt"
    assert set(params) == {flag.dest for flag in FLAGS} | {"aggregate"}


def test_help_tells_what_every_flag_sets() -> None:
    text = parser().format_help()
    for flag in FLAGS:
        assert flag.name in text
        assert flag.setting is None or f"[{flag.setting}]" in " ".join(text.split())


def test_every_setting_says_what_it_means() -> None:
    assert [path for path, meaning in describe(TrainConfig).items() if not meaning] == []
