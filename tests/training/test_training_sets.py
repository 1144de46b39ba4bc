"""Runs over tar shards and over mixtures: batches from any step, resumed runs, settings that repeat a run, bad samples."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
import yaml

from cn_clip.clip.tower_tokenizer import TowerTokenizer
from cn_clip.clip.transform import fast_transform
from cn_clip.data.batches import Collate, PairBatch
from cn_clip.data.loader import PairLoader, Workers
from cn_clip.data.pair_dataset import ReadPair, StreamBatches
from cn_clip.data.pairs import PairStream
from cn_clip.data.pairs.webdataset import Options, build
from cn_clip.data.sampler import EpochOrder
from cn_clip.errors import ConfigError, DataError
from cn_clip.training.main import main
from tests.training.conftest import CAPTIONS, Train, png


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards of six samples."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(4):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number in range(6 * shard, 6 * shard + 6):
                add(tar, f"{number:03}.png", png(number))
                add(tar, f"{number:03}.txt", CAPTIONS[number % len(CAPTIONS)].encode())
    return folder


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(content)
    tar.addfile(header, io.BytesIO(content))


@pytest.fixture(params=["webdataset", "mixture", "mixture of streams"])
def train_set(request: pytest.FixtureRequest, shards: Path, tiny_split: Path) -> str:
    """A word that sets the training set."""
    tars = {"type": "webdataset", "urls": str(shards), "shuffle": 5}
    pairs = {"type": "lmdb_pairs", "path": str(tiny_split), "weight": 2}
    chosen = {
        "webdataset": tars,
        "mixture": {"type": "mixture", "sources": [pairs, {**pairs, "weight": 1}], "pairs_per_epoch": 24},
        "mixture of streams": {"type": "mixture", "sources": [pairs, {**tars, "weight": 3}]},
    }[request.param]
    return f"--set=data.train={yaml.safe_dump(chosen, default_flow_style=True, width=10**6).strip()}"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "epoch_latest.pt", weights_only=True)["state_dict"]


def same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_that_stops_inside_an_epoch_goes_on_as_if_it_had_not(
    train: Train, train_set: str, num_workers: int
) -> None:
    words = (train_set, "--max-steps=9", "--save-step-frequency=1", f"--num-workers={num_workers}")
    whole = train(*words)
    (broken := whole.parent / "broken" / "checkpoints").mkdir(parents=True)
    shutil.copy(next((whole / "checkpoints").glob("epoch_*_4.pt")), broken / "epoch_latest.pt")
    assert same_weights(weights(whole), weights(train(*words, name="broken")))


def test_resolved_settings_repeat_the_run(train: Train, train_set: str, tmp_path: Path) -> None:
    first = train(train_set, "--max-steps=3")
    main([f"--config={first / 'resolved.yaml'}", f"--logs={tmp_path}", "--name=again"])
    assert same_weights(weights(first), weights(tmp_path / "again"))


def batches(stream: PairStream, *, rank: int, num_workers: int, first_step: int = 0) -> list[PairBatch]:
    """Steps of 2 ranks, 2 micro-batches of 3 pairs each."""
    made = StreamBatches(
        stream=stream,
        read=ReadPair(read_image=fast_transform(8), seed=5),
        collate=Collate(TowerTokenizer(context_length=16)),
        order=EpochOrder.over(stream.num_pairs, micro_global=6, accumulate=2, seed=1),
        rank=rank,
        world_size=2,
        batch_size=3,
        first_step=first_step,
        last_step=6,
    )
    return list(PairLoader.streamed(made, Workers(num=num_workers)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_follow_wherever_a_run_starts(shards: Path, num_workers: int) -> None:
    stream = build(Options(urls=(str(shards),), shuffle=5))
    for rank in range(2):
        whole = batches(stream, rank=rank, num_workers=num_workers)
        assert len(whole) == 12
        for first_step in range(1, 6):
            rest = batches(stream, rank=rank, num_workers=num_workers, first_step=first_step)
            for one, other in zip(whole[2 * first_step :], rest, strict=True):
                assert torch.equal(one.pair_ids_B, other.pair_ids_B)
                assert torch.equal(one.images_BCHW, other.images_BCHW)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_batches_of_an_epoch_are_the_set(shards: Path, num_workers: int) -> None:
    stream = build(Options(urls=(str(shards),), shuffle=5))
    epoch = [batch for rank in range(2) for batch in batches(stream, rank=rank, num_workers=num_workers)[:4]]
    assert len({pair_id for batch in epoch for pair_id in batch.pair_ids_B.tolist()}) == 24


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_shard_and_a_bad_picture_stop_a_run_or_are_passed_over(
    train: Train, shards: Path, tmp_path: Path, num_workers: int
) -> None:
    folder = shutil.copytree(shards, tmp_path / "damaged")
    with tarfile.open(folder / "0.tar", "w") as tar:
        for number in range(6):
            add(tar, f"{number:03}.png", b"\x89PNG\r\n\x1a\n" if number == 2 else png(number))
            add(tar, f"{number:03}.txt", CAPTIONS[number].encode())
    counts = tmp_path / "counts.json"
    counts.write_text('{"0.tar": 6, "1.tar": 6, "2.tar": 6, "3.tar": 6}')
    (folder / "1.tar").write_bytes((folder / "1.tar").read_bytes()[:5000])
    words = (
        f"--set=data.train={{type: webdataset, urls: {folder}, counts: {counts}, shuffle: 4}}",
        "--max-steps=12",
        f"--num-workers={num_workers}",
    )
    with pytest.raises(DataError, match=r"sample 002 of .*0\.tar: |the shard .*1\.tar is cut") as caught:
        train(*words)
    assert "\n" not in str(caught.value)
    words += ("--set=data.bad_pairs=skip", "--set=data.max_bad_share=0.5", "--save-step-frequency=1")
    skipped = train(*words, name="skip")
    log = next(skipped.glob("out_*.log")).read_text(encoding="utf-8")
    assert f"sample 002 of {folder}/0.tar" in log and "1.tar is cut: the end mark of a tar is missing" in log
    (broken := tmp_path / "broken" / "checkpoints").mkdir(parents=True)
    shutil.copy(next((skipped / "checkpoints").glob("epoch_*_9.pt")), broken / "epoch_latest.pt")
    assert same_weights(weights(skipped), weights(train(*words, name="broken")))


def test_a_stream_cannot_be_drawn_uniquely_and_is_no_validation_set(train: Train, shards: Path) -> None:
    tars = f"{{type: webdataset, urls: {shards}}}"
    with pytest.raises(ConfigError, match="stream"):
        train(f"--set=data.train={tars}", "--set=data.sampler=unique", "--max-steps=1")
    with pytest.raises(ConfigError, match="stream"):
        train(f"--set=data.valid={tars}", "--max-steps=1")


def test_a_mixture_can_be_drawn_uniquely(train: Train, tiny_split: Path) -> None:
    sources = (
        f"[{{type: lmdb_pairs, path: {tiny_split}, captions: one}}, {{type: lmdb_pairs, path: {tiny_split}}}]"
    )
    words = (f"--set=data.train={{type: mixture, sources: {sources}}}", "--set=data.sampler=unique")
    assert (train(*words, "--max-steps=3") / "checkpoints" / "epoch_latest.pt").is_file()


def open_on_two_ranks(folder: Path, shards: Path, split: Path) -> list[dict]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--"]
    worker = Path(__file__).with_name("opening_worker.py")
    folder.mkdir()
    done = subprocess.run(
        [*torchrun, str(worker), str(folder), str(shards), str(split)],
        env={**os.environ, "PYTHONPATH": str(worker.parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_only_the_main_rank_counts_the_samples_of_shards(
    shards: Path, tiny_split: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(shards, tmp_path / "shards", ignore=shutil.ignore_patterns("*.json"))
    main_rank, other = open_on_two_ranks(tmp_path / "whole", folder, tiny_split)
    assert main_rank.pop("lines") == [f"Counting the samples of 4 shards in {folder} ..."]
    assert other.pop("lines") == []
    assert main_rank == other
    assert [main_rank[kind][0] for kind in ("webdataset", "mixture")] == [24, 24 + 21]
    assert main_rank["lmdb_pairs"] == 21
    (folder / "1.tar").write_bytes((folder / "1.tar").read_bytes()[:5000])
    main_rank, other = open_on_two_ranks(tmp_path / "cut", folder, tiny_split)
    assert "1.tar is cut" in main_rank["error"]
    assert main_rank["error"] == other["error"]
