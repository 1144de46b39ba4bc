"""Feature files: JSONL rows `{"image_id": 3, "feature": [0.1, ...]}` (or `text_id`) of unit-length features.

Shapes: G rows of the file, E embedding.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cn_clip.errors import DataError
from cn_clip.eval.jsonl import Row, complain, read_rows, shorten, take, take_id
from cn_clip.eval.whole_file import open_whole

Path = str | os.PathLike[str]
Key = Literal["image_id", "text_id"]


def write_features(path: Path, key: Key, rows: Iterable[tuple[list[int], Tensor]]) -> int:
    """Write batches of (ids, features_BE) scaled to unit length, as a whole file; returns the number of rows."""
    num_rows = 0
    with open_whole(path) as stream:
        for ids, features_BE in rows:
            unit_BE = torch.nn.functional.normalize(features_BE.float(), dim=-1)
            _check_finite(ids, key, features_BE)
            for one_id, feature in zip(ids, unit_BE.tolist(), strict=True):
                stream.write(json.dumps({key: one_id, "feature": feature}) + "\n")
            num_rows += len(ids)
    return num_rows


def read_features(path: Path, key: Key) -> tuple[list[int], Tensor]:
    """Ids and features_GE (float32), in file order."""
    ids: list[int] = []
    features: list[np.ndarray] = []
    for number, row in tqdm(read_rows(path), desc=os.path.basename(path), unit=" rows", disable=None):
        ids.append(take_id(row, key, path, number))
        features.append(_take_feature(row, path, number, None if not features else len(features[0])))
    if not features:
        raise DataError(f"{path} has no rows: extract the features first")
    return ids, torch.from_numpy(np.stack(features))


def _take_feature(row: Row, path: Path, number: int, num_values: int | None) -> np.ndarray:
    values = take(row, "feature", path, number)
    try:
        feature = np.array(values, dtype=np.float32)
    except (TypeError, ValueError):
        complain(path, number, f"feature is {shorten(values)}, which should be a list of numbers")
    if feature.ndim != 1 or not len(feature):
        complain(path, number, f"feature is {shorten(values)}, which should be a list of numbers")
    if num_values is not None and len(feature) != num_values:
        complain(path, number, f"the feature has {len(feature)} numbers, those before it {num_values}")
    if not np.isfinite(feature).all():
        complain(path, number, "the feature holds NaN or infinity; extract it again")
    return feature


def _check_finite(ids: list[int], key: Key, features_BE: Tensor) -> None:
    usable_B = features_BE.isfinite().all(dim=-1) & features_BE.any(dim=-1)  # all zeros has no direction
    if not usable_B.all():
        broken = ids[int((~usable_B).int().argmax())]
        raise DataError(
            f"the model gives {key} {broken} a feature that is zero or not finite: check the weights, or use fp32"
        )
