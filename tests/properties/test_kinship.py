"""What must hold of the cluster table, of folds and of contamination for any data."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_model.curation.clusters import TIERS, Kinship, fold_of, kinship, survivor_rank
from dalle_model.curation.contamination import touching
from dalle_model.curation.vectors import near_vectors

BITS, RADIUS = 3, 9.0


def world(seed: int, count: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pictures with copies, near hashes and near embeddings: digests, hashes, embeddings of each row, and ranks."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, 8, dtype=np.uint64).repeat(4)
    hashes ^= np.uint64(1) << rng.integers(0, 64, 32, dtype=np.uint64)
    vectors = rng.integers(0, 255, (5, 12))[rng.integers(0, 5, 32)] + rng.integers(0, 3, (32, 12))
    pick = rng.integers(0, 32, count)
    pictures = rng.permutation(1000)[:32].astype(np.uint64)
    return pictures[pick], hashes[pick], vectors[pick].astype(np.int16), rng.permutation(count)


def components(links: np.ndarray) -> np.ndarray:
    """Smallest row among those that links lead to, the slow and plain way."""
    reach = links.copy()
    while True:
        further = (reach.astype(int) @ links.astype(int)) > 0
        if (further == reach).all():
            return reach.argmax(1)
        reach = further


def all_pairs(pictures: np.ndarray, hashes: np.ndarray, vectors: np.ndarray) -> list[np.ndarray]:
    """Distances of every row to every other at each tier; infinite beyond the threshold."""
    equal = np.where(pictures[:, None] == pictures[None], 0.0, np.inf)
    bits = np.bitwise_count(hashes[:, None] ^ hashes[None]).astype(float)
    apart = np.sqrt(((vectors[:, None].astype(float) - vectors[None]) ** 2).sum(-1))
    return [equal, np.where(bits <= BITS, bits, np.inf), np.where(apart <= RADIUS, apart, np.inf)]


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.booleans(), st.booleans())
def test_the_cluster_table_is_that_of_comparing_all_with_all(seed: int, hash_tier: bool, vector_tier: bool) -> None:
    pictures, hashes, vectors, rank = world(seed)
    found = kinship(pictures, hashes, rank, BITS if hash_tier else -1, vectors if vector_tier else None, RADIUS)
    distances = [
        d for d, on in zip(all_pairs(pictures, hashes, vectors), (True, hash_tier, vector_tier), strict=True) if on
    ]
    names = [n for n, on in zip(("bytes", "hash", "embedding"), (True, hash_tier, vector_tier), strict=True) if on]
    links = np.zeros((60, 60), bool)
    heads = np.ones(60, bool)
    for name, distance in zip(names, distances, strict=True):
        before = components(links) if links.any() else np.arange(60)
        links |= np.isfinite(distance)
        after = components(links)
        best = {c: min(rank[after == c]) for c in set(after)}
        for row in np.flatnonzero(heads):
            if rank[row] != best[after[row]]:
                heads[row] = False
                others = (before[row] == before)[:, None] & (before != before[row])[None]
                assert TIERS[found.tier[row]] == name
                assert found.distance[row] == pytest.approx(distance[others].min())
    assert found.cluster.tolist() == [pictures[after == c].min() for c in after]
    assert (TIERS.index("") == found.tier).tolist() == heads.tolist()
    assert np.isnan(found.distance).tolist() == heads.tolist()


@settings(max_examples=25)
@given(st.integers(0, 2**32))
def test_clusters_do_not_depend_on_the_order_of_rows(seed: int) -> None:
    pictures, hashes, vectors, rank = world(seed)
    order = np.random.default_rng(seed).permutation(60)
    straight: Kinship = kinship(pictures, hashes, rank, BITS, vectors, RADIUS)
    shuffled = kinship(pictures[order], hashes[order], rank[order], BITS, vectors[order], RADIUS)
    assert shuffled.cluster.tolist() == straight.cluster[order].tolist()
    assert shuffled.tier.tolist() == straight.tier[order].tolist()


def test_the_survivor_is_the_larger_source_then_the_longer_caption_then_the_smaller_id() -> None:
    ids = np.array([5, 4, 3, 2, 1], np.uint64)
    side, chars = np.array([64, np.nan, 64, 64, 32.0]), np.array([9, 1, 9, 12, 99.0])
    assert np.argsort(survivor_rank(ids, side, chars)).tolist() == [1, 3, 2, 0, 4]


def test_planted_neighbours_are_found_among_many_vectors_and_nothing_farther() -> None:
    rng = np.random.default_rng(1)
    base = rng.integers(0, 255, (4000, 48)).astype(np.float64)
    near = base[:400] + rng.normal(0, 1, (400, 48)) * 5 / 48**0.5  # about 5 away, strangers about 700
    vectors = np.concatenate([base, near])
    found = {
        (int(min(a, b)), int(max(a, b))) for i, j, _ in near_vectors(vectors, 10.0) for a, b in zip(i, j, strict=True)
    }
    planted = {(n, 4000 + n) for n in range(400)}
    assert found <= planted and len(found) >= 396


def test_very_many_equal_and_near_vectors_are_one_cluster_and_not_quadratic_work() -> None:
    rng = np.random.default_rng(2)
    vectors = np.repeat(rng.integers(100, 103, (3000, 16)), 4, axis=0).astype(np.uint8)
    rows = np.arange(len(vectors), dtype=np.uint64)
    links = sum(len(i) for i, _, _ in near_vectors(vectors, 9.0))
    assert links < 64 * 16 * len(vectors)
    assert (
        len(set(kinship(rows, rows * np.uint64(0x9E3779B97F4A7C15), np.arange(12_000), -1, vectors, 9.0).cluster)) == 1
    )


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=60), st.integers(2, 10), st.integers(0, 99))
def test_every_cluster_is_in_one_fold_and_more_rows_move_none(names: list[int], folds: int, seed: int) -> None:
    clusters = np.array(names, np.uint64)
    fold = fold_of(clusters, folds, seed)
    assert ((fold >= 0) & (fold < folds)).all()
    assert fold_of(np.concatenate([clusters, clusters]), folds, seed).tolist() == fold.tolist() * 2
    half = len(names) // 2 or 1
    assert fold_of(clusters[:half], folds, seed).tolist() == fold[:half].tolist()


def test_folds_are_of_about_equal_size() -> None:
    counts = np.bincount(fold_of(np.arange(20_000, dtype=np.uint64), 5, 1), minlength=5)
    assert counts == pytest.approx([4000] * 5, rel=0.06)


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(0, 6), st.booleans())
def test_what_touches_another_set_is_that_of_comparing_all_with_all(seed: int, bits: int, embedded: bool) -> None:
    pictures, hashes, vectors, _ = world(seed)
    ours, theirs = slice(0, 52), slice(52, 60)
    if embedded:  # far hashes, so that only embeddings tell
        hashes = np.random.default_rng(seed).integers(0, 2**64, 60, dtype=np.uint64)
        vectors = vectors + np.random.default_rng(seed).integers(0, 60, (12,))[None] * (np.arange(60) % 4)[:, None]
    equal, _, near = (d[ours, theirs] for d in all_pairs(pictures, hashes, vectors))
    differing = np.bitwise_count(hashes[ours, None] ^ hashes[None, theirs])
    wanted = (np.isfinite(equal) | (differing <= bits) | (np.isfinite(near) & embedded)).any(1)
    found = touching(
        (pictures[ours], hashes[ours], vectors[ours] if embedded else None),
        (pictures[theirs], hashes[theirs], vectors[theirs] if embedded else None),
        bits,
        RADIUS,
    )
    assert found.tolist() == wanted.tolist()
