from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from cn_clip.clip.tokenizer import tokenize_captions
from cn_clip.data.batches import BadPair, Collate, Pair, PairBatch, caption_key, trim_padding

ROOT = Path(__file__).resolve().parents[2]
CAPTIONS = ["红色的花", "一只猫", "一只正在睡觉的猫"]


def pairs() -> list[Pair]:
    return [
        Pair(torch.full((3, 4, 4), number, dtype=torch.uint8), caption, 10 + number, 20 + number, 30 + number)
        for number, caption in enumerate(CAPTIONS)
    ]


def test_a_batch_is_its_pairs_in_order_with_captions_cut_to_the_longest() -> None:
    batch = Collate(tokenize_captions)(pairs())
    assert isinstance(batch, PairBatch) and len(batch) == 3
    whole = tokenize_captions(CAPTIONS)
    length = int((whole != 0).sum(1).max())
    assert torch.equal(batch.tokens_BL, whole[:, :length]) and not whole[:, length:].any()
    assert batch.images_BCHW[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert batch.image_ids_B.tolist() == [10, 11, 12]
    assert batch.text_ids_B.tolist() == [20, 21, 22]
    assert batch.positions_B.tolist() == [30, 31, 32]
    assert batch.caption_keys_B.tolist() == [caption_key(caption) for caption in CAPTIONS]


def test_trimming_knows_the_tower_s_own_padding() -> None:
    tokens = torch.tensor([[5, 0, 1, 1], [5, 6, 7, 1]])
    assert trim_padding(tokens, 1).tolist() == [[5, 0, 1], [5, 6, 7]]
    assert trim_padding(tokens, 9).shape == (2, 4)


def test_one_bad_pair_makes_a_bad_batch_with_its_reason() -> None:
    first, *others = pairs()
    assert Collate(tokenize_captions)([first, BadPair("picture 3 is gone"), *others]) == BadPair(
        "picture 3 is gone"
    )


def test_keys_of_captions_agree_between_processes_and_fit_int64() -> None:
    """Ranks compare them, and Python's own hash differs from process to process."""
    code = "from cn_clip.data.batches import caption_key; print(*map(caption_key, '一只猫 x'.split()), caption_key('\\ud83d'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    keys = [caption_key(caption) for caption in ("一只猫", "x", "\ud83d")]
    assert done.stdout.split() == [str(key) for key in keys]
    assert len(set(keys)) == 3
    assert torch.tensor(keys).dtype is torch.int64
