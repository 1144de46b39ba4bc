"""Prediction and annotation files of retrieval, both directions: their one reader and writer.

Predictions: `{"text_id": 7, "image_ids": [3, 9]}`, best first; annotations: the same fields with the right ids.
Image-to-text files swap the two kinds of id.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cn_clip.errors import DataError
from cn_clip.eval.jsonl import complain, read_rows, take_id, take_ids
from cn_clip.eval.whole_file import open_whole

Path = str | os.PathLike[str]


@dataclass(frozen=True)
class Direction:
    """Which kind of id asks and which is found."""

    query: str
    """Field of the id that asks, for example `text_id`."""
    found: str
    """Field of the ids that answer, for example `image_ids`."""


TEXT_TO_IMAGE = Direction(query="text_id", found="image_ids")
IMAGE_TO_TEXT = Direction(query="image_id", found="text_ids")


def read_answers(path: Path, direction: Direction) -> dict[int, list[int]]:
    """Right ids of each query, in file order; a query on several rows keeps its last."""
    answers = {}
    for number, row in read_rows(path):
        answers[take_id(row, direction.query, path, number)] = take_ids(row, direction.found, path, number)
    if not answers:
        raise DataError(f"{path} has no rows: give a JSONL of {direction.query} and {direction.found}")
    return answers


def read_predictions(
    path: Path, direction: Direction, queries: Iterable[int], num_found: int
) -> dict[int, list[int]]:
    """Found ids of each query, best first: exactly `num_found` different ones for each of `queries`.

    Queries beyond these are read and kept; a query on several rows keeps its last.
    """
    predictions = {}
    for number, row in read_rows(path):
        query = take_id(row, direction.query, path, number)
        found = take_ids(row, direction.found, path, number)
        if len(found) != num_found:
            complain(
                path,
                number,
                f"{direction.query} {query} has {len(found)} {direction.found}, not {num_found}: "
                f"search and score with the same --top-k",
            )
        if len(set(found)) != num_found:
            complain(path, number, f"{direction.query} {query} has the same id twice in {direction.found}")
        predictions[query] = found
    _check_all_answered(path, direction, predictions, queries)
    return predictions


def write_predictions(
    path: Path, direction: Direction, queries: Sequence[int], found: Iterable[Sequence[int]]
) -> None:
    """Write one row a query, in the order given, as a whole file."""
    with open_whole(path) as stream:
        for query, ids in zip(queries, found, strict=True):
            stream.write(json.dumps({direction.query: query, direction.found: list(ids)}) + "\n")


def turn_answers(path: Path) -> dict[int, list[int]]:
    """Text ids of each image, images in first-seen order, from a text-to-image annotation file."""
    turned: dict[int, list[int]] = {}
    for number, row in read_rows(path):
        text_id = take_id(row, "text_id", path, number)
        for image_id in take_ids(row, "image_ids", path, number):
            turned.setdefault(image_id, []).append(text_id)
    return turned


def write_answers(path: Path, direction: Direction, answers: Mapping[int, Sequence[int]]) -> None:
    """Write annotations, one row a query, as a whole file."""
    write_predictions(path, direction, list(answers), answers.values())


def _check_all_answered(
    path: Path, direction: Direction, predictions: Mapping[int, object], queries: Iterable[int]
) -> None:
    missing = [query for query in queries if query not in predictions]
    if missing:
        some = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        raise DataError(f"{path} has no row for {len(missing)} {direction.query}s of the annotations: {some}")
