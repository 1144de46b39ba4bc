"""An import from its first item to files in their places, going on where a killed one stopped."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cn_clip.errors import ConfigError, DataError
from cn_clip.preprocess.importing import changes, outputs
from cn_clip.preprocess.importing.earlier_names import read_earlier_names
from cn_clip.preprocess.importing.finish import SplitSummary, finish
from cn_clip.preprocess.importing.items import Item, Source
from cn_clip.preprocess.importing.lock import hold_folder
from cn_clip.preprocess.importing.parts_reader import PartsReader, check_share, too_many_bad
from cn_clip.preprocess.importing.progress import Position, Progress
from cn_clip.preprocess.importing.rows import RowWriter
from cn_clip.preprocess.importing.run_options import RunOptions

_WORTH_KEEPING_SECONDS = 60
"""Work of other settings that is thrown away without asking."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What an import wrote."""

    splits: tuple[SplitSummary, ...]
    num_repeats: int
    """Pictures that came again with the same bytes, and are written once."""
    num_left_out: int
    """Captions none of whose pictures could be used."""
    num_bad: int
    num_resumed: int
    """Items that an earlier, interrupted run had done."""
    num_parts: int
    num_broken: int
    """Parts that broke off."""
    num_lost: int
    """Pictures and captions behind the breaks, as far as they were counted."""
    num_elsewhere: Mapping[str, int]
    """Split of an earlier import -> names of its map that this import has too."""


def run_import(kind: str, settings: object, source: Source, options: RunOptions) -> Report:
    """Everything, into `options.output_dir`. DataError names file and row; what was done until then is kept for the next run.

    `settings` are those of the kind: an unfinished import goes on only under the same ones, over the same files.
    """
    _check(options, source)
    outputs.make_folder(options.output_dir)
    # held until the working folder is gone, which another import could else have taken up meanwhile
    with hold_folder(options.output_dir):
        return _run_alone(kind, settings, source, options)


def _run_alone(kind: str, settings: object, source: Source, options: RunOptions) -> Report:
    work = outputs.make_work_folder(options.output_dir)
    is_ours = False
    try:
        with Progress(work / outputs.PROGRESS_FILE) as progress:
            is_ours = True
            fingerprint = changes.fingerprint(kind, settings, source, options)
            start = _take_up(progress, fingerprint, source, options)
            num_resumed = start.position.num_items
            if not start.position.is_written:
                _read_all(source, options, progress, start)
                _require_unchanged(progress, fingerprint, kind, settings, source, options)
            summaries = finish(work, source, start.position, options.output_dir, options.to)
    except DataError:
        if is_ours and not (source.is_resumable and outputs.has_rows(work)):
            outputs.clear(work)
        raise
    outputs.clear(work)
    position = start.position
    return Report(
        splits=summaries,
        num_repeats=position.num_repeats,
        num_left_out=position.num_left_out,
        num_bad=position.num_bad,
        num_resumed=num_resumed,
        num_parts=len(source.parts),
        num_broken=position.num_broken,
        num_lost=position.num_lost,
        num_elsewhere=position.num_elsewhere,
    )


def _check(options: RunOptions, source: Source) -> None:
    if options.max_px is not None and options.max_px < 1:
        raise ConfigError(f"--max-px is {options.max_px}; give 1 or more")
    if options.workers is not None and options.workers < 0:
        raise ConfigError(f"--workers is {options.workers}; give 0 or more")
    if not 0 <= options.max_bad_share <= 1:
        raise ConfigError(f"--max-bad-share is {options.max_bad_share:g}; give a share of the rows, 0 to 1")
    for split in source.splits if options.to == "lmdb" else ():
        stale = options.output_dir / outputs.images_file(split)
        if stale.exists():
            raise ConfigError(
                f"{stale} is of another import, and would not fit the {outputs.texts_file(split)} of this one: "
                "delete it, or import with --to tsv"
            )
    if not source.parts:
        raise DataError("there is nothing to import: the source has no files")


@dataclass(frozen=True)
class _Start:
    """Where a run begins."""

    position: Position
    sizes: dict[str, int]
    """File name -> bytes of it that count."""
    rest: Iterator[Item] | None
    """What is left of the part at `position`; None: all of it."""


def _take_up(progress: Progress, fingerprint: str, source: Source, options: RunOptions) -> _Start:
    """Go on where an unfinished import of the same input stands, or begin; a new import knows the names of earlier ones."""
    found, position, sizes = progress.read()
    if found and not options.start_anew:
        reason = _why_read_again(position, source, options)
        if reason is None and found == fingerprint:
            rest = changes.rest_of(source, position, progress)
            if rest is not None:
                return _Start(position, sizes, rest)
        if position.elapsed_seconds > _WORTH_KEEPING_SECONDS:
            reason = reason or "of other settings or other input: give the same ones to go on with it"
            raise ConfigError(
                f"{options.output_dir / outputs.WORK_FOLDER} holds an unfinished import {reason}, or --start-anew to "
                "begin at the first row"
            )
    progress.start(fingerprint)
    position = Position()
    if not source.own_ids:
        position.next_id = read_earlier_names(options.output_dir, source.splits, progress)
    progress.checkpoint(position, {})
    return _Start(position, {}, None)


def _why_read_again(position: Position, source: Source, options: RunOptions) -> str | None:
    """Why going on could not end well: rows were passed over, some of which may be mended by now."""
    if options.bad_rows == "stop" and position.num_bad:
        return f"that passed over {position.num_bad} bad rows: give --bad-rows skip to go on with it"
    is_whole = position.part == len(source.parts)
    too_many = None if position.is_written else too_many_bad(position, source, options, is_whole=is_whole)
    if too_many is not None:
        return f"in which {too_many}: give a higher --max-bad-share to go on with it"
    return None


def _require_unchanged(
    progress: Progress, fingerprint: str, kind: str, settings: object, source: Source, options: RunOptions
) -> None:
    try:
        changes.require_unchanged(fingerprint, kind, settings, source, options)
    except DataError:
        # rows of before and after stand side by side: nothing to go on with
        progress.start("")
        progress.checkpoint(Position(), {})
        raise


def _read_all(source: Source, options: RunOptions, progress: Progress, start: _Start) -> None:
    position = start.position
    files = outputs.Outputs(options.output_dir / outputs.WORK_FOLDER, source.splits)
    files.open(start.sizes)
    started, before = time.monotonic(), position.elapsed_seconds

    def save() -> None:
        position.elapsed_seconds = before + time.monotonic() - started
        progress.checkpoint(position, files.sync())

    try:
        with warnings.catch_warnings():
            # PIL remarks on odd metadata without saying of which picture
            warnings.filterwarnings("ignore", module=r"PIL\.")
            stops = source.advice if options.bad_rows == "stop" else None
            writer = RowWriter(source, files, progress, position, stops=stops)
            PartsReader(source, options, progress, writer, position, save).read(start.rest)
        check_share(position, source, options, is_whole=True)
        for image_id, name, split in progress.removed():
            files.add_name(split, image_id, name, is_removed=True)
        position.is_written = True
        save()
    except DataError:
        # the row may be mended, and the import then goes on from it
        save()
        raise
    finally:
        files.close()
