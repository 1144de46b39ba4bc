from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cn_clip.errors import DataError
from cn_clip.eval.features.files import read_features, write_features


def test_rows_read_back_as_written(tmp_path: Path) -> None:
    features = torch.randn(5, 7, generator=torch.manual_seed(0))
    path = tmp_path / "x.jsonl"
    assert write_features(path, "image_id", [([4, 2, 9], features[:3]), ([1, 3], features[3:])]) == 5
    ids, read = read_features(path, "image_id")
    unit = features / features.norm(dim=-1, keepdim=True)
    assert ids == [4, 2, 9, 1, 3]
    assert read.dtype == torch.float32
    torch.testing.assert_close(read, unit, rtol=0, atol=1e-7)


def test_a_row_is_json_with_every_digit(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    write_features(path, "text_id", [([7], torch.tensor([[1.0, 1.0, 1.0]]))])
    third = torch.tensor([1.0, 1.0, 1.0]).div(3**0.5)[0].item()
    assert path.read_text() == f'{{"text_id": 7, "feature": [{third}, {third}, {third}]}}\n'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_feature_without_direction_is_not_written(tmp_path: Path, value: float) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("old")
    rows = [([1], torch.ones(1, 2)), ([5, 6], torch.tensor([[1.0, 2.0], [value, value]]))]
    with pytest.raises(DataError, match="image_id 6 "):
        write_features(path, "image_id", rows)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["x.jsonl"]


GOOD = '{"image_id": 1, "feature": [0.5, 0.5]}\n'


@pytest.mark.parametrize(
    ("second", "complaint"),
    [
        ('{"image_id": 2, "feature": [0.5]}\n', "row 2: the feature has 1 numbers, those before it 2"),
        ('{"image_id": 2, "feature": [0.5, NaN]}\n', "row 2: the feature holds NaN"),
        ('{"image_id": 2, "feature": [0.5, "a"]}\n', "row 2: feature is .* list of numbers"),
        ('{"image_id": 2, "feature": [[0.5], 1]}\n', "row 2: feature is .* list of numbers"),
        ('{"image_id": 2, "feature": []}\n', "row 2: feature is .* list of numbers"),
        ('{"image_id": 2, "feature": 3}\n', "row 2: feature is 3"),
        ('{"image_id": "2", "feature": [0.5, 1]}\n', "row 2: image_id is '2'"),
        (
            '{"text_id": 2, "feature": [0.5, 1]}\n',
            "row 2: image_id is missing; its fields are feature, text_id",
        ),
        ('{"image_id": 2}\n', "row 2: feature is missing"),
        ('{"image_id": 2, "feature": [0.5, 1', "row 2: .* the last line may be cut"),
        ("[1]\n", "row 2: .* is not a JSON object"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, second: str, complaint: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(GOOD + second)
    with pytest.raises(DataError, match=complaint):
        read_features(path, "image_id")


def test_nan_is_found_on_the_line_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(GOOD + "\n\n" + '{"image_id": 2, "feature": [0.5, Infinity]}\n')
    with pytest.raises(DataError, match="row 4"):
        read_features(path, "image_id")


def test_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_features(tmp_path / "none.jsonl", "image_id")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="no rows"):
        read_features(tmp_path / "empty.jsonl", "image_id")
    (tmp_path / "foreign.jsonl").write_bytes(GOOD.encode() + b"\xff\xfe\x80\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read_features(tmp_path / "foreign.jsonl", "image_id")


def test_fp16_features_keep_their_precision_in_the_norm(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    write_features(path, "text_id", [([1], torch.full((1, 4), 200.0, dtype=torch.float16))])
    assert json.loads(path.read_text())["feature"] == [0.5, 0.5, 0.5, 0.5]
