from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cn_clip.eval.retrieval import search
from cn_clip.eval.retrieval.search import top_k


def slowly(query_QE: Tensor, gallery_GE: Tensor, k: int) -> list[list[int]]:
    """The definition: float64 inner products rounded to float32, a stable sort in Python."""
    scores = (query_QE.double()[:, None] * gallery_GE.double()).sum(-1).float().tolist()
    return [sorted(range(len(row)), key=lambda place: -row[place])[:k] for row in scores]


def unit(rows: int, seed: int, width: int = 24) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, width, generator=torch.manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("block", [1, 7, 64, 32768])
@pytest.mark.parametrize("k", [1, 10, 200, 500])
def test_equals_the_definition_for_every_block(block: int, k: int) -> None:
    query, gallery = unit(31, 0), unit(200, 1)
    found = top_k(query, gallery, k, block=block)
    assert found.tolist() == slowly(query, gallery, k)


@pytest.mark.parametrize("block", [5, 32768])
def test_copies_of_a_row_come_in_file_order(block: int) -> None:
    base = unit(40, 2)
    gallery = base[torch.randint(0, 40, (600,), generator=torch.manual_seed(3))]  # about 15 copies of each
    query = unit(20, 4)
    assert top_k(query, gallery, 50, block=block).tolist() == slowly(query, gallery, 50)


def test_one_feature_for_everything_keeps_file_order() -> None:
    gallery = unit(1, 5).expand(900, -1)
    assert top_k(unit(3, 6), gallery, 7, block=100).tolist() == [list(range(7))] * 3


def test_coarse_scores_with_ties_of_both_signs_and_zero() -> None:
    generator = torch.manual_seed(8)
    query = torch.randint(-1, 2, (25, 6), generator=generator) / 4
    gallery = torch.randint(-1, 2, (300, 6), generator=generator) / 4
    query[0] = -0.0
    assert top_k(query, gallery, 300, block=90).tolist() == slowly(query, gallery, 300)


def test_only_negative_scores() -> None:
    query = unit(10, 9).abs()
    gallery = -unit(400, 10).abs()
    assert top_k(query, gallery, 12, block=33).tolist() == slowly(query, gallery, 12)


def test_scores_closer_than_float32_products_can_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every candidate is within float32 noise of the others: the short list cannot be trusted, and is not."""
    searched = []
    real = search._search_exhaustively
    monkeypatch.setattr(
        search, "_search_exhaustively", lambda *words: searched.append(len(words[0])) or real(*words)
    )
    gallery = unit(1, 11, 64) + 1e-7 * torch.randn(500, 64, generator=torch.manual_seed(12))
    query = unit(8, 13, 64)
    assert top_k(query, gallery, 10).tolist() == slowly(query, gallery, 10)
    assert sum(searched) == 8


def test_ordinary_features_need_no_exhaustive_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(search, "_search_exhaustively")
    query, gallery = unit(50, 14, 256), unit(2000, 15, 256)
    assert top_k(query, gallery, 10).tolist() == slowly(query, gallery, 10)


def test_many_query_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_SCORES_AT_ONCE", 600)
    monkeypatch.setattr(search, "_PRODUCTS_AT_ONCE", 600)
    query, gallery = unit(23, 16), unit(200, 17)
    assert top_k(query, gallery, 4).tolist() == slowly(query, gallery, 4)


def test_no_queries() -> None:
    assert top_k(unit(1, 0)[:0], unit(5, 1), 3).shape == (0, 3)


@pytest.mark.parametrize(("k", "block"), [(0, 5), (3, 0)])
def test_refuses_empty_searches(k: int, block: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        top_k(unit(2, 0), unit(5, 1), k, block=block)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_finds_what_the_cpu_finds() -> None:
    query, gallery = unit(200, 18, 128), unit(5000, 19, 128)
    gallery[1::2] = gallery[::2]
    assert top_k(query, gallery, 10, device="cuda").tolist() == top_k(query, gallery, 10).tolist()
