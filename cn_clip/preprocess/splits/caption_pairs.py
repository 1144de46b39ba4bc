"""Captions joined with their pictures.

They are read twice. Before the pictures, because they are the smaller file, and a mistake in them should not show after
hours of pictures; after them, because only then is known which pictures there are.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cn_clip.data.bad_rows import BadRow
from cn_clip.data.captions import Caption, preprocess_text, read_caption_rows
from cn_clip.data.store import SplitWriter
from cn_clip.preprocess.splits.bad_row_log import BadRowLog
from cn_clip.preprocess.splits.known_pairs import KnownPairs
from cn_clip.preprocess.splits.split_files import SplitFiles

_MISSING_SHOWN = 5
_CHECK_EVERY = 1024  # rows between two looks at the share of bad ones

CaptionIds = Callable[[str], Sequence[int]]
"""Token ids of a prepared caption."""


@dataclass(frozen=True)
class PairingCounts:
    """Captions that did not make a pair with every picture that they name."""

    num_losers: int
    """They lost some or all of their pictures, and are no bad rows."""
    num_left_out: int
    """They name pictures that no row has, and none that is there: bad rows."""
    num_known_captions: int = 0
    """The split had all their pairs already."""
    num_known_pairs: int = 0
    """The split had them already."""
    num_other_texts: int = 0
    """Captions whose text id the split has with another text only."""


@dataclass(frozen=True)
class CaptionCounts:
    num_captions: int
    """Without the bad rows."""
    num_rows: int
    """With the bad rows."""
    num_blank_lines: int
    num_unpaired: int
    """Captions without image ids: they make no pair."""


def check_captions(path: Path, bad_rows: BadRowLog) -> CaptionCounts:
    """Every row looked at; the bad ones are in the log."""
    num_captions = num_unpaired = num_rows = last_row = 0
    for row in _with_bar(read_caption_rows(path), f"{path.name}, checking"):
        num_rows, last_row = num_rows + 1, row.row
        if isinstance(row, BadRow):
            bad_rows.add(row)
        else:
            num_captions += 1
            num_unpaired += not row.image_ids
        if num_rows % _CHECK_EVERY == 0:
            bad_rows.check_share(path, num_rows, is_whole=False)
    bad_rows.check_share(path, num_rows, is_whole=True)
    return CaptionCounts(num_captions, num_rows, last_row - num_rows, num_unpaired)


def add_pairs(
    files: SplitFiles,
    writer: SplitWriter,
    bad_rows: BadRowLog,
    caption_ids: CaptionIds | None,
    known: KnownPairs | None = None,
) -> PairingCounts:
    """A pair for each picture of each caption, with its token ids where asked for; those that are `known` are not added.

    A picture that no row has is an error, or is written down. One of which a row was left out is lost even if the split
    has a picture with its id: which of the two the caption means cannot be known.
    """
    orphans = _Orphans(files, bad_rows)
    num_known_captions = num_known_pairs = num_other_texts = 0
    for caption in _with_bar(read_caption_rows(files.captions), f"{files.captions.name}, pairing"):
        if isinstance(caption, BadRow):
            continue  # in the log since the first reading
        there = [
            image_id
            for image_id in caption.image_ids
            if image_id not in bad_rows.image_ids and writer.has_image(image_id)
        ]
        if len(there) < len(caption.image_ids):
            missing = [image_id for image_id in caption.image_ids if image_id not in there]
            orphans.add(caption, missing, keeps_some=bool(there))
        if known is not None and there:
            before = known.find(caption.text_id, caption.text)
            new = [image_id for image_id in there if not before.has(image_id)]
            num_known_pairs += len(there) - len(new)
            num_known_captions += not new
            num_other_texts += before.has_other_text
            there = new
        token_ids = caption_ids(preprocess_text(caption.text)) if caption_ids and there else None
        for image_id in there:
            writer.add_pair(image_id, caption.text_id, caption.text, token_ids, caption.hard_negatives)
    orphans.finish()
    return PairingCounts(
        orphans.num_losers, orphans.num_left_out, num_known_captions, num_known_pairs, num_other_texts
    )


class _Orphans:
    """Captions that name pictures which are not there."""

    def __init__(self, files: SplitFiles, bad_rows: BadRowLog) -> None:
        self.num_losers = self.num_left_out = 0
        self._files = files
        self._bad_rows = bad_rows
        self._first_row = 0
        self._image_ids = array("q")

    def add(self, caption: Caption, image_ids: Sequence[int], *, keeps_some: bool) -> None:
        unknown = [image_id for image_id in image_ids if image_id not in self._bad_rows.image_ids]
        if not unknown:
            self.num_losers += 1
        elif self._bad_rows.policy == "skip":
            self._bad_rows.add(self._bad_row(caption.row, unknown), is_left_out=not keeps_some)
            self.num_losers += keeps_some
            self.num_left_out += not keeps_some
        else:
            # the error comes when all of them are counted
            self._first_row = self._first_row or caption.row
            self._image_ids.extend(unknown)

    def finish(self) -> None:
        """DataError with the first row that names a missing picture, the first such ids, and how many there are."""
        if self._image_ids:
            raise self._bad_row(self._first_row, self._image_ids).error()

    def _bad_row(self, row: int, image_ids: Sequence[int]) -> BadRow:
        num_missing = len(np.unique(np.array(image_ids, np.int64)))
        first = list(dict.fromkeys(image_ids[: 100 * _MISSING_SHOWN]))[:_MISSING_SHOWN]
        shown = ", ".join(map(str, first)) + (", …" if num_missing > len(first) else "")
        return BadRow(
            path=self._files.captions,
            row=row,
            column="image_ids",
            reason=f"{num_missing} picture id{'s'[: num_missing != 1]} that {self._files.pictures.name} does not have "
            f"({shown}); add the pictures or take the ids out of the captions",
        )


def _with_bar(rows: Iterable[Caption | BadRow], title: str) -> Iterable[Caption | BadRow]:
    return tqdm(rows, desc=title, unit=" rows", disable=None)  # None: only on a terminal
