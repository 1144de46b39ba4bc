"""The items of all parts, one by one, from where an import stands to the end, and the share of them that may be bad."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from cn_clip.errors import DataError
from cn_clip.preprocess.importing import changes, outputs
from cn_clip.preprocess.importing.items import Item, Source
from cn_clip.preprocess.importing.pictures import prepared_in_order
from cn_clip.preprocess.importing.progress import Position, Progress
from cn_clip.preprocess.importing.rows import RowWriter
from cn_clip.preprocess.importing.run_options import RunOptions
from cn_clip.preprocess.splits.bad_row_log import ROWS_BEFORE_A_SHARE
from cn_clip.preprocess.splits.in_order import num_cores

CHECKPOINT_ITEMS = 20_000
CHECKPOINT_SECONDS = 2.0


class PartsReader:
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
            if not bar.disable:
                bar.total = _total(self._source)
            for number, part in enumerate(self._source.parts):
                if number < self._position.part:
                    continue
                of = f" ({number + 1} of {len(self._source.parts)})" if len(self._source.parts) > 1 else ""
                bar.set_description(f"{part.name}{of}")
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
                if self._unsaved >= CHECKPOINT_ITEMS or time.monotonic() - self._saved >= CHECKPOINT_SECONDS:
                    check_share(position, self._source, self._options, is_whole=False)
                    self._save()
                    self._saved, self._unsaved = time.monotonic(), 0


def _total(source: Source) -> int | None:
    """Items of all parts, or None: what would have to be read first is not counted."""
    total = 0
    for part in source.parts:
        count = None if part.num_items is None else part.num_items()
        if count is None:
            return None
        total += count
    return total


def check_share(position: Position, source: Source, options: RunOptions, *, is_whole: bool) -> None:
    """DataError when more is bad or lost than may be."""
    too_many = too_many_bad(position, source, options, is_whole=is_whole)
    if too_many is not None:
        raise DataError(
            f"{too_many}, which is more than --max-bad-share {options.max_bad_share:g}; "
            f"{_unfinished_bad_rows(options)} says which and why"
        )


def too_many_bad(position: Position, source: Source, options: RunOptions, *, is_whole: bool) -> str | None:
    """What is more than `--max-bad-share` allows, None when nothing is."""
    num_parts, num_bad = len(source.parts), position.num_bad + position.num_lost - position.num_broken
    # the row that says that a part is broken is no row of it
    num_items = position.num_items + position.num_lost - position.num_broken
    # a part of which nobody knows how much is lost counts as a whole one
    share = position.num_uncounted / num_parts
    if num_items and (is_whole or position.num_items >= ROWS_BEFORE_A_SHARE):
        share += num_bad / num_items
    if share <= options.max_bad_share:
        return None
    faults = [f"{position.num_broken} of {num_parts} shards are broken"] if position.num_broken else []
    if num_bad:
        or_lost = " or lost" if position.num_lost else ""
        faults.append(f"{num_bad} of {num_items} pictures and captions are bad{or_lost}")
    return " and ".join(faults)


def _unfinished_bad_rows(options: RunOptions) -> Path:
    return options.output_dir / outputs.WORK_FOLDER / outputs.BAD_ROWS_FILE
