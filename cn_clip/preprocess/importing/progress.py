"""How far an import has come, and which picture has which id: one SQLite file, so that a kill loses seconds of work.

Memory is flat: names stand in the file, of which SQLite keeps a few MB of pages. What is recorded between two checkpoints
takes effect at the second one, together with the sizes that the growing files had then.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType

from cn_clip.errors import DataError

KNOWN, WRITTEN, BAD, ELSEWHERE = 0, 1, 2, 3
"""Of a picture: an earlier import had it; it is written; it cannot be used; an earlier import had it in a split that is not written."""
NO_ID = -1
"""Of a picture that cannot be used, and never had one."""
_CACHE_KIB = 32 << 10
_TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pictures (
    key BLOB PRIMARY KEY, image_id INTEGER NOT NULL, split TEXT, state INTEGER NOT NULL, digest BLOB
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS parts (number INTEGER PRIMARY KEY, mark TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class PictureRecord:
    """What is known of a picture."""

    image_id: int
    split: str | None
    """None where it was taken out of a split that is not written, or is in none."""
    state: int
    digest: bytes | None


@dataclass
class Position:
    """Where an import stands."""

    part: int = 0
    item: int = 0
    """Items of this part that are done."""
    trail: str = ""
    """Digest of them (`changes.Trail`)."""
    listings: dict[str, str] = field(default_factory=dict)
    """Number of each part that is done and is no file -> digest of its items."""
    num_items: int = 0
    """Items done, of all parts."""
    next_id: int = 0
    """The id of the next picture that has none yet."""
    num_texts: int = 0
    """Captions written: the id of the next one that has none of its own."""
    pictures: dict[str, int] = field(default_factory=dict)
    """Split -> pictures written."""
    texts: dict[str, int] = field(default_factory=dict)
    """Split -> captions written."""
    num_repeats: int = 0
    num_left_out: int = 0
    """Captions none of whose pictures could be used."""
    num_bad: int = 0
    num_broken: int = 0
    """Parts that broke off."""
    num_uncounted: int = 0
    """Of them, those of which nobody knows how much is lost."""
    num_lost: int = 0
    """Pictures and captions behind the breaks of the others."""
    num_elsewhere: dict[str, int] = field(default_factory=dict)
    """Split that is not written -> names of its map that this import has too."""
    elapsed_seconds: float = 0.0
    is_written: bool = False
    """Every item is done; what is left is to put the files in their places."""


class Progress:
    """Context over the file at `path`; DataError when another import has it open."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Progress:
        with self._told():
            self._file = sqlite3.connect(self._path, timeout=0, isolation_level=None)
            # alone, so that the log of changes needs no shared memory, which network file systems do not have
            self._file.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._file.execute("PRAGMA journal_mode = WAL")
            # a power cut may take back the last checkpoints, each of them as a whole: the growing files are longer then
            self._file.execute("PRAGMA synchronous = NORMAL")
            self._file.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            self._file.executescript(_TABLES)
            self._file.execute("BEGIN IMMEDIATE")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if "locked" in str(error):
                raise DataError(
                    f"another import writes into {self._path.parent}: wait for it, or end it and run again"
                ) from error
            if "full" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path)) from error
            raise DataError(
                f"{self._path} cannot be used ({error}): delete the folder {self._path.parent} and run again"
            ) from error

    def read(self) -> tuple[str, Position, dict[str, int]]:
        """(fingerprint of the import, or "" of a new one; where it stood at the last checkpoint; file name -> its size then)."""
        with self._told():
            facts = dict(self._file.execute("SELECT name, value FROM facts"))
        if "position" not in facts:
            return facts.get("fingerprint", ""), Position(), {}
        return facts["fingerprint"], Position(**json.loads(facts["position"])), json.loads(facts["sizes"])

    def start(self, fingerprint: str) -> None:
        """Forget everything; an import of this fingerprint begins."""
        with self._told():
            self._file.execute("DELETE FROM facts")
            self._file.execute("DELETE FROM pictures")
            self._file.execute("DELETE FROM parts")
            self._file.execute("INSERT INTO facts VALUES ('fingerprint', ?)", (fingerprint,))

    def checkpoint(self, position: Position, sizes: dict[str, int]) -> None:
        """Make everything since the last one count, durably."""
        facts = [("position", json.dumps(asdict(position))), ("sizes", json.dumps(sizes))]
        with self._told():
            self._file.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", facts)
            self._file.execute("COMMIT")
            self._file.execute("BEGIN IMMEDIATE")

    def find(self, key: str) -> PictureRecord | None:
        query = "SELECT image_id, split, state, digest FROM pictures WHERE key = ?"
        with self._told():
            found = self._file.execute(query, (_storable(key),)).fetchone()
        return None if found is None else PictureRecord(*found)

    def record(self, key: str, picture: PictureRecord) -> None:
        row = (_storable(key), picture.image_id, picture.split, picture.state, picture.digest)
        with self._told():
            self._file.execute("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?, ?)", row)

    def mark(self, part: int, mark: str) -> None:
        """Keep what tells whether a part has changed."""
        with self._told():
            self._file.execute("INSERT OR REPLACE INTO parts VALUES (?, ?)", (part, mark))

    def mark_of(self, part: int) -> str:
        with self._told():
            found = self._file.execute("SELECT mark FROM parts WHERE number = ?", (part,)).fetchone()
        return "" if found is None else str(found[0])

    def removed(self) -> Iterator[tuple[int, str, str]]:
        """(id, name, split) of pictures that an earlier import had and this one has not, by id."""
        query = "SELECT image_id, key, split FROM pictures WHERE split IS NOT NULL AND state IN (?, ?) ORDER BY image_id"
        with self._told():
            for image_id, key, split in self._file.execute(query, (KNOWN, BAD)):
                yield image_id, key.decode("utf-8", "surrogatepass"), split

    def forget_doubtful_ids(self) -> None:
        """Of pictures that are elsewhere: ids that another picture has too are not kept."""
        taken = "SELECT image_id FROM pictures GROUP BY image_id HAVING COUNT(*) > 1"
        with self._told():
            self._file.execute(
                f"DELETE FROM pictures WHERE state = ? AND image_id IN ({taken})", (ELSEWHERE,)
            )

    def require_distinct_ids(self, describe: Callable[[int], str]) -> None:
        """DataError when two pictures have one id; `describe` says where it was read."""
        query = "SELECT image_id FROM pictures GROUP BY image_id HAVING COUNT(*) > 1 LIMIT 1"
        with self._told():
            found = self._file.execute(query).fetchone()
        if found is not None:
            raise DataError(describe(found[0]))


def _storable(key: str) -> bytes:
    """SQLite's texts hold no lone surrogates, which file names that are not UTF-8 have in Python."""
    return key.encode("utf-8", "surrogatepass")
