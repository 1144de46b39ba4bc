"""An import from its first item to files in their places, going on where a killed one stopped."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from cn_clip.errors import ConfigError, DataError
from cn_clip.preprocess.importing import changes, outputs
from cn_clip.preprocess.importing.earlier_names import read_earlier_names
from cn_clip.preprocess.importing.finish import SplitSummary, finish
from cn_clip.preprocess.importing.items import Item, Source
from cn_clip.preprocess.importing.lock import hold_folder
from cn_clip.preprocess.importing.pictures import prepared_in_order
from cn_clip.preprocess.importing.progress import Position, Progress
from cn_clip.preprocess.importing.rows import RowWriter
from cn_clip.preprocess.importing.run_options import RunOptions
from cn_clip.preprocess.splits.in_order import num_cores

_CHECKPOINT_ITEMS = 20_000
_CHECKPOINT_SECONDS = 2.0
ROWS_BEFORE_A_SHARE = 10_000
"""A share of fewer rows says little; it is looked at in the end."""
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
    if found and not options.start_anew and not _must_be_read_again(position, source, options):
        rest = changes.rest_of(source, position, progress) if found == fingerprint else None
        if rest is not None:
            return _Start(position, sizes, rest)
        if position.elapsed_seconds > _WORTH_KEEPING_SECONDS:
            raise ConfigError(
                f"{options.output_dir / outputs.WORK_FOLDER} holds an unfinished import of other settings or other "
                "input: give the same ones to go on with it, or --start-anew to give it up"
            )
    progress.start(fingerprint)
    position = Position()
    if not source.own_ids:
        position.next_id = read_earlier_names(options.output_dir, source.splits, progress)
    progress.checkpoint(position, {})
    return _Start(position, {}, None)


def _must_be_read_again(position: Position, source: Source, options: RunOptions) -> bool:
    """Whether going on could only fail: rows were passed over that now may not be, or more than may be; some may be mended."""
    if options.bad_rows == "stop":
        return position.num_bad > 0
    is_whole = position.part == len(source.parts)
    return not position.is_written and _too_many_bad(position, options, is_whole=is_whole)


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
            _PartsReader(source, options, progress, writer, position, save).read(start.rest)
        _check_share(position, options, is_whole=True)
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


class _PartsReader:
    """Reads what is left of the parts, one after the other, and saves from time to time."""

    def __init__(
        self,
        source: Source,
        options: RunOptions,
        progress: Progress,
        writer: RowWriter,
        position: Position,
        save: Callable[[], None],
    ) -> None:
        self._source, self._options, self._progress = source, options, progress
        self._writer, self._position, self._save = writer, position, save
        self._num_threads = num_cores() if options.workers is None else options.workers
        self._saved, self._unsaved = time.monotonic(), 0

    def read(self, rest: Iterator[Item] | None) -> None:
        """`rest` is what is left of the part at the position, if it is not whole."""
        # None: only on a terminal
        with tqdm(initial=self._position.num_items, unit=" rows", disable=None) as bar:
            for number, part in enumerate(self._source.parts):
                if number < self._position.part:
                    continue
                bar.set_description(part.name)
                if part.url and not self._position.item:
                    self._progress.mark(number, changes.store_mark(part.url))
                self._read_part(part.items() if rest is None else rest, bar)
                rest = None
                if not (part.files or part.url):
                    self._position.listings[str(number)] = self._position.trail
                self._position.part, self._position.item, self._position.trail = number + 1, 0, ""

    def _read_part(self, todo: Iterator[Item], bar: tqdm[NoReturn]) -> None:
        position, trail = self._position, changes.Trail(self._position.trail)
        done = prepared_in_order(todo, self._num_threads, self._options.max_px, self._writer.is_done)
        with closing(done):
            for item, prepared in done:
                self._writer.add(item, prepared)
                trail.add(item)
                position.trail = trail.digest
                position.item += 1
                position.num_items += 1
                self._unsaved += 1
                bar.update()
                if (
                    self._unsaved >= _CHECKPOINT_ITEMS
                    or time.monotonic() - self._saved >= _CHECKPOINT_SECONDS
                ):
                    _check_share(position, self._options, is_whole=False)
                    self._save()
                    self._saved, self._unsaved = time.monotonic(), 0


def _check_share(position: Position, options: RunOptions, *, is_whole: bool) -> None:
    if _too_many_bad(position, options, is_whole=is_whole):
        raise DataError(
            f"{position.num_bad} of {position.num_items} pictures and captions are bad, which is more than "
            f"--max-bad-share {options.max_bad_share:g}; {_unfinished_bad_rows(options)} says which and why"
        )


def _too_many_bad(position: Position, options: RunOptions, *, is_whole: bool) -> bool:
    if position.num_bad <= options.max_bad_share * position.num_items:
        return False
    return is_whole or position.num_items >= ROWS_BEFORE_A_SHARE


def _unfinished_bad_rows(options: RunOptions) -> Path:
    return options.output_dir / outputs.WORK_FOLDER / outputs.BAD_ROWS_FILE
