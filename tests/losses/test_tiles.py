"""The tiled loss against the dense form in float64: loss, derivatives, hits, for every target mode and tile size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cn_clip.losses.pair import PairIds
from cn_clip.losses.pair.contrastive import contrastive_gradients

NUM, EMBED = 12, 8
IMAGE_IDS = torch.tensor([0, 0, 1, 1, 2, 3, 4, 5, 6, 6, 7, 8])
CAPTION_KEYS = torch.tensor(
    [0, 1, 1, 2, 3, 3, 4, 5, 6, 7, 7, 8]
)  # chains of "same picture or caption": not transitive


def ids() -> PairIds:
    return PairIds(
        torch.arange(NUM), torch.arange(NUM), IMAGE_IDS, torch.arange(100, 100 + NUM), CAPTION_KEYS
    )


def features() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, text = (
        F.normalize(torch.randn(NUM, EMBED, dtype=torch.float64, generator=generator), dim=1).requires_grad_()
        for _ in range(2)
    )
    return image, text, torch.tensor(14.0, dtype=torch.float64, requires_grad=True)


def dense_loss(image: Tensor, text: Tensor, scale: Tensor, targets: str) -> Tensor:
    """Textbook form: softmax cross entropy over the whole matrix, both ways."""
    logits, own = scale * image @ text.T, torch.eye(NUM, dtype=torch.bool)
    same = (IMAGE_IDS[:, None] == IMAGE_IDS) | (CAPTION_KEYS[:, None] == CAPTION_KEYS)
    if targets == "mask":
        logits = logits.masked_fill(same & ~own, float("-inf"))
    match = (same if targets == "positives" else own).double()

    def one_way(logits: Tensor, match: Tensor) -> Tensor:
        log_probability = logits.log_softmax(1).masked_fill(match == 0, 0)
        return -(log_probability * match / match.sum(1, keepdim=True)).sum(1).mean()

    return (one_way(logits, match) + one_way(logits.T, match.T)) / 2


@pytest.mark.parametrize("targets", ["diagonal", "positives", "mask"])
@pytest.mark.parametrize("tile", [1, 5, NUM, 100])
def test_equals_the_dense_form(targets: str, tile: int) -> None:
    image, text, scale = features()
    dense = dense_loss(image, text, scale, targets)
    dense.backward()
    found = contrastive_gradients(
        image, text, scale, ids(), ids(), lambda columns: columns[None], targets=targets, tile=tile
    )
    torch.testing.assert_close(found.loss, dense.detach(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(found.image_RE, image.grad, rtol=0, atol=1e-14)
    torch.testing.assert_close(found.text_ME, text.grad, rtol=0, atol=1e-14)
    torch.testing.assert_close(found.scale, scale.grad, rtol=0, atol=1e-14)


@pytest.mark.parametrize("targets", ["diagonal", "positives", "mask"])
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_shares_of_ranks_add_up(targets: str, num_ranks: int) -> None:
    image, text, scale = features()
    dense = dense_loss(image, text, scale, targets)
    dense.backward()
    rows = [slice(r * NUM // num_ranks, (r + 1) * NUM // num_ranks) for r in range(num_ranks)]
    columns: list[Tensor] = []

    def row_ids(at: slice) -> PairIds:
        return PairIds(*(each[at] for each in vars(ids()).values()))

    for at in rows:  # what each rank would send
        contrastive_gradients(
            image[at], text, scale, row_ids(at), ids(), lambda own: columns.append(own) or own[None],
            targets=targets, tile=4,
        )  # fmt: skip
    shares = [
        contrastive_gradients(
            image[at],
            text,
            scale,
            row_ids(at),
            ids(),
            lambda _: torch.stack(columns),
            targets=targets,
            tile=4,
        )
        for at in rows
    ]
    torch.testing.assert_close(sum(share.loss for share in shares), dense.detach(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(
        torch.cat([share.image_RE for share in shares]), image.grad, rtol=0, atol=1e-14
    )
    torch.testing.assert_close(sum(share.text_ME for share in shares), text.grad, rtol=0, atol=1e-14)
    torch.testing.assert_close(sum(share.scale for share in shares), scale.grad, rtol=0, atol=1e-14)


def test_hits_count_both_directions() -> None:
    image = torch.eye(4, 4)
    text = image[[0, 1, 3, 2]]  # captions 2 and 3 are swapped
    own = PairIds(*(torch.arange(4) + 10 * k for k in range(5)))
    found = contrastive_gradients(
        image, text, torch.tensor(10.0), own, own, lambda columns: columns[None], targets="diagonal", tile=3
    )
    assert (found.image_hits, found.text_hits) == (2, 2)


def test_large_logits_stay_finite() -> None:
    image = F.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    own = PairIds(*(torch.arange(6) for _ in range(5)))
    found = contrastive_gradients(
        image, -image, torch.tensor(1e4), own, own, lambda columns: columns[None], targets="diagonal", tile=2
    )
    assert found.loss.isfinite() and found.image_RE.isfinite().all()


@pytest.mark.parametrize("tile", [3, 100])
@pytest.mark.parametrize("targets", ["diagonal", "positives", "mask"])
def test_copies_of_a_pair_are_never_negatives(targets: str, tile: int) -> None:
    """Copies pad an epoch; with nothing in common but the pair they are of, they must not push each other away."""
    image, text, scale = features()
    pairs = torch.arange(NUM)
    pairs[[4, 9]] = pairs[[2, 2]]
    alone = torch.arange(NUM)
    # a copy has its pair's ids too
    ids = PairIds(alone, pairs, pairs, pairs, pairs)
    found = contrastive_gradients(image, text, scale, ids, ids, lambda c: c[None], targets=targets, tile=tile)
    logits, copies = scale * image @ text.T, pairs[:, None] == pairs
    own = torch.eye(NUM, dtype=torch.bool)
    if targets == "positives":
        weight = copies.double() / copies.sum(1)
    else:
        logits, weight = logits.masked_fill(copies & ~own, float("-inf")), own.double()
    ways = [lines.log_softmax(1).masked_fill(weight == 0, 0) * weight for lines in (logits, logits.T)]
    expected = -sum(way.sum() for way in ways) / (2 * NUM)
    expected.backward()
    torch.testing.assert_close(found.loss, expected.detach(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(found.image_RE, image.grad, rtol=0, atol=1e-14)
    torch.testing.assert_close(found.text_ME, text.grad, rtol=0, atol=1e-14)
