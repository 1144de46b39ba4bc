"""The pairs of a split being written: each by its number, their ids in columns, their captions as tokens."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xxhash import xxh3_64

from cn_clip.data.captions import caption_key
from cn_clip.data.store import layout
from cn_clip.data.store.growing_table import GrowingTable


@dataclass(frozen=True)
class PairsThere:
    """Pairs that the folder holds already."""

    count: int = 0
    content: str = ""


class PairTables:
    """Goes on after the pairs that are there; with tokens if `tokenizer` says whose they are."""

    def __init__(
        self,
        folder: Path,
        store_format: layout.Format,
        tokenizer: str | None,
        there: PairsThere | None = None,
    ) -> None:
        there = there or PairsThere()
        self.num_pairs = there.count
        self.tokenizer = tokenizer
        self._format: layout.Format = store_format
        self._content = xxh3_64(there.content.encode())
        self._pairs = GrowingTable(folder / layout.PAIRS_FOLDER)
        self._tokens = GrowingTable(folder / layout.TOKENS_FOLDER) if tokenizer is not None else None
        self._columns = self._begun_columns()

    def add(
        self,
        image_id: int,
        text_id: int,
        caption: str,
        token_ids: Sequence[int] | None = None,
        hard_negatives: Sequence[str] = (),
    ) -> None:
        """Keep the next pair."""
        key = layout.number_key(self.num_pairs)
        value = layout.encode_pair(image_id, text_id, caption, self._format, hard_negatives)
        self._pairs.put(key, value)
        self._content.update(value)
        if self._tokens is not None:
            assert token_ids is not None, "a split with tokens needs those of every caption"
            self._tokens.put(key, layout.encode_tokens(token_ids))
        if self._format == "v2":
            for column, number in zip(self._columns, (image_id, text_id, caption_key(caption)), strict=True):
                column.append(number)
            if len(self._columns[0]) == layout.COLUMNS_ROWS:
                self._put_columns(self.num_pairs // layout.COLUMNS_ROWS)
                self._columns = _no_columns()
        self.num_pairs += 1

    def finish(self) -> None:
        """All folders durable."""
        count_key, content = layout.COUNT_KEYS[layout.PAIRS_FORMAT], self._content.hexdigest()
        if self._format == "v2":
            if self._columns[0]:
                self._put_columns(self.num_pairs // layout.COLUMNS_ROWS)
            meta = layout.encode_meta(
                layout.PAIRS_FORMAT, self.num_pairs, columns=layout.COLUMNS_ROWS, content=content
            )
            self._pairs.put(layout.META_KEY, meta)
            self._pairs.put(count_key, layout.STOP_SENTENCE)
        else:
            self._pairs.put(count_key, b"%d" % self.num_pairs)
        self._pairs.finish()
        if self._tokens is not None:
            meta = layout.encode_meta(
                layout.TOKENS_FORMAT, self.num_pairs, tokenizer=self.tokenizer, pairs=content
            )
            self._tokens.put(layout.META_KEY, meta)
            self._tokens.finish()

    def close(self) -> None:
        self._pairs.close()
        if self._tokens is not None:
            self._tokens.close()

    def _begun_columns(self) -> tuple[array[int], array[int], array[int]]:
        """Those of the last block, if it has room for more rows."""
        columns = _no_columns()
        if self.num_pairs % layout.COLUMNS_ROWS:
            value = self._pairs.get(layout.columns_key(self.num_pairs // layout.COLUMNS_ROWS))
            for column, numbers in zip(columns, layout.decode_columns(value or b""), strict=True):
                column.frombytes(numbers.tobytes())
        return columns

    def _put_columns(self, block: int) -> None:
        self._pairs.put(layout.columns_key(block), layout.encode_columns(*self._columns))


def _no_columns() -> tuple[array[int], array[int], array[int]]:
    return array("q"), array("q"), array("q")
