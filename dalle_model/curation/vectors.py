"""All pairs of vectors that are near each other, without comparing all with all."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from dalle_model.curation.products import near_products

Int64Array = npt.NDArray[np.int64]

TABLES, PROJECTIONS = 16, 8
# At this width a pair at the very limit shares a bucket of one table with probability 0.17 and of any with 0.95,
# a pair at half of it with 0.9999; pairs four times as far hardly ever meet. Datar et al. 2004, equation 1.
_WIDTH = 4.0
_WIDE = 256  # from this width on strangers stand too near the limit for hashes
_STEPS = 64  # places in a bucket that are compared: what bounds the work when very many vectors are alike
_CHUNK = 65_536


def near_vectors(
    vectors: npt.NDArray[Any], radius: float
) -> Iterator[tuple[Int64Array, Int64Array, npt.NDArray[np.float64]]]:
    """Index arrays (i, j) of rows of [n, d] at most ``radius`` apart (Euclidean), and their distances.

    Wide vectors (512 of CLIP) are compared by products, see ``products.near_products``: all pairs up to 131,072 rows.

    Narrow ones: locality-sensitive hashing with p-stable projections (Datar et al. 2004): near-linear in n. What it gives is
    within the radius; of the pairs that are, it misses about 5 % at the very limit and almost none at half of it.
    Equal rows are linked to the first of them. In a bucket each row is compared with the next 64 along one more
    projection, so of thousands of near copies every one is linked to some, not to all. The projections are fixed: the same vectors give the same pairs.
    """
    distinct, first, which = np.unique(vectors, axis=0, return_index=True, return_inverse=True)
    which = which.reshape(-1)
    others = np.flatnonzero(first[which] != np.arange(len(vectors)))
    if len(others):
        yield first[which[others]], others, np.zeros(len(others))
    if len(distinct) < 2 or radius <= 0:
        return
    if vectors.shape[1] >= _WIDE:
        for left, right, distance in near_products(distinct, radius):
            yield first[left], first[right], distance
        return
    bits = np.random.Philox(key=20040609)  # its raw stream is the same in every version of NumPy
    for _ in range(TABLES):
        lines = _normal(bits, (vectors.shape[1], PROJECTIONS + 1))
        offset = _uniform(bits, (PROJECTIONS,))
        keys, along = _keys(distinct, lines, offset, _WIDTH * radius)
        order = np.lexsort((along, keys))
        for left, right, distance in _within_buckets(distinct, keys[order], order, radius):
            yield first[left], first[right], distance


def _keys(
    vectors: npt.NDArray[Any], lines: npt.NDArray[np.float64], offset: npt.NDArray[np.float64], width: float
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.float64]]:
    """Bucket of each row, and its place along one more line."""
    mixers = np.array([0x9E3779B97F4A7C15 * (2 * k + 1) % 2**64 | 1 for k in range(PROJECTIONS)], np.uint64)
    keys = np.empty(len(vectors), np.uint64)
    along = np.empty(len(vectors))
    for start in range(0, len(vectors), _CHUNK):
        part = slice(start, start + _CHUNK)
        places = vectors[part].astype(np.float64) @ lines
        cells = np.floor(places[:, :PROJECTIONS] / width + offset).astype(np.int64).view(np.uint64)
        mixed = np.zeros(len(cells), np.uint64)
        for column, mixer in zip(cells.T, mixers, strict=True):
            mixed = (mixed ^ column) * mixer
            mixed ^= mixed >> np.uint64(29)
        keys[part], along[part] = mixed, places[:, PROJECTIONS]
    return keys, along


def _within_buckets(
    vectors: npt.NDArray[Any], keys: npt.NDArray[np.uint64], order: Int64Array, radius: float
) -> Iterator[tuple[Int64Array, Int64Array, npt.NDArray[np.float64]]]:
    left = np.arange(len(keys) - 1)
    for step in range(1, _STEPS + 1):
        left = left[left + step < len(keys)]
        left = left[keys[left] == keys[left + step]]
        if not len(left):
            return
        for start in range(0, len(left), _CHUNK):
            a, b = order[left[start : start + _CHUNK]], order[left[start : start + _CHUNK] + step]
            distance = np.sqrt(np.square(vectors[a].astype(np.float64) - vectors[b]).sum(1))
            near = distance <= radius
            if near.any():
                yield a[near], b[near], distance[near]


def _uniform(bits: np.random.Philox, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Uniform in [0, 1) from the raw stream."""
    raw = bits.random_raw(int(np.prod(shape)))
    return ((raw >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(shape)


def _normal(bits: np.random.Philox, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Standard normal by Box and Muller, from the raw stream."""
    radius, angle = np.sqrt(-2 * np.log1p(-_uniform(bits, shape))), 2 * np.pi * _uniform(bits, shape)
    return np.asarray(radius * np.cos(angle), np.float64)
