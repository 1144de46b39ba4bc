"""One split's TSV and JSONL to its LMDB."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from cn_clip.data.bad_rows import BadRow
from cn_clip.data.store import SplitWriter, TakenIdError, open_split
from cn_clip.data.store.layout import Format
from cn_clip.errors import ConfigError, DataError
from cn_clip.preprocess.splits.bad_row_log import BadRowLog, Policy
from cn_clip.preprocess.splits.caption_pairs import CaptionIds, add_pairs, check_captions
from cn_clip.preprocess.splits.in_order import num_cores
from cn_clip.preprocess.splits.known_pairs import KnownPairs
from cn_clip.preprocess.splits.picture_rows import PictureRow, read_pictures
from cn_clip.preprocess.splits.split_files import SplitFiles


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How a split is built."""

    format: Format = "v2"
    shard_bytes: int | None = None
    """An imgs folder stays below this, and the next one begins; None is one folder."""
    append: bool = False
    """Go on after the split that is there."""
    tokens: bool = True
    """Keep the token ids of the captions too, so that training need not tokenise them; the reference's format has none."""
    decode: bool = False
    """Decode every picture in full."""
    num_workers: int | None = None
    """Threads that decode; None is one per core, 0 and 1 are none beside the one that writes."""
    bad_rows: Policy = "stop"
    max_bad_share: float = 0.01
    """Of the rows of a file, when bad ones are skipped."""

    def __post_init__(self) -> None:
        if self.format == "reference" and self.shard_bytes is not None:
            raise ConfigError("--format reference has one folder of pictures: leave out --shard_size")
        if not 0 <= self.max_bad_share <= 1:
            raise ConfigError(
                f"--max-bad-share is a share of the rows, from 0 to 1, not {self.max_bad_share:g}"
            )
        if self.num_workers is not None and self.num_workers < 0:
            raise ConfigError(f"--workers is a number of threads, 0 or more, not {self.num_workers}")


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """What a build found. Of a split that got longer, the new rows, where nothing else is said."""

    num_images: int
    num_pairs: int
    num_captions: int
    num_repeats: int
    """Rows of a picture that was there already, byte for byte."""
    num_known_pairs: int = 0
    """Pairs that were there already, with the same text id."""
    num_other_texts: int = 0
    """Captions whose text id was there already, with another text."""
    num_unpaired: int
    """Captions without image ids: they make no pair."""
    num_blank_lines: int
    """Empty lines between the rows of both files."""
    num_bad_rows: int = 0
    """Rows left out."""
    num_losers: int = 0
    """Captions that lost a picture: it was left out, or no row has it."""
    num_all_images: int = 0
    """Of the whole split."""
    num_all_pairs: int = 0
    """Of the whole split."""
    num_shards: int = 1
    """Folders that the pictures of the whole split lie in."""
    bad_rows_path: Path | None = None
    """Where the bad rows are listed, and the captions that named a picture which no row has, if there were any."""


def require_splits_there(splits: Sequence[SplitFiles], lmdb_dir: Path, options: BuildOptions) -> None:
    """DataError when one of the splits that rows are to be added to is not there, before any of them is changed."""
    for files in splits:
        SplitWriter(lmdb_dir / files.name, options.format, append=options.append).check()


def build_split(files: SplitFiles, lmdb_dir: Path, options: BuildOptions) -> SplitReport:
    """Check every row and write `lmdb_dir/{name}`, replacing an older one at the very end. DataError names the row."""
    fingerprint, caption_ids = _tokenizer() if options.tokens and options.format == "v2" else (None, None)
    writer = SplitWriter(
        lmdb_dir / files.name,
        options.format,
        shard_bytes=options.shard_bytes,
        append=options.append,
        tokenizer=fingerprint,
    )
    bad_rows = BadRowLog(lmdb_dir, files.name, options.bad_rows, options.max_bad_share)
    with writer, closing(bad_rows):
        captions = check_captions(files.captions, bad_rows)
        if captions.num_rows == 0 and not options.append:
            raise DataError(f"{files.captions} has only blank lines: write one caption per line")
        num_blank_lines = captions.num_blank_lines + _add_pictures(files, writer, bad_rows, options)
        # the old split is in its place until the commit
        known = KnownPairs(open_split(lmdb_dir / files.name).pairs) if options.append else None
        pairing = add_pairs(files, writer, bad_rows, caption_ids if writer.tokenizer else None, known)
        bad_rows.check_share(files.captions, captions.num_rows, is_whole=True)
        writer.commit()
        # after it, since a build that fails leaves the old split and its list; before any other build of this split
        bad_rows.publish()
    return SplitReport(
        num_images=writer.num_images - writer.num_old_images,
        num_pairs=writer.num_pairs - writer.num_old_pairs,
        num_captions=captions.num_captions - pairing.num_left_out - pairing.num_known_captions,
        num_repeats=writer.num_repeats,
        num_known_pairs=pairing.num_known_pairs,
        num_other_texts=pairing.num_other_texts,
        num_unpaired=captions.num_unpaired,
        num_blank_lines=num_blank_lines,
        num_bad_rows=bad_rows.num_left_out,
        num_losers=pairing.num_losers,
        num_all_images=writer.num_images,
        num_all_pairs=writer.num_pairs,
        num_shards=writer.num_shards,
        bad_rows_path=bad_rows.path if bad_rows.num_rows else None,
    )


def _tokenizer() -> tuple[str, CaptionIds]:
    # here, so that a build without tokens needs no tokenizer
    from cn_clip.clip.tokenizer import caption_ids, tokenizer_fingerprint

    return tokenizer_fingerprint(), caption_ids


def _add_pictures(files: SplitFiles, writer: SplitWriter, bad_rows: BadRowLog, options: BuildOptions) -> int:
    """Number of blank lines."""
    path = files.pictures
    num_rows = num_lines = 0
    num_threads = num_cores() if options.num_workers is None else options.num_workers
    blocks = read_pictures(path, decode=options.decode, num_threads=num_threads if options.decode else 0)
    bar = tqdm(total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True, disable=None)
    with bar, warnings.catch_warnings(), closing(blocks):
        # PIL remarks on odd metadata without saying of which row
        warnings.filterwarnings("ignore", module=r"PIL\.")
        for block in blocks:
            for row in block.rows:
                bad = row if isinstance(row, BadRow) else _add_picture(path, row, writer, options.bad_rows)
                if bad is not None:
                    bad_rows.add(bad)
            num_rows, num_lines = num_rows + len(block.rows), num_lines + block.num_lines
            bad_rows.check_share(path, num_rows, is_whole=False)
            bar.update(block.num_bytes)
    if num_rows == 0 and not options.append:
        raise DataError(f"{path} has only blank lines: write one picture per line")
    bad_rows.check_share(path, num_rows, is_whole=True)
    return num_lines - num_rows


def _add_picture(path: Path, row: PictureRow, writer: SplitWriter, policy: Policy) -> BadRow | None:
    """Keep a picture; a bad row when another picture has its id and bad rows are skipped, otherwise that is a DataError."""
    try:
        writer.add_image(row.image_id, row.picture, f"{path} row {row.row}", size=row.size)
    except TakenIdError as error:
        if policy == "stop":
            raise
        return BadRow(path=path, row=row.row, column=1, reason=error.reason, image_id=row.image_id)
    return None
