"""Our token ids against those of the reference's `tokenize`, on any text."""

from __future__ import annotations

import contextlib
import io
import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cn_clip.clip.bert_tokenizer import FullTokenizer
from cn_clip.clip.tokenizer import tokenize_captions

RunReference = Callable[..., subprocess.CompletedProcess[str]]

TOKENIZE = """
import json, sys
import torch
from cn_clip.clip import tokenize
task = json.load(open(sys.argv[1]))
torch.save([tokenize(task["texts"], context_length=length) for length in task["lengths"]], sys.argv[2])
"""

# digests, since the pieces of all code points together are 100 MB
SWEEP = """
import hashlib, sys
from cn_clip.clip.bert_tokenizer import FullTokenizer
tokenizer = FullTokenizer()
for first in range(0, 0x110000, 0x1000):
    digest = hashlib.sha256()
    for code in range(first, first + 0x1000):
        character = chr(code)
        text = "a" + character + "B" + character + "中" + character + "\\u0301 " + character
        digest.update(repr(tokenizer.tokenize(text)).encode("utf-8", "surrogatepass"))
    print(first, digest.hexdigest())
"""

CONVERT = """
import json, sys
from cn_clip.clip.bert_tokenizer import FullTokenizer
lower, cased = FullTokenizer(), FullTokenizer(do_lower_case=False)
texts = json.load(open(sys.argv[1]))
answer = []
for text in texts:
    tokens = lower.tokenize(text)
    ids = lower.convert_tokens_to_ids(tokens)
    answer.append([tokens, ids, lower.convert_ids_to_tokens(ids), lower.convert_tokens_to_string(tokens),
                   lower.convert_tokens_to_string(tokens, False), cased.tokenize(text), lower.vocab_size()])
json.dump(answer, open(sys.argv[2], "w"))
"""

CORPUS = [
    "一只可爱的小猫坐在红色的沙发上",
    "“弯引号”‘单引号’——破折号……省略号",
    "「直角」『引号』《书名》〈尖〉【方】",
    "Café naïve Ångström ÜBER façade Ħ ß ẞ İstanbul",
    "👩‍👩‍👧‍👦 家庭 👍🏽 emoji ☃️ 1️⃣",
    "𠀀𪚥𫝀𬺰㐀䶿 rare 龘靐齉 𱍐",
    "가나다 힣 조선글 ひらがな カタカナ ｶﾀｶﾅ",
    "Σ ΣΑΣ ὈΔΥΣΣΕΎΣ Σ. aΣ' ςσ",
    "private \ue000\uf8ff use \U000f0000\U0010fffd",
    "unassigned \u0378\u0380\U000e0080\uffff",
    "tabs\tand\nlines\r\x0b\x0c\x1c\x1f\x85 controls\x00\x01\x7f\u200b\u200e\ufeff\xad",
    "spaces\u00a0\u1680\u2000\u2028\u2029\u202f\u205f\u3000end",
    "punctuation $%^`~|<>=+ ،؛؟ ։ ।॥ ⁇ ﹏ ＄％＾ ¿¡ §¶ € ° ·",
    "greek question\u037e and tilde\u1fef kelvin \u212a angstrom \u212b",
    "combining a\u0301\u0323 ạ́ \u0344 \u1d165\U0001d165\U0001d16e 가\u302e\u302f",
    "compatibility 豈更車 丽 ﬁ ﬀ Ⅷ ㎏ ① ２０２４ ㈱",
    "words " + "x" * 199 + " " + "y" * 200 + " " + "z" * 201 + " " + "w" * 300 + " " + "é" * 200,
    "猫" * 60,
    "tokenization " * 40,
    "supercalifragilisticexpialidocious unaffable 中文mixed英文words2024年",
    "half \ud800 surrogate \udfff",
    "[CLS] [SEP] [PAD] [UNK] [MASK] ##ing",
    "\ufffd replacement \ufffc object",
    "",
    "   ",
]


@pytest.mark.parity
def test_mixed_corpus_at_every_length(run_reference: RunReference, tmp_path: Path) -> None:
    lengths = [2, 3, 24, 52, 77]
    task, answer = tmp_path / "task.json", tmp_path / "ids.pt"
    task.write_text(json.dumps({"texts": CORPUS, "lengths": lengths}))
    run_reference(TOKENIZE, str(task), str(answer))
    for length, theirs in zip(lengths, torch.load(answer, weights_only=True), strict=True):
        ours = tokenize_captions(CORPUS, context_length=length)
        assert ours.dtype == theirs.dtype
        for text, our_ids, their_ids in zip(CORPUS, ours.tolist(), theirs.tolist(), strict=True):
            assert our_ids == their_ids, repr(text)


@pytest.mark.parity
def test_random_strings_of_awkward_characters(run_reference: RunReference, tmp_path: Path) -> None:
    rng = random.Random(0)
    awkward = [
        *map(
            chr,
            (0x3A3, 0x345, 0x301, 0x323, 0x302E, 0x302F, 0x1D165, 0x1D16E, 0x16FF0, 0xAD, 0x27, 0x20, 0xB7),
        )
    ]
    ranges = (0x80, 0x600, 0x3000, 0x10000, 0x110000)
    texts = [
        "".join(
            rng.choice([rng.choice(awkward), chr(rng.randrange(rng.choice(ranges)))])
            for _ in range(rng.randint(1, 14))
        )
        for _ in range(5000)
    ]
    task, answer = tmp_path / "task.json", tmp_path / "ids.pt"
    task.write_text(json.dumps({"texts": texts, "lengths": [52]}))
    run_reference(TOKENIZE, str(task), str(answer))
    (theirs,) = torch.load(answer, weights_only=True)
    differ = (tokenize_captions(texts) != theirs).any(1).nonzero().flatten().tolist()
    assert [ascii(texts[i]) for i in differ] == []


@pytest.mark.parity
@pytest.mark.slow
def test_every_code_point(run_reference: RunReference) -> None:
    theirs = run_reference(SWEEP).stdout.splitlines()
    assert len(theirs) == 0x110
    assert _sweep() == theirs


def _sweep() -> list[str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(SWEEP, {})  # the same program; in this process the package is ours
    return out.getvalue().splitlines()


@pytest.mark.parity
def test_tokenizer_object(run_reference: RunReference, tmp_path: Path) -> None:
    texts, answer = tmp_path / "texts.json", tmp_path / "answer.json"
    texts.write_text(json.dumps(CORPUS))
    run_reference(CONVERT, str(texts), str(answer))
    lower, cased = FullTokenizer(), FullTokenizer(do_lower_case=False)
    for text, theirs in zip(CORPUS, json.loads(answer.read_text()), strict=True):
        tokens = lower.tokenize(text)
        ids = lower.convert_tokens_to_ids(tokens)
        ours = [
            tokens,
            ids,
            lower.convert_ids_to_tokens(ids),
            lower.convert_tokens_to_string(tokens),
            lower.convert_tokens_to_string(tokens, False),
            cased.tokenize(text),
            lower.vocab_size(),
        ]
        assert ours == theirs, repr(text)
