import pytest
import torch
from torch import Tensor

from cn_clip.clip.length_groups import encode_in_groups

LENGTHS = [5, 2, 9, 3, 9, 1, 7]


@pytest.fixture
def tokens() -> Tensor:
    tokens = torch.arange(1, 85).view(7, 12)
    return tokens * (torch.arange(12) < torch.tensor(LENGTHS)[:, None])


class Encoder:
    """Sums each caption, and notes the shapes it was given."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, int]] = []

    def __call__(self, tokens: Tensor, keys: Tensor | None) -> Tensor:
        self.shapes.append((tokens.shape[0], tokens.shape[1]))
        own = tokens.new_zeros(len(tokens)) if keys is None else keys
        return torch.stack([tokens.sum(1), own], 1)


@pytest.mark.parametrize("num_groups", [1, 2, 3, 7, 10])
def test_features_come_back_in_order_with_their_keys(tokens: Tensor, num_groups: int) -> None:
    encode, keys = Encoder(), torch.arange(7) * 10
    found = encode_in_groups(encode, tokens, keys, num_groups=num_groups, pad_id=0)
    assert torch.equal(found, torch.stack([tokens.sum(1), keys], 1))
    assert len(encode.shapes) == num_groups, "as many calls on every rank, whatever its captions"


def test_each_group_is_as_long_as_its_longest(tokens: Tensor) -> None:
    encode = Encoder()
    encode_in_groups(encode, tokens, None, num_groups=3, pad_id=0)
    assert encode.shapes == [(3, 3), (2, 7), (2, 9)]


def test_the_padding_id_inside_a_caption_does_not_shorten_it(tokens: Tensor) -> None:
    encode = Encoder()
    tokens[2, 4] = 0
    encode_in_groups(encode, tokens, None, num_groups=2, pad_id=0)
    assert encode.shapes[-1] == (3, 9)


def test_captions_of_nothing(tokens: Tensor) -> None:
    found = encode_in_groups(Encoder(), torch.zeros_like(tokens), None, num_groups=2, pad_id=0)
    assert found.shape == (7, 2)
