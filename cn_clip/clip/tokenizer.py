"""Captions to token ids: the uncased Chinese BERT WordPiece of the pretrained text towers.

Ids equal the reference's on any text and any Python: the Unicode tables used are Python's own, as there. A caption is
rewritten character by character with `str.translate`, so that its words stand between spaces, and each word's ids come
from a table that fills as words are met. Both steps run in C for what has been seen before: 9 times the reference's
rate and 6 times that of the Rust `tokenizers` library on Chinese captions (`tests/benchmarks/tokenizer.py`). There are no
threads, so forked loader workers are safe.

Shapes: n captions, L context length.
"""

from __future__ import annotations

import hashlib
import unicodedata
from array import array
from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cn_clip.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

VOCAB_PATH = Path(__file__).with_name("vocab.txt")
UNKNOWN, START, END = "[UNK]", "[CLS]", "[SEP]"
CONTEXT_LENGTH = 52
"""Tokens of a caption in every published model, [CLS] and [SEP] included."""
MAX_WORD_CHARACTERS = 200
"""A longer word is one [UNK] (BERT, arXiv:1810.04805, released code)."""
MAX_KNOWN_WORDS = 200_000
"""The word table starts again beyond this, so that a long run over rare words keeps its memory."""
ID_BYTES = 8
"""Of one int64 token id."""
RULES = 1
"""Goes up when any text gets other ids than before, so that ids cached in a store are not taken for today's."""
CJK_RANGES = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)
"""Ideographs, each a word of its own; kana and hangul are not (as in BERT's released code)."""


def tokenize_captions(texts: Sequence[str], context_length: int = CONTEXT_LENGTH) -> Tensor:
    """int64 ids [n, L]: [CLS], the caption's ids, [SEP], then zeros; a longer caption loses its end."""
    return default_tokenizer().encode(texts, context_length)


def count_truncated(texts: Iterable[str], context_length: int = CONTEXT_LENGTH) -> int:
    """Number of captions that lose tokens at this context length."""
    return default_tokenizer().count_truncated(texts, context_length)


def caption_ids(text: str) -> list[int]:
    """Ids of a prepared caption without [CLS] and [SEP], however many they are: what a store caches."""
    return default_tokenizer().ids(text)


def tokenizer_fingerprint() -> str:
    """Names what `caption_ids` depends on: equal names give equal ids for any text."""
    return default_tokenizer().fingerprint


@cache
def default_tokenizer() -> CaptionTokenizer:
    """The tokenizer of the published models; its vocabulary is read when the first caption is."""
    return CaptionTokenizer()


class CaptionTokenizer:
    """WordPiece over one vocabulary file. Pickles as its two arguments, so a worker starts with fresh tables."""

    def __init__(self, vocab_path: str | Path = VOCAB_PATH, lower_case: bool = True) -> None:
        self.vocab_path = Path(vocab_path)
        self.lower_case = lower_case

    def __reduce__(self) -> tuple[type[CaptionTokenizer], tuple[Path, bool]]:
        return type(self), (self.vocab_path, self.lower_case)

    @cached_property
    def vocab(self) -> dict[str, int]:
        """Piece to id; a piece inside a word is written with `##` before it."""
        return read_vocab(self.vocab_path)

    @cached_property
    def fingerprint(self) -> str:
        """Of the vocabulary, the rules, and the Unicode tables of this Python."""
        try:
            vocab = hashlib.sha256(self.vocab_path.read_bytes()).hexdigest()[:16]
        except OSError as error:
            raise DataError(f"cannot read the vocabulary {self.vocab_path}: {error.strerror}") from error
        case = "lower" if self.lower_case else "cased"
        return f"wordpiece-{RULES} {case} vocabulary {vocab} unicode {unicodedata.unidata_version}"

    @cached_property
    def _characters(self) -> _Characters:
        return _Characters(self.lower_case)

    @cached_property
    def _word_ids(self) -> _WordIds:
        return _WordIds(self.vocab)

    def words(self, text: str) -> list[str]:
        """Words of a caption: lower case, without accents; ideographs and punctuation marks stand alone."""
        if not isinstance(text, str):
            raise DataError(f"a caption is {text!r}, a {type(text).__name__}: give text")
        try:
            return text.translate(self._characters).split()
        except _NeighboursMatterError:
            return _words_in_context(text, self.lower_case)

    def pieces(self, text: str) -> list[str]:
        """Vocabulary entries of a caption, as many as it has."""
        return [piece for word in self.words(text) for piece in split_word(word, self.vocab)]

    def ids(self, text: str) -> list[int]:
        """Ids of a caption without [CLS] and [SEP], not cut."""
        return array("q", self._ids_as_bytes(text)).tolist()

    def encode(self, texts: Sequence[str], context_length: int) -> Tensor:
        """int64 ids [n, L]; see `tokenize_captions`."""
        if isinstance(texts, str):  # would be taken for a list of characters
            raise DataError(f"captions are the single text {texts!r}: give a list of texts")
        return self._rows(map(self._ids_as_bytes, texts), context_length)

    def encode_ids(self, captions: Sequence[NDArray[np.integer]], context_length: int) -> Tensor:
        """int64 ids [n, L] from what `ids` gave for each caption: equal to `encode` of their texts."""
        return self._rows((ids.astype(np.int64).tobytes() for ids in captions), context_length)

    def _rows(self, captions: Iterable[bytes], context_length: int) -> Tensor:
        # here, because who only wants ids, as the LMDB build does, should not wait for torch
        import torch

        _check_context_length(context_length)
        start, end = _id_bytes([self.vocab[START]]), _id_bytes([self.vocab[END]])
        room = (context_length - 2) * ID_BYTES
        rows = bytearray()
        for ids in captions:
            row = start + ids[:room] + end
            rows += row.ljust(context_length * ID_BYTES, b"\0")  # [PAD] is id 0
        if not rows:  # frombuffer refuses an empty buffer
            return torch.zeros(0, context_length, dtype=torch.int64)
        return torch.frombuffer(rows, dtype=torch.int64).view(-1, context_length)

    def count_truncated(self, texts: Iterable[str], context_length: int) -> int:
        """See the function of that name."""
        _check_context_length(context_length)
        room = (context_length - 2) * ID_BYTES
        return sum(len(self._ids_as_bytes(text)) > room for text in texts)

    def _ids_as_bytes(self, text: str) -> bytes:
        # packed ids join and cut without one Python number per token
        return b"".join(map(self._word_ids.__getitem__, self.words(text)))


def _check_context_length(context_length: int) -> None:
    if context_length < 2:
        raise ConfigError(f"context_length is {context_length}: [CLS] and [SEP] alone take 2")


@cache
def read_vocab(path: Path) -> dict[str, int]:
    """Piece to line number, from 0."""
    try:
        with path.open(encoding="utf-8") as lines:
            return {line.strip(): number for number, line in enumerate(lines)}
    except OSError as error:
        raise DataError(f"cannot read the vocabulary {path}: {error.strerror}") from error


def split_word(word: str, vocab: dict[str, int]) -> list[str]:
    """Longest known piece first, again and again; [UNK] alone when some part is unknown."""
    if len(word) > MAX_WORD_CHARACTERS:
        return [UNKNOWN]
    pieces: list[str] = []
    start = 0
    while start < len(word):
        inside = "##" if start else ""
        for end in range(len(word), start, -1):
            piece = inside + word[start:end]
            if piece in vocab:
                break
        else:
            return [UNKNOWN]
        pieces.append(piece)
        start = end
    return pieces


class _WordIds(dict[str, bytes]):
    """Word to its packed ids, filled as words are met."""

    def __init__(self, vocab: dict[str, int]) -> None:
        self._vocab = vocab

    def __missing__(self, word: str) -> bytes:
        if len(self) >= MAX_KNOWN_WORDS:
            self.clear()
        packed = self[word] = _id_bytes([self._vocab[piece] for piece in split_word(word, self._vocab)])
        return packed


def _id_bytes(ids: list[int]) -> bytes:
    return array("q", ids).tobytes()


class _NeighboursMatterError(Exception):
    """A character whose rewriting depends on its neighbours. Not a LookupError: `translate` would swallow that."""


class _Characters(dict[int, str]):
    """Code point to what takes its place, filled as characters are met; for `str.translate`."""

    def __init__(self, lower_case: bool) -> None:
        self._lower_case = lower_case

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if self._lower_case and _depends_on_neighbours(character):
            raise _NeighboursMatterError
        text = _clean(character)
        if self._lower_case and not text.isspace():
            text = _without_accents(text.lower())
        text = "".join(_spaced_mark(part) for part in text)
        result = self[code] = f" {text} " if _is_ideograph(character) else text
        return result


def _depends_on_neighbours(character: str) -> bool:
    # capital sigma has another small letter at a word's end; marks that are kept (not Mn) may change places in NFD
    return character == "Σ" or any(
        unicodedata.combining(part) and unicodedata.category(part) != "Mn"
        for part in unicodedata.normalize("NFD", character.lower())
    )


def _words_in_context(text: str, lower_case: bool) -> list[str]:
    """Words of a caption with the rules applied to whole words, in BERT's order."""
    cleaned = "".join(map(_clean, text))
    words = "".join(f" {c} " if _is_ideograph(c) else c for c in cleaned).split()
    if lower_case:
        words = [_without_accents(word.lower()) for word in words]
    return " ".join("".join(map(_spaced_mark, word)) for word in words).split()


def _clean(character: str) -> str:
    """Nothing for control and format characters, a space for white space, else the character."""
    if character in "\t\n\r":
        return " "
    if character in "\0\ufffd" or unicodedata.category(character) in ("Cc", "Cf"):
        return ""
    return " " if character.isspace() else character


def _without_accents(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")


def _spaced_mark(character: str) -> str:
    # ASCII symbols such as $ and ^ count as punctuation, other symbols do not (BERT's released code)
    is_ascii_mark = (
        character.isascii() and character.isprintable() and not character.isalnum() and character != " "
    )
    is_mark = is_ascii_mark or unicodedata.category(character).startswith("P")
    return f" {character} " if is_mark else character


def _is_ideograph(character: str) -> bool:
    code = ord(character)
    return any(first <= code <= last for first, last in CJK_RANGES)
