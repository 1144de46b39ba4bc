from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cn_clip.clip.tokenizer import caption_ids
from cn_clip.clip.tower_tokenizer import TowerTokenizer
from cn_clip.data.batches import Collate, Pair, PairBatch, stack_pictures, trim_padding
from cn_clip.data.captions import caption_key
from cn_clip.data.pairs import BadPair

TOKENIZER = TowerTokenizer(context_length=52)
CAPTIONS = ["红色的花", "一只猫", "一只正在睡觉的猫"]


def pairs() -> list[Pair]:
    return [
        Pair(
            torch.full((3, 4, 4), number, dtype=torch.uint8),
            caption,
            10 + number,
            20 + number,
            pair_id=40 + number,
            position=30 + number,
        )
        for number, caption in enumerate(CAPTIONS)
    ]


def test_pictures_lie_in_one_order_of_memory_whatever_the_first_one_has() -> None:
    rng = torch.Generator().manual_seed(0)
    planes = [torch.randint(0, 256, (3, 5, 4), dtype=torch.uint8, generator=rng) for _ in range(3)]
    pixels = [plane.permute(1, 2, 0).contiguous().permute(2, 0, 1) for plane in planes]
    for given in (planes, pixels, [pixels[0], *planes[1:]], [planes[0], *pixels[1:]]):
        batch = stack_pictures(given)
        assert torch.equal(batch, torch.stack(planes))
        assert batch[0].stride() == pixels[0].stride()
    floats = [plane.float() for plane in planes]
    assert stack_pictures(floats)[0].stride() == floats[0].stride()


class Stacks(Dataset[Tensor]):
    """Pictures stacked in the process that asks."""

    def __init__(self, batches: list[list[Tensor]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Tensor:
        return stack_pictures(self.batches[number])


def test_workers_stack_the_same() -> None:
    rng = torch.Generator().manual_seed(0)
    planes = [torch.randint(0, 256, (3, 5, 4), dtype=torch.uint8, generator=rng) for _ in range(3)]
    pixels = [plane.permute(1, 2, 0).contiguous().permute(2, 0, 1) for plane in planes]
    floats = [torch.rand(3, 5, 4, generator=rng) for _ in range(3)]
    batches = [planes, pixels, floats, [pixels[0], *planes[1:]], [planes[0], *pixels[1:]], pixels[:1]]
    stacked = list(DataLoader(Stacks(batches), batch_size=None, num_workers=2))
    for given, batch in zip(batches, stacked, strict=True):
        here = stack_pictures(given)
        assert torch.equal(batch, here) and batch.dtype == here.dtype and batch.stride() == here.stride()


def test_a_batch_is_its_pairs_in_order_with_captions_cut_to_the_longest() -> None:
    batch = Collate(TOKENIZER)(pairs())
    assert isinstance(batch, PairBatch) and len(batch) == 3
    whole = TOKENIZER(CAPTIONS)
    length = int((whole != 0).sum(1).max())
    assert torch.equal(batch.tokens_BL, whole[:, :length]) and not whole[:, length:].any()
    assert batch.images_BCHW[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert batch.image_ids_B.tolist() == [10, 11, 12]
    assert batch.text_ids_B.tolist() == [20, 21, 22]
    assert batch.pair_ids_B.tolist() == [40, 41, 42]
    assert batch.positions_B.tolist() == [30, 31, 32]
    assert batch.caption_keys_B.tolist() == [caption_key(caption) for caption in CAPTIONS]


def test_trimming_knows_the_tower_s_own_padding() -> None:
    tokens = torch.tensor([[5, 0, 1, 1], [5, 6, 7, 1]])
    assert trim_padding(tokens, 1).tolist() == [[5, 0, 1], [5, 6, 7]]
    assert trim_padding(tokens, 9).shape == (2, 4)


def test_one_bad_pair_makes_a_bad_batch_with_its_reason() -> None:
    first, *others = pairs()
    assert Collate(TOKENIZER)([first, BadPair("picture 3 is gone"), *others]) == BadPair("picture 3 is gone")


@dataclass(frozen=True)
class NoTokenizing(TowerTokenizer):
    """Takes cached ids only."""

    def __call__(self, captions: Sequence[str]) -> Tensor:
        raise AssertionError("a caption was tokenised")


def test_cached_ids_are_taken_and_nothing_is_tokenised() -> None:
    cached = [replace(pair, token_ids=np.array(caption_ids(pair.caption), np.uint16)) for pair in pairs()]
    for context_length in (52, 5):
        from_ids = Collate(NoTokenizing(context_length))(cached)
        from_text = Collate(TowerTokenizer(context_length))(pairs())
        assert isinstance(from_ids, PairBatch) and isinstance(from_text, PairBatch)
        assert torch.equal(from_ids.tokens_BL, from_text.tokens_BL)
        assert from_ids.tokens_BL.dtype == from_text.tokens_BL.dtype


def test_one_pair_without_cached_ids_has_the_batch_tokenised() -> None:
    first, *others = pairs()
    mixed = [replace(first, token_ids=np.array([1, 2], np.uint16)), *others]
    batch = Collate(TOKENIZER)(mixed)
    assert isinstance(batch, PairBatch)
    assert batch.tokens_BL[0, 1] != 1


def test_moving_a_batch_keeps_what_is_no_tensor() -> None:
    batch = Collate(TOKENIZER)([replace(pairs()[0], replaced=("picture 1 is gone",))])
    assert isinstance(batch, PairBatch)
    assert batch.to(torch.device("cpu")).replaced == ("picture 1 is gone",)
