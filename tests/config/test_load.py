from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cn_clip.config.load import merge, parse_override, read_yaml, to_plain
from cn_clip.config.schema import TrainConfig
from cn_clip.errors import ConfigError

Builder = Callable[..., TrainConfig]


def train_set(chosen: object) -> dict:
    return {"data": {"train": chosen}}


def mixed(*sources: object) -> dict:
    return train_set({"type": "mixed", "sources": list(sources)})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"optm": {}}, "optm is not a setting; did you mean optim?"),
        ({"train": {"batchsize": 8}}, "train.batchsize is not a setting; did you mean train.batch_size?"),
        ({"train": {"zzz": 8}}, "train.zzz is not a setting; there are accumulate, batch_size,"),
        ({"train": {"batch_size": "many"}}, "train.batch_size is 'many'; give a whole number"),
        ({"train": {"batch_size": 1.5}}, "train.batch_size is 1.5; give a whole number"),
        ({"train": {"batch_size": True}}, "train.batch_size is True; give a whole number"),
        ({"train": {"batch_size": None}}, "train.batch_size is None; give a whole number"),
        ({"train": {"batch_size": 0}}, "train.batch_size is 0; give 1 or more"),
        ({"train": {"batch_size": [8]}}, r"train.batch_size is \[8\]; give a whole number"),
        ({"model": {"mask_ratio": 1}}, "model.mask_ratio is 1.0; give 0 or more, below 1"),
        ({"optim": {"lr": "fast"}}, "optim.lr is 'fast'; give a number"),
        ({"optim": {"lr": float("nan")}}, "optim.lr is nan; give a number"),
        ({"optim": {"lr": 10**400}}, "optim.lr is 10+; give a number"),
        ({"run": {"debug": "maybe"}}, "run.debug is 'maybe'; give true or false"),
        ({"run": {"name": True}}, "run.name is True; give a text"),
        ({"train": {"precision": "bf32"}}, "train.precision is 'bf32'; choose from 'amp', "),
        ({"train": 5}, "train is a group of settings, not 5"),
        ({"data": {"train": 5}}, "data.train needs a `type`"),
        ({"data": {"train": {"path": "/x"}}}, "data.train needs a `type`"),
        ({"data": {"train": "parquet"}}, "there is no pairs called parquet"),
        ({"data": {"augment": None}}, "data.augment needs a `type`"),
        ({"loss": {"smothing": 0.1}}, "loss.smothing is not a setting; did you mean loss.smoothing?"),
        ({1: 2}, "1 is not a setting"),
        (train_set({"type": "lmdb_pairs"}), "data.train.path is not set, and has no default"),
        (train_set({"type": "mixed"}), "data.train.sources is not set"),
        (
            mixed({"type": "lmdb_pairs", "path": "/x"}, "lmdb_pairs"),
            r"data.train.sources\[1\].path is not set",
        ),
        (
            mixed({"type": "lmdb_pairs", "pth": "/x"}),
            r"data.train.sources\[0\].pth is not a setting; did you mean ",
        ),
        (mixed({"path": "/x"}), r"data.train.sources\[0\] needs a `type`"),
        (mixed(5), r"data.train.sources\[0\] needs a `type`"),
        (mixed({"type": "parquet"}), "there is no pairs called parquet"),
        (
            mixed({"type": "lmdb_pairs", "path": "/x", "weight": "much"}),
            r"sources\[0\].weight is 'much'; give a number",
        ),
        (
            mixed({"type": "lmdb_pairs", "path": "/x", "weight": 0}),
            r"sources\[0\].weight is 0.0; give more than 0",
        ),
        (mixed({"type": "mixed", "sources": [5]}), r"data.train.sources\[0\].sources\[0\] needs a `type`"),
        (train_set({"type": "mixed", "sources": {"type": "x"}}), "data.train.sources is .*; give a list"),
    ],
)
def test_wrong_settings_are_named(settings: dict, sentence: str, build_config: Builder) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build_config(settings)


@pytest.mark.parametrize(
    ("given", "meant"),
    [("5e-5", 5e-5), (5e-5, 5e-5), (1, 1.0), ("1", 1.0), (None, None)],
)
def test_numbers_are_read_by_the_type_of_their_field(
    given: object, meant: object, build_config: Builder
) -> None:
    lr = build_config({"optim": {"lr": given}}).optim.lr
    assert lr == meant
    assert type(lr) is type(meant)


@pytest.mark.parametrize(
    ("given", "meant"), [(8, 8), ("8", 8), (8.0, 8), ("1e3", 1000), (2**60 + 1, 2**60 + 1)]
)
def test_whole_numbers_stay_whole(given: object, meant: int, build_config: Builder) -> None:
    size = build_config({"train": {"batch_size": given}}).train.batch_size
    assert size == meant
    assert type(size) is int


def test_yaml_reads_5e_5_as_text_and_the_field_mends_it(tmp_path: Path, build_config: Builder) -> None:
    (tmp_path / "a.yaml").write_text("optim: {lr: 5e-5}\n")
    settings = read_yaml(tmp_path / "a.yaml")
    assert settings == {"optim": {"lr": "5e-5"}}
    assert build_config(settings).optim.lr == 5e-5


def test_order_of_authority_is_default_then_yaml_then_overrides(build_config: Builder) -> None:
    config = build_config(
        {"train": {"batch_size": 8, "accumulate": 2}}, [("train.batch_size", 4), ("train.batch_size", 3)]
    )
    assert (config.train.batch_size, config.train.accumulate, config.train.max_epochs) == (3, 2, 32)


def test_merge_leaves_its_input_alone() -> None:
    settings = {"train": {"batch_size": 8}}
    assert merge(settings, [("train.batch_size", 4), ("optim.lr", 1)]) == {
        "train": {"batch_size": 4},
        "optim": {"lr": 1},
    }
    assert settings == {"train": {"batch_size": 8}}


def test_merge_refuses_to_reach_into_a_value() -> None:
    with pytest.raises(ConfigError, match=r"train\.batch_size\.x: batch_size is 8, not a group"):
        merge({"train": {"batch_size": 8}}, [("train.batch_size.x", 1)])


def test_a_part_may_be_a_name_alone_and_then_take_options(build_config: Builder) -> None:
    config = build_config({"data": {"augment": "autoaugment"}}, [("data.augment.strength", 0.9)])
    assert config.data.augment.type == "autoaugment"
    assert config.data.augment.options.strength == 0.9


def test_an_option_of_a_part_without_its_type_means_the_default_part(build_config: Builder) -> None:
    loss = build_config({}, [("loss.gather", False)]).loss
    assert (loss.type, loss.options.gather) == ("contrastive", False)


def test_an_emptied_section_is_its_defaults(build_config: Builder) -> None:
    assert build_config({"optim": None}) == build_config({})


def test_environment_is_expanded_and_an_unset_name_is_an_error(
    monkeypatch: pytest.MonkeyPatch, build_config: Builder
) -> None:
    settings = {"data": {"train": {"type": "lmdb_pairs", "path": "$PAIRS_AT/lmdb/${SPLIT_OF}"}}}
    monkeypatch.setenv("PAIRS_AT", "/d")
    monkeypatch.setenv("SPLIT_OF", "train")
    train = build_config(settings).data.train
    assert train is not None
    assert train.options.path == "/d/lmdb/train"
    for how in (lambda: monkeypatch.setenv("SPLIT_OF", ""), lambda: monkeypatch.delenv("SPLIT_OF")):
        how()
        with pytest.raises(
            ConfigError, match=r"data\.train\.path is .* the environment has no SPLIT_OF: export SPLIT_OF="
        ):
            build_config(settings)


def test_round_trip_through_plain_data_and_yaml(tmp_path: Path, build_config: Builder) -> None:
    config = build_config(
        {
            "run": {"name": "2024"},
            "optim": {"lr": "5e-5"},
            "train": {"max_steps": 7},
            "data": {"train": {"type": "lmdb_pairs", "path": "/x"}, "augment": "autoaugment"},
        }
    )
    plain = to_plain(config)
    assert build_config(plain) == config
    (tmp_path / "resolved.yaml").write_text(yaml.safe_dump(plain, allow_unicode=True))
    assert build_config(read_yaml(tmp_path / "resolved.yaml")) == config


def test_parts_in_a_list_have_weights_and_make_the_round_trip(
    build_config: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAIRS_AT", "/d")
    inner = {"type": "mixed", "sources": [{"type": "lmdb_pairs", "path": "/y"}], "names": "one"}
    config = build_config(mixed({"type": "lmdb_pairs", "path": "$PAIRS_AT/x", "weight": "2"}, inner))
    assert config.data.train is not None
    first, second = config.data.train.options.sources
    assert (first.type, first.options.path, first.weight) == ("lmdb_pairs", "/d/x", 2.0)
    assert (second.weight, second.options.names, second.options.sources[0].options.path) == (
        None,
        ("one",),
        "/y",
    )
    plain = to_plain(config)
    assert plain["data"]["train"]["sources"][0] == {"type": "lmdb_pairs", "path": "/d/x", "weight": 2.0}
    assert build_config(yaml.safe_load(yaml.safe_dump(plain))) == config


def test_set_words_are_read_as_yaml() -> None:
    assert parse_override("optim.lr=1e-5") == ("optim.lr", "1e-5")
    assert parse_override("data.valid=null") == ("data.valid", None)
    assert parse_override("data.train={type: lmdb_pairs, path: /a=b}") == (
        "data.train",
        {"type": "lmdb_pairs", "path": "/a=b"},
    )


@pytest.mark.parametrize("word", ["optim.lr", "=1", "", "data.train={type: x"])
def test_bad_set_words_are_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        parse_override(word)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"- 1\n- 2\n", "must hold settings by name"),
        (b"train: {batch_size: 1\n", "is not valid YAML"),
        (b"run: {name: 2024-02-30}\n", "is not valid YAML"),
        (b"run: {seed: " + b"9" * 5000 + b"}\n", "is not valid YAML"),
        (b"run: " + b"[" * 2000, "is not valid YAML"),
        (b"!!python/object/apply:os.system ['true']", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not"),
        (
            b"train: {batch_size: 1}\noptim: {lr: 1}\ntrain: {accumulate: 2}\n",
            "is not valid YAML: train stands twice",
        ),
    ],
)
def test_files_that_are_not_settings(content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"bad\.yaml.*{sentence}|bad\.yaml {sentence}"):
        read_yaml(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the config .*nowhere\.yaml: No such file"):
        read_yaml(tmp_path / "nowhere.yaml")


def test_an_empty_file_is_no_settings(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "empty.yaml") == {}


def test_a_base_lies_under_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("run: {name: a}\ntrain: {batch_size: 8, accumulate: 2}\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\nrun: {name: b}\ntrain: {batch_size: 4}\n")
    (tmp_path / "c.yaml").write_text("base: b.yaml\nmodel: {mask_ratio: 0.5}\n")
    assert read_yaml(tmp_path / "c.yaml") == {
        "run": {"name": "b"},
        "train": {"batch_size": 4, "accumulate": 2},
        "model": {"mask_ratio": 0.5},
    }


def test_another_type_replaces_the_part_of_the_base(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("loss: {type: contrastive, smoothing: 0.1}\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\nloss: {type: sigmoid}\n")
    (tmp_path / "c.yaml").write_text("base: a.yaml\nloss: {gather: false}\n")
    assert read_yaml(tmp_path / "b.yaml") == {"loss": {"type": "sigmoid"}}
    assert read_yaml(tmp_path / "c.yaml") == {
        "loss": {"type": "contrastive", "smoothing": 0.1, "gather": False}
    }


@pytest.mark.parametrize(
    ("base", "sentence"), [("a.yaml", "circle"), ("[x]", "give the name"), ("no.yaml", "cannot read")]
)
def test_a_base_that_cannot_be(base: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"base: {base}\n")
    with pytest.raises(ConfigError, match=sentence):
        read_yaml(tmp_path / "a.yaml")
