"""From two feature files to a prediction file: read, search, write."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

import torch

from cn_clip.errors import ConfigError, DataError
from cn_clip.eval.features.files import Key, read_features
from cn_clip.eval.retrieval.files import IMAGE_TO_TEXT, TEXT_TO_IMAGE, write_predictions
from cn_clip.eval.retrieval.search import top_k
from cn_clip.eval.whole_file import check_writable

Path = str | os.PathLike[str]
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Search:
    image_features: Path
    """JSONL of image features."""
    text_features: Path
    """JSONL of text features."""
    asks: Key
    """`text_id` finds images for texts, `image_id` texts for images."""
    top_k: int
    """Ids to find for each query."""
    block: int
    """Gallery rows scored at once."""
    device: torch.device
    """Where the scores are computed."""


def predict_to_file(search: Search, output_path: Path) -> int:
    """Write the ids found for each query, best first; returns how many each has (fewer than top_k if the gallery is smaller)."""
    for flag, value in (("--top-k", search.top_k), ("--eval-batch-size", search.block)):
        if value < 1:
            raise ConfigError(f"{flag} is {value}, which should be at least 1")
    check_writable(output_path)
    image_ids, images_IE = read_features(search.image_features, "image_id")
    text_ids, texts_TE = read_features(search.text_features, "text_id")
    if images_IE.shape[1] != texts_TE.shape[1]:
        raise DataError(
            f"{search.image_features} has features of {images_IE.shape[1]} numbers and {search.text_features} of "
            f"{texts_TE.shape[1]}: extract both with the same model"
        )
    if search.asks == "text_id":
        direction, queries, query_QE, gallery, gallery_GE = (
            TEXT_TO_IMAGE,
            text_ids,
            texts_TE,
            image_ids,
            images_IE,
        )
    else:
        direction, queries, query_QE, gallery, gallery_GE = (
            IMAGE_TO_TEXT,
            image_ids,
            images_IE,
            text_ids,
            texts_TE,
        )
    _warn_of_repeats(gallery, direction.found)
    places_Qk = top_k(query_QE, gallery_GE, search.top_k, search.device, search.block)
    write_predictions(
        output_path, direction, queries, ([gallery[p] for p in row] for row in places_Qk.tolist())
    )
    return places_Qk.shape[1]


def _warn_of_repeats(ids: list[int], field: str) -> None:
    repeats = len(ids) - len(set(ids))
    if repeats:
        log.warning(
            "%d of the %d %s occur more than once in their feature file; evaluation will refuse rows that "
            "find one twice",
            repeats,
            len(ids),
            field,
        )
