from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from cn_clip.preprocess.inspection.false_negatives import count_equal, count_others, risks

Columns = tuple[np.ndarray, np.ndarray, np.ndarray]


def columns(num: int, seed: int) -> Columns:
    rng = np.random.default_rng(seed)
    images, texts, keys = (
        rng.integers(0, num // 3, num),
        rng.integers(0, num, num),
        rng.integers(0, num // 2, num),
    )
    keys[: num // 6] = -7  # one frequent caption
    return images, texts, keys


def share(columns: Columns) -> np.ndarray:
    """(P, P) whether `targets: positives` takes another pair for right."""
    same = np.logical_or.reduce([column[:, None] == column[None] for column in columns])
    np.fill_diagonal(same, False)
    return same


def test_others_are_counted_once_however_much_they_share() -> None:
    for seed in range(4):
        given = columns(60, seed)
        assert count_others(*given).tolist() == share(given).sum(1).tolist()
        assert count_equal(given[2]).tolist() == [int((given[2] == key).sum()) - 1 for key in given[2]]


@pytest.mark.parametrize("batch", [2, 3, 5, 7])
def test_risks_equal_the_count_over_every_batch(batch: int) -> None:
    given = (np.array([1, 1, 2, 3, 4, 5, 1]), np.arange(7), np.array([9, 8, 9, 5, 6, 7, 9]))
    same = share(given)
    meeting, false, negatives, rows = 0, 0, 0, 0
    for chosen in combinations(range(7), batch):
        among = same[np.ix_(chosen, chosen)]
        meeting += int(among.any(1).sum())
        false += int(among.sum())
        negatives += batch * (batch - 1)
        rows += batch
    (risk,) = risks(count_others(*given), [batch])
    assert risk.share_of_pairs == pytest.approx(meeting / rows, rel=1e-12)
    assert risk.share_of_negatives == pytest.approx(false / negatives, rel=1e-12)
    assert risk.false_per_pair == pytest.approx(false / rows, rel=1e-12)


def test_risks_agree_with_batches_drawn_at_random() -> None:
    given = columns(300, seed=9)
    same, rng = share(given), np.random.default_rng(1)
    meets, counts = [], []
    for _ in range(2000):
        chosen = rng.choice(300, 40, replace=False)
        among = same[np.ix_(chosen, chosen)]
        meets.append(among.any(1).mean())
        counts.append(among.sum(1).mean())
    (risk,) = risks(count_others(*given), [40])
    for drawn, exact in ((meets, risk.share_of_pairs), (counts, risk.false_per_pair)):
        assert abs(np.mean(drawn) - exact) < 4 * np.std(drawn) / np.sqrt(len(drawn))


def test_a_batch_of_everything_meets_everything() -> None:
    others = count_others(np.array([1, 1, 2, 3]), np.arange(4), np.arange(4))
    found = risks(others, [2, 4, 5])
    # five pairs do not fill from four
    assert [risk.batch for risk in found] == [2, 4]
    assert found[1].share_of_pairs == pytest.approx(0.5)
    assert found[1].false_per_pair == pytest.approx(0.5)


def test_a_million_pairs_with_a_very_frequent_caption_take_no_time() -> None:
    num = 1_000_000
    keys = np.arange(num)
    keys[: num // 2] = 0
    (risk,) = risks(count_others(np.arange(num), np.arange(num), keys), [1024])
    assert risk.share_of_pairs == pytest.approx(0.5, abs=1e-6)
    assert risk.false_per_pair == pytest.approx(1023 * 0.25, rel=1e-3)
