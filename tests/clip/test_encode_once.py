import pytest
import torch
from torch import nn

from cn_clip.clip.encode_once import distinct_ids, distinct_rows, is_repeatable
from cn_clip.clip.model import build_model


def test_rows_that_come_again() -> None:
    tokens = torch.tensor([[7, 8, 0], [1, 2, 3], [7, 8, 0], [7, 8, 9], [1, 2, 3]])
    found = distinct_rows(tokens)
    assert found.first_U.tolist() == [0, 1, 3]
    assert found.rows_B.tolist() == [0, 1, 0, 2, 1]
    assert torch.equal(tokens[found.first_U][found.rows_B], tokens)
    assert found.saves


def test_ids_that_come_again() -> None:
    found = distinct_ids(torch.tensor([30, -1, 30, 5, -1, 30]))
    assert (found.first_U.tolist(), found.rows_B.tolist()) == ([0, 1, 3], [0, 1, 0, 2, 1, 0])


def test_nothing_comes_again() -> None:
    found = distinct_ids(torch.tensor([9, 3, 5]))
    assert not found.saves
    assert found.first_U.tolist() == found.rows_B.tolist() == [0, 1, 2]


def test_no_rows() -> None:
    assert distinct_ids(torch.tensor([], dtype=torch.int64)).first_U.tolist() == []


@pytest.mark.parametrize("image", ["tiny-vit", "tiny-resnet"])
def test_which_towers_make_one_feature_of_one_input(image: str) -> None:
    model = build_model(image, "tiny-bert")
    visual, bert = (module for name, module in model.named_children())
    model.train()
    assert is_repeatable(visual) == (image == "tiny-vit"), "BatchNorm goes by the batch"
    assert not is_repeatable(visual, mask_ratio=0.5)
    assert not is_repeatable(bert)
    for module in bert.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert is_repeatable(bert)
    model.eval()
    assert is_repeatable(visual, mask_ratio=0.5) and is_repeatable(bert)
