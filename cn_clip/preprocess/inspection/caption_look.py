"""One caption as the text tower will see it."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from cn_clip.clip.tokenizer import MAX_KNOWN_WORDS, UNKNOWN, default_tokenizer, split_word
from cn_clip.data.captions import preprocess_text

NUM_SPECIALS = 2
"""[CLS] and [SEP]."""
_SHOWN_CHARACTERS = 200
_SHOWN_LETTERS = 40  # of an unknown word
_DROPPED = {"Cc", "Cf", "Co", "Cs"}
"""Categories that the tokenizer drops, or that stand for nothing."""


@dataclass(frozen=True, slots=True)
class CaptionLook:
    num_tokens: int
    """[CLS] and [SEP] included, nothing cut."""
    unknown: tuple[str, ...]
    """Characters (or a whole word, where its characters are known but not together) that become [UNK]."""
    invisible: tuple[str, ...]
    """Characters that are dropped."""


class CaptionEye:
    """Looks at captions; remembers the pieces of words."""

    def __init__(self) -> None:
        self._tokenizer = default_tokenizer()
        self._words = _KnownWords(self._tokenizer.vocab)

    def ids(self, caption: str) -> list[int]:
        """What a store caches of this caption."""
        return self._tokenizer.ids(preprocess_text(caption))

    def look_at(self, caption: str) -> CaptionLook:
        prepared = preprocess_text(caption)
        num_tokens = NUM_SPECIALS
        unknown: tuple[str, ...] = ()
        for word in self._tokenizer.words(prepared):
            num_pieces, odd = self._words[word]
            num_tokens += num_pieces
            if odd:
                unknown += odd
        return CaptionLook(num_tokens, unknown, _invisible(caption))


class _KnownWords(dict[str, tuple[int, tuple[str, ...]]]):
    """Word to (number of pieces, what of it is unknown), filled as words are met."""

    def __init__(self, vocab: dict[str, int]) -> None:
        self._vocab = vocab

    def __missing__(self, word: str) -> tuple[int, tuple[str, ...]]:
        if len(self) >= MAX_KNOWN_WORDS:
            self.clear()
        pieces = split_word(word, self._vocab)
        odd: tuple[str, ...] = ()
        if pieces == [UNKNOWN]:
            odd = tuple(c for c in word if c not in self._vocab and f"##{c}" not in self._vocab)
            odd = odd or (word[:_SHOWN_LETTERS],)
        result = self[word] = len(pieces), odd
        return result


def _invisible(caption: str) -> tuple[str, ...]:
    if caption.isprintable() and "\ufffd" not in caption:
        return ()
    return tuple(
        c for c in caption if c not in "\t\n\r" and (c == "\ufffd" or unicodedata.category(c) in _DROPPED)
    )


def show_caption(caption: str) -> str:
    """The caption for a screen: one line, cut to 200 characters, what cannot be printed as `\\u001b`."""
    shown = "".join(map(show_character, caption[: _SHOWN_CHARACTERS + 1]))
    return shown if len(caption) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}…"


def show_character(character: str) -> str:
    if character.isprintable():
        return character
    if character.isspace():
        return " "
    return "".join(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}" for c in character)


def name_characters(characters: str) -> str:
    """`U+1F600 GRINNING FACE`, or nothing for a word."""
    if len(characters) != 1:
        return ""
    return f"U+{ord(characters):04X} {unicodedata.name(characters, '')}".strip()
