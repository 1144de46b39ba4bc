"""`FullTokenizer`: the tokenizer object under its public name (contract of `cn_clip.clip`), over `clip.tokenizer`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from cn_clip.clip.tokenizer import VOCAB_PATH, CaptionTokenizer

CONTRACTIONS = ("n't", "'m", "'s", "'ve", "'re")


class FullTokenizer:
    """Text to WordPieces to ids and back. Nothing is read before the first use."""

    def __init__(self, vocab_file: str | Path = VOCAB_PATH, do_lower_case: bool = True) -> None:
        self._tokenizer = CaptionTokenizer(vocab_file, do_lower_case)

    def __reduce__(self) -> tuple[type[FullTokenizer], tuple[Path, bool]]:
        return type(self), (self._tokenizer.vocab_path, self._tokenizer.lower_case)

    @property
    def vocab(self) -> dict[str, int]:
        """Piece to id."""
        return self._tokenizer.vocab

    @cached_property
    def inv_vocab(self) -> dict[int, str]:
        """Id to piece."""
        return {number: piece for piece, number in self.vocab.items()}

    def tokenize(self, text: str | bytes) -> list[str]:
        """WordPieces of a text, without [CLS] and [SEP]; bytes are read as UTF-8."""
        if isinstance(text, bytes):
            text = text.decode("utf-8", "ignore")
        return self._tokenizer.pieces(text)

    def convert_tokens_to_ids(self, tokens: Iterable[str]) -> list[int]:
        """Ids of pieces; KeyError for one that is not in the vocabulary."""
        return [self.vocab[token] for token in tokens]

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        """Pieces of ids; KeyError for a number beyond the vocabulary."""
        return [self.inv_vocab[int(number)] for number in ids]

    @staticmethod
    def convert_tokens_to_string(tokens: Iterable[str], clean_up_tokenization_spaces: bool = True) -> str:
        """Pieces joined to words; on request without the spaces that tokenising put before English punctuation."""
        text = " ".join(tokens).replace(" ##", "").strip()
        if not clean_up_tokenization_spaces:
            return text
        for mark in ".?!,":
            text = text.replace(f" {mark}", mark)
        text = text.replace(" ' ", "'")
        for contraction in CONTRACTIONS:
            text = text.replace(f" {contraction}", contraction)
        return text

    def vocab_size(self) -> int:
        """Number of pieces, 21128 for the default vocabulary."""
        return len(self.vocab)
