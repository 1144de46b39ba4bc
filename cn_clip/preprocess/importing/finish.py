"""From whole files in the working folder to their places, by way of the LMDB where it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cn_clip.errors import DataError
from cn_clip.files import write_atomically
from cn_clip.preprocess.importing import outputs
from cn_clip.preprocess.importing.items import Source
from cn_clip.preprocess.importing.progress import Position

LMDB_FOLDER = "lmdb"


@dataclass(frozen=True)
class SplitSummary:
    """What a split got."""

    name: str
    num_pictures: int
    num_texts: int


def finish(
    work: Path, source: Source, position: Position, output_dir: Path, to: Literal["tsv", "lmdb"]
) -> tuple[SplitSummary, ...]:
    """Put the files of all splits in place; safe to call again after a kill. DataError when a split would be empty."""
    summaries = tuple(
        SplitSummary(split, position.pictures.get(split, 0), position.texts.get(split, 0))
        for split in source.splits
    )
    for summary in summaries:
        _require_rows(summary, position, source)
    if to == "lmdb":
        for split in source.splits:
            _build(work, output_dir, split)
    for name, content in source.companions.items():
        write_atomically(work / name, content)
    # the map of names first: with it alone nothing can be mistaken
    outputs.put_in_place(work, output_dir, [outputs.names_file(split) for split in source.splits])
    outputs.put_in_place(work, output_dir, [*source.companions, outputs.BAD_ROWS_FILE])
    outputs.put_in_place(work, output_dir, [outputs.texts_file(split) for split in source.splits])
    if to == "tsv":
        outputs.put_in_place(work, output_dir, [outputs.images_file(split) for split in source.splits])
    return summaries


def _require_rows(summary: SplitSummary, position: Position, source: Source) -> None:
    if summary.num_pictures and summary.num_texts:
        return
    what = "caption" if summary.num_pictures else "picture"
    skipped = f" ({position.num_bad} rows were passed over)" if position.num_bad else ""
    raise DataError(
        f"the split {summary.name} would have no {what}{skipped}: {_remedy(summary, position, source)}"
    )


def _remedy(summary: SplitSummary, position: Position, source: Source) -> str:
    choice = source.choice
    if choice is None or not choice.valid_share or not any(position.pictures.values()):
        return "check the input"
    other = "larger" if summary.name == choice.valid_split else "smaller"
    return f"hold out a {other} --valid-share, or none"


def _build(work: Path, output_dir: Path, split: str) -> None:
    # the tokenizer and LMDB: not for an import that ends in TSV
    from cn_clip.preprocess.splits.build import BuildOptions, build_split
    from cn_clip.preprocess.splits.split_files import SplitFiles

    pictures, captions = work / outputs.images_file(split), work / outputs.texts_file(split)
    if captions.exists():  # else an interrupted call has built it and moved them
        build_split(SplitFiles(split, pictures, captions), output_dir / LMDB_FOLDER, BuildOptions())
