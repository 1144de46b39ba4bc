"""Runs under the settings of `data`: cached ids, batches without repeats, one caption per picture, damaged pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cn_clip.clip.tokenizer import CaptionTokenizer, caption_ids, tokenizer_fingerprint
from cn_clip.data.captions import preprocess_text
from cn_clip.data.store import SplitWriter
from cn_clip.errors import DataError
from tests.training.conftest import CAPTIONS, NUM_PAIRS, Train, png


def losses(run: Path) -> list[float]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [row["loss"] for row in rows if row["kind"] == "train"]


@pytest.fixture(scope="module")
def cached_split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny split with the ids of its captions."""
    path = tmp_path_factory.mktemp("cached") / "train"
    with SplitWriter(path, tokenizer=tokenizer_fingerprint()) as writer:
        for number in range(NUM_PAIRS):
            caption = CAPTIONS[number % len(CAPTIONS)]
            writer.add_image(100 + number, png(number), "made")
            writer.add_pair(
                100 + number, number % len(CAPTIONS), caption, caption_ids(preprocess_text(caption))
            )
    return path


def test_cached_ids_train_the_same_and_nothing_is_tokenised(
    train: Train, cached_split: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_text = losses(train("--max-steps=6", name="text"))

    def refuse(self: CaptionTokenizer, text: str) -> list[str]:
        raise AssertionError(f"{text} was tokenised")

    monkeypatch.setattr(CaptionTokenizer, "words", refuse)
    assert losses(train("--max-steps=6", name="ids", data=cached_split)) == from_text


def test_ids_of_another_tokenizer_are_not_taken(train: Train, tmp_path: Path) -> None:
    path = tmp_path / "foreign"
    with SplitWriter(path, tokenizer="another one") as writer:
        for number in range(NUM_PAIRS):
            writer.add_image(100 + number, png(number), "made")
            writer.add_pair(
                100 + number, number % len(CAPTIONS), CAPTIONS[number % len(CAPTIONS)], [number + 5] * 3
            )
    assert losses(train("--max-steps=2", name="foreign", data=path)) == losses(
        train("--max-steps=2", name="own")
    )


@pytest.mark.parametrize("setting", ["data.sampler=unique", "data.train.captions=one"])
def test_a_run_goes_on_where_it_stopped(train: Train, setting: str) -> None:
    whole = train(
        "--max-steps=14", f"--set={setting}", "--batch-size=3", "--save-step-frequency=10", name="whole"
    )
    (middle,) = whole.rglob("epoch_2_10.pt")
    rest = train("--max-steps=14", f"--set={setting}", "--batch-size=3", f"--resume={middle}", name="rest")
    assert losses(rest) == losses(whole)[10:]


def test_a_damaged_picture_stops_the_run_or_is_counted(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "damaged"
    with SplitWriter(path) as writer:
        for number in range(NUM_PAIRS):
            picture = png(number)
            writer.add_image(100 + number, picture[:200] if number == 3 else picture, "made")
            writer.add_pair(100 + number, number, f"第{number}张")
    with pytest.raises(
        DataError, match=r"picture 103 of \S*imgs \(pair 3, text id 3\): .*data\.bad_pairs=skip"
    ):
        train("--max-epochs=1", name="stop", data=path)
    run = train("--max-epochs=1", "--set=data.bad_pairs=skip", name="skip", data=path)
    (log,) = run.glob("out_*.log")
    said = log.read_text(encoding="utf-8")
    assert "Another pair stands in for one that cannot be read: picture 103 of " in said
    assert "1 of 24 pairs could not be read; others stood in for them." in said
