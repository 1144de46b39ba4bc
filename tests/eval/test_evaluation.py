from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cn_clip.errors import DataError
from cn_clip.eval import evaluation, evaluation_tr, transform_ir_annotation_to_tr

ROOT = Path(__file__).parents[2]


def write_jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def annotations(tmp_path: Path) -> str:
    rows = [
        {"text_id": 1, "text": "一", "image_ids": [10]},
        {"text_id": 2, "text": "二", "image_ids": [11, 12]},
    ]
    return write_jsonl(tmp_path / "answers.jsonl", rows)


def predictions(tmp_path: Path, *found: list[int]) -> str:
    rows = [{"text_id": i, "image_ids": ids} for i, ids in enumerate(found, start=1)]
    return write_jsonl(tmp_path / "found.jsonl", rows)


def test_scores_and_writes_percents(
    tmp_path: Path, annotations: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = predictions(tmp_path, list(range(10, 20)), [1, 2, 3, 4, 5, 12, 6, 7, 8, 9])
    evaluation.main([annotations, found, str(tmp_path / "score.json")])
    score = json.loads((tmp_path / "score.json").read_text())
    mean = (0.5 + 0.5 + 1.0) / 3 * 100
    assert score == {
        "success": True,
        "score": mean,
        "scoreJson": {"score": mean, "mean_recall": mean, "r1": 50.0, "r5": 50.0, "r10": 100.0},
    }
    assert evaluation.compute_score(annotations, found) == [mean, 50.0, 50.0, 100.0]
    assert capsys.readouterr().out.endswith("The evaluation finished successfully.\n")


def test_a_small_gallery_is_scored_when_its_size_is_given(tmp_path: Path, annotations: str) -> None:
    found = predictions(tmp_path, [10, 11, 12], [10, 11, 12])
    with pytest.raises(DataError, match="has 3 image_ids, not 10"):
        evaluation.main([annotations, found, str(tmp_path / "score.json")])
    evaluation.main([annotations, found, str(tmp_path / "score.json"), "--top-k", "3"])
    assert json.loads((tmp_path / "score.json").read_text())["scoreJson"]["r1"] == 50.0


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("{", "row 2: '{' is not a JSON object"),
        ('{"image_ids": []}', "row 2: text_id is missing"),
        ('{"text_id": "2", "image_ids": []}', "row 2: text_id is '2', which should be an integer"),
        ('{"text_id": true, "image_ids": []}', "row 2: text_id is True"),
        ('{"text_id": 2}', "row 2: image_ids is missing"),
        ('{"text_id": 2, "image_ids": 5}', "row 2: image_ids is 5"),
        ('{"text_id": 2, "image_ids": [1, 2, "3"]}', "row 2: entry 3 of image_ids is '3'"),
        ('{"text_id": 2, "image_ids": [1, 2]}', "row 2: text_id 2 has 2 image_ids, not 10"),
        (json.dumps({"text_id": 2, "image_ids": [1] * 10}), "row 2: text_id 2 has the same id twice"),
        (
            json.dumps({"text_id": 3, "image_ids": list(range(10))}),
            "no row for 1 text_ids of the annotations: 2",
        ),
    ],
)
def test_bad_predictions_fail_with_row_and_reason(
    tmp_path: Path, annotations: str, row: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Path(predictions(tmp_path, list(range(10))))
    found.write_text(found.read_text() + row + "\n")
    with pytest.raises(DataError, match=complaint) as caught:
        evaluation.main([annotations, str(found), str(tmp_path / "score.json")])
    failure = json.loads((tmp_path / "score.json").read_text())
    message = str(caught.value)
    assert failure == {
        "errorDetail": message,
        "errorMsg": message,
        "score": 0,
        "scoreJson": {},
        "success": False,
    }
    assert f"The evaluation failed: {message}" in capsys.readouterr().out


def test_the_process_ends_with_an_exit_code_not_0(tmp_path: Path, annotations: str) -> None:
    """Run by path from another folder, as people do; an older cn_clip elsewhere on the path does not interfere."""
    words = [sys.executable, ROOT / "cn_clip/eval/evaluation.py", annotations, "absent.jsonl", "score.json"]
    (tmp_path / "old" / "cn_clip").mkdir(parents=True)
    (tmp_path / "old" / "cn_clip" / "__init__.py").write_text("raise RuntimeError('the old one')")
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "old")}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot read absent.jsonl") and done.stderr.count("\n") == 1
    assert not json.loads((tmp_path / "score.json").read_text())["success"]


def test_image_to_text_reads_the_turned_annotations(tmp_path: Path, annotations: str) -> None:
    transform_ir_annotation_to_tr.main(["--input", annotations])
    turned = tmp_path / "answers.tr.jsonl"
    assert turned.read_text().splitlines() == [
        '{"image_id": 10, "text_ids": [1]}',
        '{"image_id": 11, "text_ids": [2]}',
        '{"image_id": 12, "text_ids": [2]}',
    ]
    rows = [{"image_id": i, "text_ids": [1, 2]} for i in (10, 11, 12)]
    found = write_jsonl(tmp_path / "found.jsonl", rows)
    evaluation_tr.main([str(turned), found, str(tmp_path / "score.json"), "--top-k=2"])
    assert json.loads((tmp_path / "score.json").read_text())["scoreJson"]["r1"] == pytest.approx(100 / 3)


def test_helpers_keep_their_names_and_arguments(tmp_path: Path, annotations: str) -> None:
    reference = evaluation.read_reference(annotations)
    assert reference == {1: [10], 2: [11, 12]}
    found = predictions(tmp_path, list(range(5)), list(range(5)))
    assert evaluation.read_submission(found, reference) == {1: list(range(5)), 2: list(range(5))}
    evaluation.report_score(0.25, 0.5, 0.75, str(tmp_path / "score.json"))
    assert json.loads((tmp_path / "score.json").read_text())["score"] == 50.0
