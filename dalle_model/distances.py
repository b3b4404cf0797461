"""How far two sets of pictures lie apart, on any features [n, d].

All in float64 with NumPy alone; ``dalle_model.intervals`` says how sure they are. None of these depends on where the
features come from, so a figure means something only together with the name of its features, the number of pictures, and
the reference set.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dalle_model.errors import DataError
from dalle_model.intervals import Interval, left_out, set_interval, wilson_interval

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

_BLOCK_ROWS = 1024


def frechet(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Squared Frechet distance of two Gaussians with the means and covariances of features [n, d] and [m, d].

    Dowson and Landau 1982; on Inception features it is FID (Heusel et al. 2017, arXiv 1706.08500). It grows as n falls,
    so only figures of equal n compare. Covariances have the divisor n - 1.
    """
    a, b = _features(a, b)
    mean_part = float(((a.mean(0) - b.mean(0)) ** 2).sum())
    if len(a) + len(b) < 2 * a.shape[1]:
        # The roots of the eigenvalues of A B are the singular values of the centred rows' product: n x m, not d x d.
        x, y = ((rows - rows.mean(0)) / np.sqrt(len(rows) - 1) for rows in (a, b))
        middle_trace = float(np.linalg.svd(x @ y.T, compute_uv=False).sum())
        return max(mean_part + float((x * x).sum() + (y * y).sum()) - 2 * middle_trace, 0.0)
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    # tr (A B)^(1/2) = tr (A^(1/2) B A^(1/2))^(1/2), which is symmetric: its root is real, whatever the rank.
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    middle = np.linalg.eigvalsh(root @ cov_b @ root)
    trace = float(np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(np.maximum(middle, 0)).sum())
    return max(mean_part + trace, 0.0)


def sliced_wasserstein(a: npt.ArrayLike, b: npt.ArrayLike, *, num_projections: int = 128, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance of features [n, d] and [m, d]: the root of the mean over fixed random directions.

    Rabin et al. 2012; Bonneel et al. 2015. In one dimension the optimal plan is sorting; sets of different size are
    coupled by their quantiles, exactly. Directions are uniform on the sphere, from Philox with ``seed``.
    """
    a, b = _features(a, b)
    directions = np.random.Generator(np.random.Philox(seed)).normal(size=(a.shape[1], num_projections))
    directions /= np.linalg.norm(directions, axis=0)
    sorted_a, sorted_b = np.sort(a @ directions, axis=0), np.sort(b @ directions, axis=0)
    n, m = len(a), len(b)
    # Mass moves in pieces between neighbouring levels i/n and j/m; counted in units of 1/(n m), all is whole numbers.
    levels = np.union1d(np.arange(n + 1) * m, np.arange(m + 1) * n)
    starts, mass = levels[:-1], np.diff(levels) / (n * m)
    moved = (sorted_a[starts // m] - sorted_b[starts // n]) ** 2
    return float(np.sqrt((mass @ moved).mean()))


def squared_distances(a: FloatArray, b: FloatArray) -> FloatArray:
    """Squared Euclidean distances [n, m] between rows of [n, d] and [m, d]; never negative, zero for equal rows."""
    out = np.empty((len(a), len(b)))
    centre = b.mean(0)  # the difference of large sums cancels; around the centre the sums are small
    b = b - centre
    norms = (b * b).sum(1)
    for start in range(0, len(a), _BLOCK_ROWS):
        rows = a[start : start + _BLOCK_ROWS] - centre
        block = (rows * rows).sum(1)[:, None] + norms - 2 * rows @ b.T
        scale = (rows * rows).sum(1)[:, None] + norms
        # Below the rounding of the sums, a distance is none: copies are found as copies.
        out[start : start + _BLOCK_ROWS] = np.where(block <= 1e-12 * scale, 0.0, block)
    return out


class Neighbourhood:
    """Precision, recall, density and coverage of one pair of sets; each figure is the mean of its ``values``.

    A picture's ball reaches to its k-th nearest neighbour in its own set. Improved precision and recall (Kynkaanniemi
    et al. 2019, arXiv 1904.06991; k = 3): the share of made pictures in the ball of any real one, and of real ones in
    the ball of any made one. Density and coverage (Naeem et al. 2020, arXiv 2002.09797; k = 5): the balls of real
    pictures that a made one lies in, over k, and the share of real pictures whose ball holds any made one; for two
    samples of one distribution the density is 1 and the coverage 1 - 2^-k at best.
    """

    def __init__(self, real: npt.ArrayLike, made: npt.ArrayLike, k: int) -> None:
        """``real`` [n, d], ``made`` [m, d]. DataError when a set has no k neighbours."""
        real, made = _features(real, made)
        self._k = k
        self._across = squared_distances(real, made)
        self._within = [squared_distances(x, x) for x in (real, made)]
        for square in self._within:
            np.fill_diagonal(square, 0.0)
        self._radii = [_radii(square, k) for square in self._within]

    def values(self, name: str) -> FloatArray:
        """What each picture has in a figure: of the made ones [m] in precision and density, of the real ones [n] else."""
        return _ball_values(name, self._across, self._radii[0], self._radii[1], self._k)

    def interval(self, name: str) -> Interval:
        """95 % jackknife interval around the mean of ``values``, of what is expected at this number of pictures.

        Row i of both sets is left out together. Where all have the same, 0 or 1, leaving some out tells nothing: then
        it is Wilson's (1927). DataError for sets of unequal number.
        """
        n, m = self._across.shape
        if n != m:
            raise DataError(f"{n} true pictures cannot be paired with {m} drawings; give sets of equal number")
        values = self.values(name)
        if name != "density" and values.min() == values.max():
            return wilson_interval(float(values.sum()), n)
        groups = left_out(n)
        without = [self._without(name, np.delete(np.arange(n), rows)) for rows in groups]
        top = math.inf if name == "density" else 1.0
        return set_interval(float(values.mean()), without, [len(rows) for rows in groups], top=top)

    def _without(self, name: str, kept: IntArray) -> float:
        """The figure of some rows alone."""
        place = np.ix_(kept, kept)
        radii = list(self._radii)
        side = 1 if name == "recall" else 0  # whose balls the figure stands on
        radii[side] = _radii(self._within[side][place], self._k)
        return float(_ball_values(name, self._across[place], radii[0], radii[1], self._k).mean())


def _ball_values(name: str, across: FloatArray, of_real: FloatArray, of_made: FloatArray, k: int) -> FloatArray:
    """Values of a figure from squared distances [n, m] and squared radii [n] and [m]."""
    reached: Any
    if name == "recall":
        reached = (across <= of_made[None, :]).any(1)
    elif name == "precision":
        reached = (across <= of_real[:, None]).any(0)
    elif name == "density":
        reached = (across < of_real[:, None]).sum(0) / k
    else:
        reached = (across < of_real[:, None]).any(1)
    return np.asarray(reached, np.float64)


def _radii(squared: FloatArray, k: int) -> FloatArray:
    """Squared distance from each row to its k-th nearest other row -> [n], of the squared distances [n, n]."""
    if not 1 <= k < len(squared):
        raise DataError(f"{len(squared)} pictures have no {k} neighbours each; measure at least {k + 1}, or lower k")
    radii: FloatArray = np.partition(squared, k, axis=1)[:, k]
    return radii


def mean_distance(x: npt.ArrayLike) -> float:
    """Mean Euclidean distance between different rows of [n, d]."""
    (x,) = _features(x)
    return float(np.sqrt(squared_distances(x, x)[~np.eye(len(x), dtype=np.bool_)]).mean())


def _features(*sets: npt.ArrayLike) -> list[FloatArray]:
    """As float64 [n, d]. DataError when they are not, hold a number that is not finite, or differ in width."""
    arrays = [np.asarray(x, np.float64) for x in sets]
    if any(x.ndim != 2 or len(x) < 2 for x in arrays) or len({x.shape[1] for x in arrays}) != 1:
        raise DataError(
            f"features of shapes {_shapes(arrays)}; expected [pictures, width] of one width and two pictures at least"
        )
    if not all(np.isfinite(x).all() for x in arrays):
        raise DataError(f"features of shapes {_shapes(arrays)} hold numbers that are not finite; look at the pictures")
    return arrays


def _shapes(arrays: Sequence[FloatArray]) -> str:
    return ", ".join(str(list(x.shape)) for x in arrays)
