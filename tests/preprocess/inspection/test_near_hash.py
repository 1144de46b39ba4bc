from __future__ import annotations

import io
import tracemalloc
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from cn_clip.preprocess.inspection.groups import Groups, connect, number_values
from cn_clip.preprocess.inspection.near_hash import MAX_DISTANCE, near_hash, near_pairs
from cn_clip.preprocess.inspection.picture_look import look_at


def distance(first: int, second: int) -> int:
    return (first ^ second).bit_count()


def look(picture: bytes) -> int:
    found = look_at(picture).near
    assert found is not None
    return found


def test_other_sizes_formats_and_qualities_of_a_picture_look_the_same(photo: Callable[..., bytes]) -> None:
    for seed in range(5):
        original = look(photo(seed, (640, 480), quality=95))
        for copy in (
            photo(seed, (200, 150), quality=60),
            photo(seed, (333, 250), "PNG"),
            photo(seed, (640, 480), "WEBP", quality=70),
            photo(seed, (640, 480), mode="L"),
        ):
            assert distance(original, look(copy)) <= 4


def test_different_pictures_look_different(photo: Callable[..., bytes]) -> None:
    looks = [look(photo(seed)) for seed in range(30)]
    assert min(distance(a, b) for a, b in combinations(looks, 2)) > MAX_DISTANCE


def test_a_picture_without_contrast_has_no_look() -> None:
    assert near_hash(Image.new("L", (100, 80), 200)) is None
    stream = io.BytesIO()
    Image.new("RGB", (100, 80), "white").save(stream, "JPEG")
    assert look_at(stream.getvalue()).near is None


def clustered_hashes(num: int, seed: int) -> np.ndarray:
    """Distinct hashes of which many differ in few bits."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 1 << 64, num // 5, dtype=np.uint64)
    flips = np.zeros(num, np.uint64)
    for _ in range(6):
        bit = np.uint64(1) << rng.integers(0, 64, num, dtype=np.uint64)
        flips ^= np.where(rng.random(num) < 0.4, bit, np.uint64(0))
    return np.unique(rng.choice(centres, num) ^ flips)


@pytest.mark.parametrize("bits", [0, 1, 3, 4, 7, MAX_DISTANCE])
def test_near_pairs_are_those_of_all_with_all(bits: int) -> None:
    hashes = clustered_hashes(400, seed=bits)
    found = {(int(min(pair)), int(max(pair))) for some in near_pairs(hashes, bits) for pair in some}
    expected = {
        (i, j)
        for i, j in combinations(range(len(hashes)), 2)
        if distance(int(hashes[i]), int(hashes[j])) <= bits
    }
    assert found == expected
    assert expected or bits == 0


def test_groups_are_chains_of_pairs() -> None:
    """Against a search over neighbours."""
    rng = np.random.default_rng(0)
    for num_pairs in (0, 5, 30, 60, 200):
        pairs = rng.integers(0, 60, (num_pairs, 2))
        neighbours: dict[int, set[int]] = {row: {row} for row in range(60)}
        for a, b in pairs.tolist():
            neighbours[a].add(b)
            neighbours[b].add(a)
        expected = []
        for row in range(60):
            reached, waiting = {row}, [row]
            while waiting:
                new = neighbours[waiting.pop()] - reached
                reached |= new
                waiting += new
            expected.append(min(reached))
        for parts in ([pairs], np.array_split(pairs, 7)):
            assert (number_values(np.array(expected)) == connect(60, parts)).all()


def test_the_largest_groups_come_first() -> None:
    groups = Groups.of(np.array([4, 0, 1, 1, 2, 0, 1, 3]))
    assert (groups.num_groups, groups.num_members, groups.num_extra) == (2, 5, 3)
    assert [rows.tolist() for rows in groups.largest(5)] == [[2, 3, 6], [1, 5]]
    assert [rows.tolist() for rows in groups.largest(1)] == [[2, 3, 6]]
    nothing = Groups.of(np.array([0, 1, 2]))
    assert nothing.largest(3) == [] and nothing.num_extra == 0


def test_values_are_numbered_by_all_columns() -> None:
    numbers = number_values(np.array([5, 5, -1, 5]), np.array([1, 2, 1, 1]))
    assert numbers[0] == numbers[3]
    assert len(set(numbers.tolist())) == 3


def test_a_cluster_of_pictures_that_all_look_alike_is_joined_in_flat_memory() -> None:
    """As thousands of copies of a placeholder are: every two of them are near."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 64, (2, 60_000), dtype=np.uint64)
    cluster = np.unique((np.uint64(1) << bits[0]) ^ (np.uint64(1) << bits[1]))
    hashes = np.unique(np.concatenate([cluster, rng.integers(0, 1 << 63, 20_000, dtype=np.uint64)]))
    tracemalloc.start()
    numbers = connect(len(hashes), near_pairs(hashes, 4))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(numbers[np.isin(hashes, cluster)].tolist())) == 1
    # one pass over all pairs at once would hold 2,000 x 2,000 / 2 of 16 bytes for each of dozens of masks
    assert peak_bytes < 60_000_000
