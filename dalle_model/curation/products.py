"""All pairs of wide vectors that are near each other, by products of blocks: exact, and linear beyond 131,072 rows.

A vision model puts strangers only two or three times as far apart as the limit for kin (CLIP: 0.7 to 1 against 0.3), so
buckets of hashes fill up with them. Products of matrices are cheap: of most pairs the leading principal
components alone prove that they are too far apart. Memory: ``PARTS + 3`` or fewer float32 a row, and blocks of a fixed size.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dalle_model.curation.components import Int64Array, roots, union

Vectors = npt.NDArray[Any]
Links = tuple[Int64Array, Int64Array, npt.NDArray[np.float64]]

PARTS = 128  # principal components at most that the first look takes
EXACT_ROWS = 131_072  # up to here all is compared with all
_CELL_ROWS, _PROBES, _LLOYD = 8_192, 8, 4
_ROWS, _OTHERS = 1_024, 4_096  # of a block: 16 MB of float32
_SAMPLE = 4_096
_CANDIDATES = 3e-4  # share of strangers that may pass the first look
_DENSE = 16  # links per row of a block beyond which only those are given that hold it together
_NUMBERS = 2**21  # of a chunk


def near_products(vectors: Vectors, radius: float) -> Iterator[Links]:
    """Index arrays (i, j) of different rows of [n, d] at most ``radius`` (above 0) apart, and their Euclidean distances.

    Vectors of integers whose squared norms stay below 2^53 are judged without any rounding, so the pairs are the same on
    every machine. Up to EXACT_ROWS rows every such pair is found, except that of a dense block (more than 16 links a
    row) only a spanning forest of least distances is given: components and each one's least distance are the same.

    Beyond it, rows are sorted into cells of about 8,192 around k-means centres, and a row meets those of its own and of
    up to 7 more cells whose border is nearest, if it is within ``radius``. A pair is missed only where neither row meets
    the other's cell. In 512 dimensions a step of the radius goes about a twentieth of it towards a border.
    """
    space = _Space.of([vectors], radius)
    rows = np.arange(len(vectors))
    if len(vectors) <= EXACT_ROWS:
        yield from _within(space, rows)
        return
    centres = _centres(vectors)
    home, visits = _cells(vectors, centres, radius)
    guests = np.argsort(visits[1], kind="stable")
    first = np.searchsorted(visits[1][guests], np.arange(len(centres) + 1))
    order = np.argsort(home, kind="stable")
    start = np.searchsorted(home[order], np.arange(len(centres) + 1))
    for cell in range(len(centres)):
        members = order[start[cell] : start[cell + 1]]
        yield from _within(space, members)
        yield from _between(space, visits[0][guests[first[cell] : first[cell + 1]]], members)


def near_across(ours: Vectors, theirs: Vectors, radius: float) -> npt.NDArray[np.bool_]:
    """Which rows of ``ours`` [n, d] are at most ``radius`` (0 or more) from a row of ``theirs`` [m, d].

    Exact where n x m is at most EXACT_ROWS^2. Beyond it ``theirs`` are sorted into cells, and each of ours meets those of
    its own and of up to 7 more cells, as in ``near_products``.
    """
    touched = np.zeros(len(ours), bool)
    if not len(ours) or not len(theirs):
        return touched
    space = _Space.of([ours, theirs], radius)
    others = np.arange(len(ours), len(ours) + len(theirs))
    if len(ours) * len(theirs) <= EXACT_ROWS**2:
        meetings = [(np.arange(len(ours)), others)]
    else:
        centres = _centres(theirs)
        home, visits = _cells(ours, centres, radius)
        placed = _cells(theirs, centres, radius)[0]
        rows, cells = np.concatenate([np.arange(len(ours)), visits[0]]), np.concatenate([home, visits[1]])
        meetings = [(rows[cells == cell], others[placed == cell]) for cell in range(len(centres))]
    for ours_here, theirs_here in meetings:
        for left, _, _ in _between(space, ours_here, theirs_here, forest=False):
            touched[left] = True
    return touched


@dataclass(frozen=True)
class _Space:
    """Rows of several arrays, one after the other, and what the first look takes of them.

    ``look`` float32 [n, k]: the leading principal components and what is left of the norm, in units of the radius (of 1/2
    where that is more); ``half`` [n]: half of their squared norms. Half of the squared distance of two looks never exceeds that of the rows by more than ``slack``.
    """

    arrays: list[Vectors]
    radius: float
    look: npt.NDArray[np.float32]
    half: npt.NDArray[np.float32]
    slack: float

    @classmethod
    def of(cls, arrays: list[Vectors], radius: float) -> "_Space":
        total = sum(map(len, arrays))
        sample = np.concatenate([a[:: -(-total // _SAMPLE)] for a in arrays]).astype(np.float64)
        mean = sample.mean(0)
        axes = np.linalg.eigh((sample - mean).T @ (sample - mean))[1][:, ::-1]
        scale = max(radius, 0.5)  # integers differ by 1 or more; a smaller unit would only cost digits
        parts = _parts((sample - mean) @ axes / scale)
        look = np.empty((total, parts + 1), np.float32)
        done = 0
        for array in arrays:
            for at in range(0, len(array), _ROWS):
                piece = (array[at : at + _ROWS] - mean) / scale
                led = piece @ axes[:, :parts]
                left = np.square(piece).sum(1) - np.square(led).sum(1)
                look[done : done + len(led), :parts] = led
                look[done : done + len(led), parts] = np.sqrt(np.maximum(left, 0))
                done += len(led)
        squares = np.square(look).sum(1)
        # float32 sums of k products err by at most about k steps of 6e-8 of what is summed.
        slack = 1e-3 + 1.2e-7 * (parts + 3) * float(squares.max(initial=0))
        return cls(arrays, radius, look, squares / 2, slack)

    def rows(self, index: Int64Array) -> npt.NDArray[np.float64]:
        """The vectors themselves, float64 [len(index), d]."""
        if len(self.arrays) == 1:
            return self.arrays[0][index].astype(np.float64)
        first = len(self.arrays[0])
        own = index < first
        out = np.empty((len(index), self.arrays[0].shape[1]))
        out[own], out[~own] = self.arrays[0][index[own]], self.arrays[1][index[~own] - first]
        return out


def _parts(sample: npt.NDArray[np.float64]) -> int:
    """How many leading components tell strangers apart."""
    one, other = np.arange(len(sample)), np.roll(np.arange(len(sample)), 1)
    apart = np.square(sample[one] - sample[other])
    for parts in range(16, min(PARTS, sample.shape[1]), 16):
        if (apart[:, :parts].sum(1) <= 1).mean() <= _CANDIDATES:
            return parts
    return int(min(PARTS, sample.shape[1]))


def _within(space: _Space, rows: Int64Array) -> Iterator[Links]:
    """Pairs among ``rows``, each once."""
    for at in range(0, len(rows), _ROWS):
        for beside in range(at, len(rows), _OTHERS):
            yield from _block(space, rows[at : at + _ROWS], rows[beside : beside + _OTHERS], beside == at, True)


def _between(space: _Space, rows: Int64Array, others: Int64Array, forest: bool = True) -> Iterator[Links]:
    for at in range(0, len(rows), _ROWS):
        for beside in range(0, len(others), _OTHERS):
            yield from _block(space, rows[at : at + _ROWS], others[beside : beside + _OTHERS], False, forest)


def _block(space: _Space, rows: Int64Array, others: Int64Array, diagonal: bool, forest: bool) -> Iterator[Links]:
    """Links of each of ``rows`` with each of ``others``; ``diagonal``: these begin with those, so later ones only."""
    near = space.look[rows] @ space.look[others].T  # |a - b|^2 <= 1 where a.b - |a|^2/2 - |b|^2/2 >= -1/2
    near -= space.half[others]
    flat = np.flatnonzero(near >= (space.half[rows] - np.float32(0.5 + space.slack))[:, None])
    del near
    i, j = flat // len(others), flat % len(others)
    if diagonal:
        i, j = i[j > i], j[j > i]
    limit = space.radius**2
    if len(i) > _DENSE * (len(rows) + len(others)):
        squared = _squared(space.rows(rows), space.rows(others))
        if diagonal:
            squared[np.tril_indices(len(rows), 0, len(others))] = np.inf
        squared[squared > limit] = np.inf
        yield from _forest(rows, others, squared) if forest else _nearest(rows, others, squared)
        return
    step = max(1, _NUMBERS // space.arrays[0].shape[1])
    for at in range(0, len(i), step):
        a, b = rows[i[at : at + step]], others[j[at : at + step]]
        squared = np.square(space.rows(a) - space.rows(b)).sum(1)
        kept = squared <= limit
        if kept.any():
            yield a[kept], b[kept], np.sqrt(squared[kept])


def _squared(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Squared distances [n, m]; without rounding for integers."""
    return np.asarray(np.maximum(np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * (a @ b.T), 0))


def _nearest(rows: Int64Array, others: Int64Array, squared: npt.NDArray[np.float64]) -> Iterator[Links]:
    """The nearest of ``others`` of each of ``rows``."""
    best = squared.argmin(1)
    least = squared[np.arange(len(rows)), best]
    found = np.isfinite(least)
    yield rows[found], others[best[found]], np.sqrt(least[found])


def _forest(rows: Int64Array, others: Int64Array, squared: npt.NDArray[np.float64]) -> Iterator[Links]:
    """Links of a spanning forest of least distances (Boruvka 1926), and a few more: what joins, and how near, is kept."""
    nodes, place = np.unique(np.concatenate([rows, others]), return_inverse=True)
    left, right = place[: len(rows)], place[len(rows) :]
    parent = np.arange(len(nodes))
    while True:
        links = []
        for axis in (1, 0):
            best = squared.argmin(axis)
            along = np.arange(len(best))
            i, j = (along, best) if axis else (best, along)
            found = np.isfinite(squared[i, j])
            links.append((i[found], j[found]))
        i, j = (np.concatenate(ends) for ends in zip(*links, strict=True))
        if not len(i):
            return
        yield rows[i], others[j], np.sqrt(squared[i, j])
        union(parent, left[i], right[j])
        tops = roots(parent)
        squared[tops[left][:, None] == tops[right]] = np.inf


# --- cells of very many rows -------------------------------------------------------------------------------------------


def _centres(vectors: Vectors) -> npt.NDArray[np.float64]:
    """Centres [c, d] by k-means (Lloyd 1982) over rows that their content chooses, so their order plays no part."""
    count = -(-len(vectors) // _CELL_ROWS)
    chosen = np.argsort(_hashes(vectors), kind="stable")[: min(len(vectors), 64 * count)]
    sample = vectors[chosen].astype(np.float64)
    centres = sample[:count].copy()
    for _ in range(_LLOYD):
        nearest = _squared(sample, centres).argmin(1)
        sizes = np.bincount(nearest, minlength=count)
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, sample)
        filled = sizes > 0
        centres[filled] = np.round(sums[filled] / sizes[filled, None])
    return centres


def _cells(
    vectors: Vectors, centres: npt.NDArray[np.float64], radius: float
) -> tuple[Int64Array, tuple[Int64Array, Int64Array]]:
    """The cell of each row, int64 [n], and (row, cell) of the further cells that it meets."""
    home = np.empty(len(vectors), np.int64)
    between = np.sqrt(_squared(centres, centres))
    rows, cells = [], []
    for at in range(0, len(vectors), _ROWS):
        squared = _squared(vectors[at : at + _ROWS].astype(np.float64), centres)
        own = squared.argmin(1)
        along = np.arange(len(own))
        home[at : at + len(own)] = own
        # How far it is to the plane between two centres: who is within the radius of it may have kin behind it.
        with np.errstate(divide="ignore", invalid="ignore"):
            border = (squared - squared[along, own][:, None]) / (2 * between[own])
        border[along, own] = np.inf
        border[np.isnan(border)] = 0.0  # two centres in one place
        probes = np.argsort(border, axis=1, kind="stable")[:, : _PROBES - 1]
        row, number = np.nonzero(np.take_along_axis(border, probes, 1) <= radius)
        rows.append(row + at)
        cells.append(probes[row, number])
    return home, (np.concatenate(rows), np.concatenate(cells))


def _hashes(vectors: Vectors) -> npt.NDArray[np.uint64]:
    """A number for each row by its content."""
    mixed = np.zeros(len(vectors), np.uint64)
    for column in range(vectors.shape[1]):
        values = vectors[:, column].astype(np.float64).view(np.uint64)
        mixed = (mixed ^ values) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed
