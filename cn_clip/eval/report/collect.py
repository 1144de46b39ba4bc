"""From the files of a run to the report's facts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cn_clip.data.store import ImageStore
from cn_clip.errors import ConfigError, DataError
from cn_clip.eval.report.facts import read_curves, read_recalls, read_stages, read_zeroshot
from cn_clip.eval.report.gallery import read_gallery
from cn_clip.eval.report.page import Report
from cn_clip.eval.report.thumbnails import thumbnail

_SETTINGS = ("model.image", "model.text", "train.batch_size", "train.precision", "optim.lr", "run.seed")


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where the facts are; None leaves that part out, or computes it where the features suffice."""

    texts: Path
    text_features: Path
    image_features: Path
    images: Path
    run_folder: Path | None
    recall_images: Path | None
    recall_texts: Path | None
    zeroshot: Path | None
    stages: Path | None
    title: str
    credit: str
    num_queries: int
    num_found: int
    seed: int


def collect(sources: Sources) -> Report:
    """Everything the page shows."""
    if sources.num_queries < 0 or sources.num_found < 1:
        raise ConfigError("--num-queries should be 0 or more and --num-found 1 or more")
    store = ImageStore(_images_folder(sources.images))
    gallery = read_gallery(sources.texts, sources.text_features, sources.image_features)
    to_images, to_texts = sources.recall_images, sources.recall_texts
    computed = None if to_images and to_texts else gallery.recalls()
    return Report(
        title=sources.title,
        recalls=(
            read_recalls(to_images) if to_images else computed[0],  # type: ignore[index]  # computed when one is None
            read_recalls(to_texts) if to_texts else computed[1],  # type: ignore[index]  # likewise
        ),
        chances=gallery.chances(),
        num_captions=len(gallery.captions),
        num_pictures=len(gallery.image_ids),
        queries=gallery.draw(sources.num_queries, sources.num_found, sources.seed),
        thumbnail=_thumbnails(store),
        zeroshot=read_zeroshot(sources.zeroshot) if sources.zeroshot else None,
        stages=read_stages(sources.stages) if sources.stages else {},
        curves=read_curves(sources.run_folder) if sources.run_folder else {},
        settings=_read_settings(sources.run_folder) if sources.run_folder else {},
        credit=sources.credit,
    )


def _images_folder(path: Path) -> Path:
    return path / "imgs" if (path / "imgs").is_dir() else path


def _thumbnails(store: ImageStore) -> Callable[[int], str]:
    def address(image_id: int) -> str:
        raw = store.read(image_id)
        try:
            return thumbnail(raw)
        except DataError as error:
            raise DataError(f"picture {image_id} of {store.path}: {error}") from error

    return address


def _read_settings(run_folder: Path) -> dict[str, str]:
    """A few settings of `resolved.yaml`, where the run has one."""
    path = run_folder / "resolved.yaml"
    if not path.is_file():
        return {}
    try:
        resolved = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise DataError(f"{path} is not YAML: {str(error).splitlines()[0]}") from error
    found = {name: _look_up(resolved, name) for name in _SETTINGS}
    return {name: str(value) for name, value in found.items() if value is not None}


def _look_up(settings: Any, name: str) -> Any:  # Any: parsed YAML
    for part in name.split("."):
        if not isinstance(settings, dict) or part not in settings:
            return None
        settings = settings[part]
    return settings
