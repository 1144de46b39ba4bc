"""Recall of a prediction file against an annotation file, and the JSON that reports it."""

from __future__ import annotations

import json
import os

from cn_clip.errors import CnClipError
from cn_clip.eval.retrieval.files import Direction, read_answers, read_predictions
from cn_clip.eval.whole_file import open_whole
from cn_clip.metrics.recall import recall_at_k

Path = str | os.PathLike[str]

DEFAULT_NUM_FOUND = 10  # predictions that every query must have, as in the MUGE contest
KS = (1, 5, 10)


def score_files(
    annotation_path: Path, prediction_path: Path, direction: Direction, num_found: int = DEFAULT_NUM_FOUND
) -> tuple[float, float, float]:
    """Recall at 1, 5 and 10, each 0 to 1."""
    answers = read_answers(annotation_path, direction)
    predictions = read_predictions(prediction_path, direction, answers, num_found)
    recalls = recall_at_k([predictions[query] for query in answers], list(answers.values()), KS)
    return recalls[1], recalls[5], recalls[10]


def score_list(recalls: tuple[float, float, float]) -> list[float]:
    """[mean, R@1, R@5, R@10] in percent."""
    r1, r5, r10 = recalls
    mean = (
        r1 + r5 + r10
    ) / 3  # not sum(): from Python 3.12 on it rounds differently, and files should stay equal
    return [mean * 100, r1 * 100, r5 * 100, r10 * 100]


def write_score(path: Path, recalls: tuple[float, float, float]) -> None:
    """Write the result JSON: percents, not rounded."""
    mean, r1, r5, r10 = score_list(recalls)
    parts = {"score": mean, "mean_recall": mean, "r1": r1, "r5": r5, "r10": r10}
    _write_json(path, {"success": True, "score": mean, "scoreJson": parts})


def write_failure(path: Path, message: str) -> None:
    """Write the JSON that says why there is no score."""
    _write_json(
        path, {"errorDetail": message, "errorMsg": message, "score": 0, "scoreJson": {}, "success": False}
    )


def score_to_file(
    annotation_path: Path, prediction_path: Path, output_path: Path, direction: Direction, num_found: int
) -> tuple[float, float, float]:
    """Recall at 1, 5 and 10, also written to `output_path`; a failure is written there too, then raised."""
    try:
        recalls = score_files(annotation_path, prediction_path, direction, num_found)
    except CnClipError as error:
        write_failure(output_path, str(error))
        raise
    write_score(output_path, recalls)
    return recalls


def _write_json(path: Path, content: dict[str, object]) -> None:
    with open_whole(path) as stream:
        json.dump(content, stream)
