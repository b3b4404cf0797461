"""Near pairs of wide vectors by products of blocks: equal to comparing all with all."""

import numpy as np
import pytest

from dalle_model.curation import products
from dalle_model.curation.clusters import kinship
from dalle_model.curation.products import near_across, near_products
from dalle_model.curation.vectors import near_vectors

STEPS = 16_384  # of a unit vector, as a vision model's embedding is stored
RADIUS = 0.3 * STEPS
WIDTH = 256  # dimensions


def like_clip(rng: np.random.Generator, count: int, width: int = WIDTH) -> np.ndarray:
    """Unit vectors in a cone, a spectrum that falls, one in five a changed copy: strangers about twice the radius apart."""
    spectrum = np.arange(1, width + 1) ** -0.4
    rows = 1.3 * np.eye(width)[0] + rng.normal(size=(count, width)) * spectrum / np.linalg.norm(spectrum) * 0.8
    copies = count // 5
    changed = rng.normal(size=(copies, width)) / width**0.5
    rows[-copies:] = rows[rng.integers(0, count - copies, copies)] + changed * rng.uniform(0, 0.6, (copies, 1))
    return np.round(rows / np.linalg.norm(rows, axis=1, keepdims=True) * STEPS).astype(np.int16)


def apart(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Squared distances, exactly: [n, m] int64."""
    a, b = left.astype(np.int64), right.astype(np.int64)
    return (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * (a @ b.T)


def pairs_of(links: object) -> dict[tuple[int, int], float]:
    return {
        (int(min(a, b)), int(max(a, b))): float(d)
        for i, j, distance in links  # type: ignore[attr-defined]
        for a, b, d in zip(i, j, distance, strict=True)
    }


@pytest.mark.parametrize("seed", range(3))
def test_every_pair_within_the_radius_is_found_and_no_other(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_ROWS", 64)  # several blocks, also partly filled ones
    monkeypatch.setattr(products, "_OTHERS", 96)
    vectors = like_clip(np.random.default_rng(seed), 330)
    squared = apart(vectors, vectors)
    limit = float(np.sqrt(np.sort(squared[np.triu_indices(330, 1)])[40 + seed]))  # one pair lies exactly on it
    for radius in (RADIUS, limit):
        wanted = {(i, j) for i, j in np.argwhere(squared <= radius**2).tolist() if i < j}
        found = pairs_of(near_products(vectors, radius))
        assert found.keys() == wanted and len(wanted) > 20
        assert all(d == pytest.approx(squared[pair] ** 0.5, abs=0, rel=1e-15) for pair, d in found.items())


@pytest.mark.parametrize("width", [3, 40, 300])
def test_vectors_of_any_kind_are_compared_exactly(width: int) -> None:
    rng = np.random.default_rng(width)
    vectors = rng.integers(0, 256, (120, width), dtype=np.uint8)
    vectors[60:] = np.clip(vectors[:60].astype(int) + rng.integers(-2, 3, (60, width)), 0, 255)
    vectors[7] = 0  # far from all others: a look in float32 has few digits there
    squared = apart(vectors, vectors)
    for radius in (0.4, 2.0, float(np.sqrt(np.median(squared)))):
        wanted = {(i, j) for i, j in np.argwhere(squared <= radius**2).tolist() if i < j}
        found = pairs_of(near_products(vectors, radius))
        if len(wanted) < 16 * 240:
            assert found.keys() == wanted
        assert found.keys() <= wanted


def test_a_dense_block_gives_a_forest_that_joins_the_same_at_the_same_least_distances(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(5)
    crowds = rng.integers(-3000, 3000, (3, 300))
    vectors = (crowds[rng.integers(0, 3, 500)] + rng.integers(-40, 41, (500, 300))).astype(np.int16)
    rows, hashes = np.arange(500, dtype=np.uint64), rng.integers(0, 2**63, 500).astype(np.uint64)
    links = sum(len(i) for i, _, _ in near_products(vectors, 800.0))
    assert links < 6 * 500, "and not the 40,000 of all with all"
    thin = kinship(rows, hashes, np.arange(500), -1, vectors, 800.0)
    monkeypatch.setattr(products, "_DENSE", 10**9)
    full = kinship(rows, hashes, np.arange(500), -1, vectors, 800.0)
    assert len(set(full.cluster.tolist())) == 3
    for name in ("cluster", "tier", "distance"):
        np.testing.assert_array_equal(getattr(thin, name), getattr(full, name))


def test_cells_of_very_many_rows_lose_hardly_a_pair_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = like_clip(np.random.default_rng(8), 4000)
    wanted = pairs_of(near_products(vectors, RADIUS)).keys()
    monkeypatch.setattr(products, "EXACT_ROWS", 1000)
    monkeypatch.setattr(products, "_CELL_ROWS", 200)
    found = pairs_of(near_products(vectors, RADIUS)).keys()
    assert found <= wanted and len(found) >= 0.98 * len(wanted) > 200
    order = np.random.default_rng(9).permutation(4000)
    again = pairs_of(near_products(vectors[order], RADIUS))
    assert {tuple(sorted((int(order[a]), int(order[b])))) for a, b in again} == found
    touched = near_across(vectors[:3000], vectors[3000:], RADIUS)
    exact = {i for i, j in wanted if i < 3000 <= j}
    assert set(np.flatnonzero(touched).tolist()) <= exact and touched.sum() >= 0.98 * len(exact) > 100


def test_what_touches_another_set_is_exact_also_where_all_are_near() -> None:
    rng = np.random.default_rng(4)
    ours, theirs = like_clip(rng, 150), like_clip(rng, 60)
    theirs[:40] = ours[:40]
    theirs[:40, 3] += rng.integers(0, 9000, 40).astype(np.int16)
    squared = apart(ours, theirs)
    for radius in (0.0, 1.0, RADIUS, 1.2 * STEPS):
        assert near_across(ours, theirs, radius).tolist() == (squared <= radius**2).any(1).tolist()
    assert not near_across(ours, theirs[:0], RADIUS).any() and not len(near_across(ours[:0], theirs, RADIUS))


def test_wide_vectors_take_this_way_and_equal_ones_are_linked_once() -> None:
    vectors = np.repeat(like_clip(np.random.default_rng(1), 50), 3, axis=0)
    found = pairs_of(near_vectors(vectors, RADIUS))
    firsts = np.arange(0, 150, 3)
    squared = apart(vectors[::3], vectors[::3])
    wanted = {(3 * i, 3 * j) for i, j in np.argwhere(squared <= RADIUS**2).tolist() if i < j}
    assert found.keys() == wanted | {(f, f + k) for f in firsts.tolist() for k in (1, 2)}
