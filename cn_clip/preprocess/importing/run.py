"""An import from its first item to files in their places, going on where a killed one stopped."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from cn_clip.errors import ConfigError, DataError
from cn_clip.preprocess.importing import outputs
from cn_clip.preprocess.importing.earlier_names import read_earlier_names
from cn_clip.preprocess.importing.finish import SplitSummary, finish
from cn_clip.preprocess.importing.items import Source
from cn_clip.preprocess.importing.pictures import prepared_in_order
from cn_clip.preprocess.importing.progress import Position, Progress
from cn_clip.preprocess.importing.rows import RowWriter
from cn_clip.preprocess.importing.run_options import RunOptions
from cn_clip.preprocess.splits.in_order import num_cores

_CHECKPOINT_ITEMS = 20_000
_CHECKPOINT_SECONDS = 2.0
_ROWS_BEFORE_A_SHARE = 10_000
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
    work = options.output_dir / outputs.WORK_FOLDER
    work.mkdir(exist_ok=True)
    is_ours = False
    try:
        with Progress(work / outputs.PROGRESS_FILE) as progress:
            is_ours = True
            fingerprint = _fingerprint(kind, settings, source, options)
            position, sizes = _take_up(progress, fingerprint, source, options)
            num_resumed = position.num_items
            if not position.is_written:
                _read_all(source, options, progress, position, sizes)
            summaries = finish(work, source, position, options.output_dir, options.to)
    except DataError:
        if is_ours and not (source.is_resumable and outputs.has_rows(work)):
            outputs.clear(work)
        raise
    outputs.clear(work)
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


def _fingerprint(kind: str, settings: object, source: Source, options: RunOptions) -> str:
    """Equal for two runs that write the same; not asked of pictures, whose files may be mended meanwhile."""
    files = [(str(path), path.stat()) for part in source.parts for path in part.files]
    facts = [
        kind,
        repr(settings),
        options.max_px,
        [part.name for part in source.parts],
        [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files],
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _take_up(
    progress: Progress, fingerprint: str, source: Source, options: RunOptions
) -> tuple[Position, dict[str, int]]:
    """(where to go on, sizes of the files there); a new import knows the names of earlier ones."""
    found, position, sizes = progress.read()
    if found == fingerprint and not (options.bad_rows == "stop" and position.num_bad):
        return position, sizes
    if found and position.elapsed_seconds > _WORTH_KEEPING_SECONDS and not options.start_anew:
        raise ConfigError(
            f"{options.output_dir / outputs.WORK_FOLDER} holds an unfinished import of other settings or other input "
            "files: give the same ones to go on with it, or --start-anew to give it up"
        )
    progress.start(fingerprint)
    position = Position()
    if not source.own_ids:
        position.next_id = read_earlier_names(options.output_dir, source.splits, progress)
    progress.checkpoint(position, {})
    return position, {}


def _read_all(
    source: Source, options: RunOptions, progress: Progress, position: Position, sizes: dict[str, int]
) -> None:
    files = outputs.Outputs(options.output_dir / outputs.WORK_FOLDER, source.splits)
    files.open(sizes)
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
            _read_parts(source, options, writer, position, save)
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


def _read_parts(
    source: Source, options: RunOptions, writer: RowWriter, position: Position, save: Callable[[], None]
) -> None:
    num_threads = num_cores() if options.workers is None else options.workers
    saved, unsaved = time.monotonic(), 0
    # None: only on a terminal
    with tqdm(initial=position.num_items, unit=" rows", disable=None) as bar:
        for number, part in enumerate(source.parts):
            if number < position.part:
                continue
            bar.set_description(part.name)
            todo = islice(part.items(), position.item, None)
            done = prepared_in_order(todo, num_threads, options.max_px, writer.is_done)
            with closing(done):
                for item, prepared in done:
                    writer.add(item, prepared)
                    position.item += 1
                    position.num_items += 1
                    unsaved += 1
                    bar.update()
                    if unsaved >= _CHECKPOINT_ITEMS or time.monotonic() - saved >= _CHECKPOINT_SECONDS:
                        _check_share(position, options, is_whole=False)
                        save()
                        saved, unsaved = time.monotonic(), 0
            position.part, position.item = number + 1, 0


def _check_share(position: Position, options: RunOptions, *, is_whole: bool) -> None:
    if position.num_bad <= options.max_bad_share * position.num_items:
        return
    if is_whole or position.num_items >= _ROWS_BEFORE_A_SHARE:
        raise DataError(
            f"{position.num_bad} of {position.num_items} pictures and captions are bad, which is more than "
            f"--max-bad-share {options.max_bad_share:g}; {_unfinished_bad_rows(options)} says which and why"
        )


def _unfinished_bad_rows(options: RunOptions) -> Path:
    return options.output_dir / outputs.WORK_FOLDER / outputs.BAD_ROWS_FILE
