"""A frozen image tower's features on disk: the same run, without pictures and without the tower."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from cn_clip.data.feature_store import FeatureWriter, open_features
from cn_clip.data.pair_dataset import ReadPair
from cn_clip.errors import ConfigError, DataError
from cn_clip.parallel.gather import any_rank
from cn_clip.parallel.ranks import Ranks
from cn_clip.training import feature_cache
from tests.training.conftest import Train

FROZEN = ("--freeze-vision", "--max-epochs=2", "--accum-freq=2")


def losses(run: Path) -> list[float]:
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"]


def weights(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / "epoch_latest.pt", weights_only=True)[
        "state_dict"
    ]
    return found


@pytest.mark.parametrize("tower", ["tiny-vit", "tiny-resnet"])
def test_a_cached_run_is_the_run_without_a_cache(train: Train, tower: str) -> None:
    plain = train(*FROZEN, f"--vision-model={tower}", "--grad-checkpointing", name="plain")
    cached = train(*FROZEN, f"--vision-model={tower}", "--set=data.feature_cache=auto", name="cached")
    assert (cached / "features" / "meta.json").is_file()
    for name, value in weights(plain).items():
        if "key.bias" in name:
            continue  # softmax ignores a shift of its scores: the true gradient is 0, and AdamW steps by its rounding
        torch.testing.assert_close(weights(cached)[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert losses(cached) == pytest.approx(losses(plain), rel=1e-4)


def test_features_are_made_once_and_again_for_another_tower(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = (*FROZEN, f"--set=data.feature_cache={tmp_path / 'features'}")
    train(*words, name="first")
    made = (tmp_path / "features" / "features.npy").stat().st_mtime_ns
    train(*words, name="second")
    assert (tmp_path / "features" / "features.npy").stat().st_mtime_ns == made
    assert "Features of 21 pictures are in" in caplog.text
    train(*words, "--seed=5", name="third")  # fresh weights of another seed
    assert (tmp_path / "features" / "features.npy").stat().st_mtime_ns != made


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "model.freeze_image is off"),
        (("--freeze-vision", "--use-augment"), "data.augment is autoaugment"),
        (("--freeze-vision", "--mask-ratio=0.5"), "model.mask_ratio is 0.5"),
    ],
)
def test_what_would_not_be_exact_is_refused(train: Train, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        train(*words, "--set=data.feature_cache=auto")


def test_a_store_gives_rows_by_id_and_says_what_it_has_not(tmp_path: Path) -> None:
    writer = FeatureWriter.begin(tmp_path / "f", np.array([3, 5, 9]), dim=2)
    writer.write(slice(0, 2), torch.tensor([[1.0, 2], [3, 4]]))
    with pytest.raises(DataError, match="no whole folder"):
        open_features(tmp_path / "f")
    writer.flush()
    writer.finish("of this tower")
    store = open_features(tmp_path / "f")
    assert (
        store.of(torch.tensor([5, 3])).tolist() == [[3, 4], [1, 2]] and store.fingerprint == "of this tower"
    )
    with pytest.raises(DataError, match="no features of id 4"):
        store.read(4)
    with pytest.raises(DataError, match="9 could not be read"):
        store.read(9)


def test_features_that_are_read_stay_when_others_take_their_place(tmp_path: Path) -> None:
    """Cutting a file short that a process has mapped would kill it."""
    begin(tmp_path, number=1).finish("one")
    reader = open_features(tmp_path)
    reader.read(0)
    begin(tmp_path, number=2).finish("other")
    assert reader.read(4_999).tolist() == [1, 1]
    assert open_features(tmp_path).read(4_999).tolist() == [2, 2]


def begin(folder: Path, number: int) -> FeatureWriter:
    writer = FeatureWriter.begin(folder, np.arange(5_000), dim=2)
    writer.write(slice(0, 5_000), torch.full((5_000, 2), float(number)))
    writer.flush()
    return writer


def test_the_folder_is_whole_only_when_every_rank_has_written_its_part(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def meet(flags: list[bool], ranks: Ranks) -> list[bool]:
        told.append("all ranks meet")
        return any_rank(flags, ranks)

    class Writer(FeatureWriter):
        def flush(self) -> None:
            told.append("flush")
            super().flush()

        def finish(self, fingerprint: str) -> None:
            told.append("finish")
            super().finish(fingerprint)

    monkeypatch.setattr(feature_cache, "any_rank", meet)
    monkeypatch.setattr(feature_cache, "FeatureWriter", Writer)
    train("--freeze-vision", "--set=data.feature_cache=auto", "--max-steps=1")
    assert told[-3:] == ["flush", "all ranks meet", "finish"]


def test_a_loader_process_that_dies_while_features_are_made_is_one_sentence(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReadPair, "__call__", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(DataError, match="the loader process .* died"):
        train("--freeze-vision", "--set=data.feature_cache=auto", "--num-workers=1", "--max-steps=1")
