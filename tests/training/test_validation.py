"""Recall of a validation: the same for any number of ranks and any batch, and that of the evaluation commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cn_clip.data.store import SplitWriter
from cn_clip.errors import ConfigError
from cn_clip.eval import (
    evaluation,
    evaluation_tr,
    extract_features,
    make_topk_predictions,
    make_topk_predictions_tr,
    transform_ir_annotation_to_tr,
)
from tests.training import validation_worker
from tests.training.conftest import CAPTIONS, Train, png

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("validation_worker.py")
KS = (1, 5, 10)
CASES: list[list[tuple[str, object]]] = [
    [("validate.batch_size", 1)],
    [("validate.batch_size", 3)],
    [("validate.batch_size", 8)],
    [("validate.batch_size", 4), ("data.epoch_end", "reference")],
    [("validate.batch_size", 5), ("validate.max_pairs", 12)],
    [("validate.batch_size", 5), ("validate.recall", False)],
]
FIRST_TWELVE, NO_RECALL = 4, 5


def pictures_of(text: int) -> list[int]:
    """Two or three pictures a caption, and so several captions a picture."""
    return sorted({(text * 5 + step * step) % 19 for step in range(3)})


NUM_TEXTS = 16


@pytest.fixture(scope="module")
def many_to_many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `lmdb/test` and `test_texts.jsonl`: 19 pictures, 16 captions that differ, 2 or 3 pictures each."""
    folder = tmp_path_factory.mktemp("many")
    used = sorted({picture for text in range(NUM_TEXTS) for picture in pictures_of(text)})
    rows = []
    with SplitWriter(folder / "lmdb" / "test") as writer:
        for picture in used:
            writer.add_image(picture, png(picture))
        for text in range(NUM_TEXTS):
            caption = f"{CAPTIONS[text % len(CAPTIONS)]}第{text}"
            for picture in pictures_of(text):
                writer.add_pair(picture, text, caption)
            rows.append({"text_id": text, "text": caption, "image_ids": pictures_of(text)})
    (folder / "test_texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run_on(world_size: int, split: Path, output: Path) -> dict[str, Any]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world_size}", "--"]
    done = subprocess.run(
        [sys.executable, *torchrun, str(WORKER), str(output), str(split), json.dumps(CASES)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(output.read_text())


@pytest.mark.slow
def test_recall_depends_on_no_cut(many_to_many: Path, tmp_path: Path) -> None:
    split, alone = many_to_many / "lmdb" / "test", tmp_path / "1.json"
    validation_worker.main(alone, str(split), CASES)
    found = [json.loads(alone.read_text())]
    found += [run_on(world, split, tmp_path / f"{world}.json") for world in (2, 4)]
    assert found[0]["ranked"] == found[1]["ranked"] == found[2]["ranked"]
    inside_batches = ("loss", "image_to_text_accuracy", "text_to_image_accuracy")
    recalls = [
        {name: value for name, value in numbers.items() if name not in inside_batches}
        for each in found
        for numbers in each["numbers"]
    ]
    per_world = [recalls[start : start + len(CASES)] for start in range(0, len(recalls), len(CASES))]
    first = per_world[0][0]
    assert len(first) == 2 * (len(KS) + 4) + 1
    for of_world in per_world:
        assert all(numbers == first for numbers in of_world[:FIRST_TWELVE])
        assert of_world[FIRST_TWELVE] == per_world[0][FIRST_TWELVE] != first
        assert of_world[NO_RECALL] == {}


def test_recall_is_what_the_evaluation_commands_give(train: Train, many_to_many: Path) -> None:
    split = many_to_many / "lmdb" / "test"
    run = train("--max-steps=2", f"--val-data={split}", "--set=data.transform=exact")
    valid = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    texts, out = many_to_many / "test_texts.jsonl", run
    extract_features.main(
        [
            "--extract-image-feats",
            "--extract-text-feats",
            f"--image-data={split / 'imgs'}",
            f"--text-data={texts}",
            f"--text-feat-output-path={out / 'texts.jsonl'}",
            f"--image-feat-output-path={out / 'images.jsonl'}",
            f"--resume={run / 'checkpoints' / 'epoch_latest.pt'}",
            "--vision-model=tiny-vit",
            "--text-model=tiny-bert",
            "--transform=exact",
        ]
    )
    features = [f"--image-feats={out / 'images.jsonl'}", f"--text-feats={out / 'texts.jsonl'}"]
    make_topk_predictions.main([*features, f"--output={out / 'ir.jsonl'}"])
    make_topk_predictions_tr.main([*features, f"--output={out / 'tr.jsonl'}"])
    transform_ir_annotation_to_tr.main(["--input", str(texts)])
    evaluation.main([str(texts), str(out / "ir.jsonl"), str(out / "ir.json")])
    answers = texts.with_name("test_texts.tr.jsonl")
    evaluation_tr.main([str(answers), str(out / "tr.jsonl"), str(out / "tr.json")])
    for name, file in (("text_to_image", "ir.json"), ("image_to_text", "tr.json")):
        scores = json.loads((out / file).read_text())["scoreJson"]
        ours = [valid[f"{name}_recall@{k}"] * 100 for k in KS]
        assert ours == pytest.approx([scores[f"r{k}"] for k in KS], abs=1e-9)
        assert valid[f"{name}_mean_recall"] * 100 == pytest.approx(scores["mean_recall"], abs=1e-9)
        assert 0 < scores["r10"] < 100


def test_named_sets_stand_beside_the_main_one(train: Train, tiny_split: Path, many_to_many: Path) -> None:
    muge = f"--set=data.valid_sets={{muge: {{type: lmdb_pairs, path: {many_to_many / 'lmdb' / 'test'}}}}}"
    run = train("--max-steps=2", f"--val-data={tiny_split}", muge, "--set=validate.recall_at=[2,3]")
    row = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert row["kind"] == "valid"
    for name in (
        "loss",
        "mean_recall",
        "text_to_image_recall@2",
        "image_to_text_recall@3",
        "text_to_image_mrr",
    ):
        assert name in row and f"muge/{name}" in row
    said = next(run.glob("out_*.log")).read_text(encoding="utf-8").splitlines()
    lines = [line.split(" | ", 3)[3] for line in said if " Result" in line]
    assert [line.split(" | ")[0] for line in lines] == [
        "Validation Result (epoch 1 @ 2 steps)",
        "Retrieval Result (epoch 1 @ 2 steps)",
        "Validation Result of muge (epoch 1 @ 2 steps)",
        "Retrieval Result of muge (epoch 1 @ 2 steps)",
    ]
    recall = row["muge/text_to_image_recall@2"] * 100
    num_pictures = len({picture for text in range(NUM_TEXTS) for picture in pictures_of(text)})
    assert f" | Text2Image R@2: {recall:.2f} | " in lines[3]
    assert lines[3].endswith(f" | Images: {num_pictures} | Texts: {NUM_TEXTS}")


def test_equal_captions_under_several_ids_are_right_for_each_others_pictures(
    train: Train, tmp_path: Path
) -> None:
    """Every caption the same: whatever is found is right."""
    with SplitWriter(tmp_path / "same") as writer:
        for number in range(9):
            writer.add_image(number, png(number))
            writer.add_pair(number, 50 + number, "花")
    run = train("--max-steps=1", f"--val-data={tmp_path / 'same'}")
    row = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert row["text_to_image_recall@1"] == row["image_to_text_recall@1"] == row["mean_recall"] == 1.0
    assert row["image_to_text_accuracy"] < 1


@pytest.mark.parametrize("ks", ["[]", "[0,5]"])
def test_recall_at_nothing_is_refused(train: Train, tiny_split: Path, ks: str) -> None:
    with pytest.raises(ConfigError, match="validate.recall_at"):
        train("--max-steps=1", f"--val-data={tiny_split}", f"--set=validate.recall_at={ks}", "--dry-run")


def test_the_first_pairs_of_a_mixture_are_counted_by_their_place(train: Train, tiny_split: Path) -> None:
    """Its pairs have numbers of their own, which are no places."""
    pairs = f"{{type: lmdb_pairs, path: {tiny_split}}}"
    valid = f"--set=data.valid={{type: mixture, sources: [{pairs}, {pairs}]}}"
    found = []
    for max_pairs in ("null", "42", "20"):
        run = train(
            "--max-steps=1",
            "--valid-batch-size=7",
            valid,
            f"--set=validate.max_pairs={max_pairs}",
            name=max_pairs,
        )
        row = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
        found.append({name: value for name, value in row.items() if "rank" in name or "recall" in name})
    every, all_there_are, some = found
    assert every and every == all_there_are != some
