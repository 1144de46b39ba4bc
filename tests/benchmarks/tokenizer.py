"""Captions tokenised per CPU second: ours, the reference's and the Rust library's, in one run.

    python tests/benchmarks/tokenizer.py --reference DIR    # DIR: pip install --no-deps --target DIR cn-clip==1.6.0 six

The captions are made of words of the vocabulary, 5 to 25 characters each, a fifth with digits and Latin words.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core each
sys.path[0] = str(Path(__file__).parents[2])

import torch  # noqa: E402

from cn_clip.clip.tokenizer import VOCAB_PATH, read_vocab, tokenize_captions  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reference", default=os.environ.get("CN_CLIP_REFERENCE_DIR"))
    parser.add_argument("--captions", type=int, default=50_000)
    parser.add_argument("--repeat", type=int, default=3)
    flags = parser.parse_args()
    torch.set_num_threads(1)
    captions = make_captions(flags.captions)
    ways = {"cn_clip": tokenize_captions, "tokenizers (Rust)": rust_tokenizer()}
    if flags.reference:
        ways["reference"] = reference_tokenizer(Path(flags.reference))
    rates = {name: best_rate(tokenise, captions, flags.repeat) for name, tokenise in ways.items()}
    for name, rate in rates.items():
        print(f"{name:20} {rate:10,.0f} captions/s   {rates['cn_clip'] / rate:6.2f} x")


def make_captions(number: int) -> list[str]:
    rng = random.Random(0)
    words = [word for word in read_vocab(VOCAB_PATH) if len(word) == 1 and "\u4e00" <= word <= "\u9fff"]
    latin = [word for word in read_vocab(VOCAB_PATH) if word.isascii() and word.isalnum()]
    captions = []
    for i in range(number):
        characters = rng.choices(words, k=rng.randint(5, 25))
        if i % 5 == 0:
            characters.insert(rng.randrange(5), f" {rng.choice(latin)}，")
        captions.append("".join(characters))
    return captions


def best_rate(tokenise: Callable[[list[str]], object], captions: list[str], repeat: int) -> float:
    seconds = []
    for _ in range(repeat):
        started = time.process_time()
        for first in range(0, len(captions), 256):
            tokenise(captions[first : first + 256])
        seconds.append(time.process_time() - started)
    return len(captions) / min(seconds)


def rust_tokenizer() -> Callable[[list[str]], object]:
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer(str(VOCAB_PATH), lowercase=True)
    tokenizer.enable_truncation(52)
    tokenizer.enable_padding(length=52)
    return lambda texts: torch.tensor([row.ids for row in tokenizer._tokenizer.encode_batch_fast(texts)])


def reference_tokenizer(folder: Path) -> Callable[[list[str]], object]:
    # the one file with the tokenizer, under another name since the packages share theirs; and the reference's own loop
    sys.path.append(str(folder))  # for `six`
    path = folder / "cn_clip" / "clip" / "bert_tokenizer.py"
    spec = importlib.util.spec_from_file_location("reference_bert_tokenizer", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tokenizer = module.FullTokenizer()

    def tokenise(texts: list[str]) -> torch.Tensor:
        rows = torch.zeros(len(texts), 52, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            ids = [101, *tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))[:50], 102]
            row[: len(ids)] = torch.tensor(ids)
        return rows

    return tokenise


if __name__ == "__main__":
    main()
