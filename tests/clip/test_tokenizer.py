from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cn_clip.clip import tokenizer
from cn_clip.clip.bert_tokenizer import FullTokenizer
from cn_clip.clip.tokenizer import CaptionTokenizer, count_truncated, split_word, tokenize_captions
from cn_clip.errors import ConfigError, DataError

CLS, SEP, UNK = 101, 102, 100


def pieces(text: str) -> list[str]:
    return FullTokenizer().tokenize(text)


def test_ids_are_framed_and_padded() -> None:
    ids = tokenize_captions(["小猫", ""], context_length=6)
    assert ids.dtype == torch.int64
    assert ids.tolist() == [[CLS, 2207, 4344, SEP, 0, 0], [CLS, SEP, 0, 0, 0, 0]]


def test_long_captions_lose_their_end_and_are_counted() -> None:
    texts = ["猫" * 50, "猫" * 51, "猫"]
    ids = tokenize_captions(texts)
    assert ids.shape == (3, 52)
    assert ids[0].tolist() == ids[1].tolist() == [CLS, *[4344] * 50, SEP]
    assert count_truncated(texts) == 1
    assert count_truncated(texts, context_length=53) == 0


def test_no_captions_are_no_rows() -> None:
    assert tokenize_captions([], context_length=7).shape == (0, 7)


def test_shortest_context_holds_the_frame_alone() -> None:
    assert tokenize_captions(["猫"], context_length=2).tolist() == [[CLS, SEP]]
    with pytest.raises(ConfigError, match="context_length is 1"):
        tokenize_captions(["猫"], context_length=1)


def test_caption_that_is_no_text_is_named() -> None:
    with pytest.raises(DataError, match="a caption is 5, a int"):
        tokenize_captions(["猫", 5])  # type: ignore[list-item]  # the mistake under test


def test_one_text_is_not_taken_for_a_list_of_characters() -> None:
    with pytest.raises(DataError, match="give a list"):
        tokenize_captions("小猫")


def test_rows_are_their_own_memory() -> None:
    ids = tokenize_captions(["猫"])
    ids[0, 1] = 7
    assert tokenize_captions(["猫"])[0, 1] == 4344


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Café NAÏVE", ["cafe", "na", "##ive"]),  # lower case, accents off
        ("一只cat站", ["一", "只", "cat", "站"]),  # ideographs stand alone
        ("a$b，c", ["a", "$", "b", "，", "c"]),  # ASCII symbols and Unicode punctuation split
        ("a\0b\u200dc\ufffdd", ["abc", "##d"]),  # control and format characters vanish
        ("a\tb\u3000c\u2028d", ["a", "b", "c", "d"]),
        ("Σ ΑΣ", ["σ", "α", "##ς"]),  # a capital sigma at a word's end has another small letter
        ("“猫”", ["[UNK]", "猫", "[UNK]"]),
        ("x" * 201, ["[UNK]"]),
        ("\ud800", ["[UNK]"]),  # half a surrogate pair, as broken JSON gives it
    ],
)
def test_pieces(text: str, expected: list[str]) -> None:
    assert pieces(text) == expected


def test_split_word_takes_the_longest_piece_first() -> None:
    vocab = {"un": 0, "##aff": 1, "##able": 2, "##a": 3, "u": 4}
    assert split_word("unaffable", vocab) == ["un", "##aff", "##able"]
    assert split_word("unz", vocab) == ["[UNK]"]


def test_word_table_starts_again_when_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "MAX_KNOWN_WORDS", 3)
    words = CaptionTokenizer()
    first = words.encode(["a b c d e f g"], 9)
    assert len(words._word_ids) <= 3
    assert torch.equal(words.encode(["a b c d e f g"], 9), first)


def test_pickles_without_its_tables() -> None:
    full = FullTokenizer()
    full.tokenize("小猫")
    assert len(pickle.dumps(full)) < 1000
    assert pickle.loads(pickle.dumps(full)).tokenize("小猫") == ["小", "猫"]


def test_import_reads_nothing_and_starts_no_thread(tmp_path: Path) -> None:
    code = (
        "import sys, threading; from cn_clip.clip import tokenizer, bert_tokenizer\n"
        "full = bert_tokenizer.FullTokenizer('/nowhere/vocab.txt')\n"
        "assert threading.active_count() == 1 and 'tokenizers' not in sys.modules"
    )
    root = str(Path(__file__).parents[2])
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": root}, cwd=tmp_path
    )


def test_missing_vocabulary_is_named() -> None:
    with pytest.raises(DataError, match="/nowhere/vocab.txt"):
        FullTokenizer("/nowhere/vocab.txt").tokenize("猫")


def test_full_tokenizer_goes_there_and_back() -> None:
    full = FullTokenizer()
    tokens = full.tokenize("A watermelon, it's 红色!")
    ids = full.convert_tokens_to_ids(tokens)
    assert full.convert_ids_to_tokens(ids) == tokens
    assert full.convert_tokens_to_string(tokens) == "a watermelon, it's 红 色!"
    assert (
        full.convert_tokens_to_string(tokens, clean_up_tokenization_spaces=False)
        == "a watermelon , it ' s 红 色 !"
    )
    assert full.vocab_size() == len(full.vocab) == len(full.inv_vocab) == 21128
    assert full.vocab["[CLS]"] == CLS and full.inv_vocab[SEP] == "[SEP]"


def test_case_can_be_kept() -> None:
    assert FullTokenizer(do_lower_case=False).tokenize("Cat cat") == ["[UNK]", "cat"]


def test_unknown_piece_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        FullTokenizer().convert_tokens_to_ids(["not a piece"])
