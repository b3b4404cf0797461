"""How sure a figure is: 95 % intervals of shares, means, and statistics of whole sets of pictures.

A naive bootstrap of a distance between sets, or of a figure of nearest neighbours, is wrong: a resample holds pictures
twice, whose distance is 0, so it lies beside the sample instead of around it. Such figures are computed again with
groups of pictures left out (jackknife), which repeats nothing.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from dalle_model.errors import DataError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Interval = tuple[float, float]

GROUPS = 40  # of pictures, left out one by one; with fewer pictures one picture is a group
_NORMAL_95 = 1.959963984540054  # standard deviations around the mean that hold 95 % of a normal distribution


def wilson_interval(successes: float, n: int) -> Interval:
    """95 % score interval of a share (Wilson 1927) of n independent trials. DataError for n = 0."""
    if n < 1:
        raise DataError("no values to take an interval of; measure at least one picture")
    z2 = _NORMAL_95**2
    p = successes / n
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _NORMAL_95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At the ends the bounds are exactly 0 and 1, which rounding would miss.
    return (0.0 if successes == 0 else max(0.0, centre - half)), (1.0 if successes == n else min(1.0, centre + half))


def mean_interval(values: npt.ArrayLike, *, resamples: int = 1000, seed: int = 0) -> Interval:
    """95 % interval of the mean of values [n]: Wilson's where all are 0 or 1, else the expanded percentile bootstrap.

    The percentile bootstrap (Efron 1979) is too narrow for few values; taking quantiles further out by Student's t and
    the factor sqrt(n / (n - 1)) mends that (Hesterberg 2015, arXiv 1411.5279, section 5.3). It stays within the values'
    range, unlike a t interval.
    """
    given = np.asarray(values, np.float64)
    n = len(given)
    if not n:
        raise DataError("no values to take an interval of; measure at least one picture")
    if ((given == 0) | (given == 1)).all():
        return wilson_interval(float(given.sum()), n)
    if n == 1:
        return float(given[0]), float(given[0])
    tail = _normal_tail(math.sqrt(n / (n - 1)) * student_95(n - 1))
    draws = np.random.Generator(np.random.Philox(seed)).integers(0, n, (resamples, n))
    low, high = np.quantile(given[draws].mean(axis=1), [tail, 1 - tail])
    mean = float(given.mean())  # of few values with one far off, a quantile can miss it by a rounding
    return min(float(low), mean), max(float(high), mean)


def student_95(freedom: int) -> float:
    """Two-sided 95 % quantile of Student's t, from its expansion around the normal one (Abramowitz and Stegun 26.7.5).

    Exact for 1 and 2 degrees of freedom; for 3 and more within 0.5 %.
    """
    if freedom < 3:
        return {1: 12.706204736432095, 2: 4.302652729911275}[max(1, freedom)]
    z, v = _NORMAL_95, float(freedom)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )


def left_out(n: int, *, groups: int = GROUPS, seed: int = 0) -> list[IntArray]:
    """Rows 0..n-1 dealt into at most ``groups`` groups of sizes that differ by 1 at most, in an order drawn by Philox."""
    order = np.random.Generator(np.random.Philox(seed)).permutation(n)
    return [np.sort(part) for part in np.array_split(order, min(n, groups))]


def jackknife(whole: float, without: npt.ArrayLike, sizes: Sequence[int]) -> tuple[float, float]:
    """(value less its jackknife bias, variance of the value) from its values without each group of pictures.

    Delete-m jackknife for groups of unequal size (Busing, Meijer and van der Leeden 1999, equations 6 and 7). The bias
    taken off is that of order 1 / n; the variance is too large rather than too small (Efron and Stein 1981).
    """
    rest = np.asarray(without, np.float64)
    times = sum(sizes) / np.asarray(sizes, np.float64)  # how often each group goes into the whole
    pseudo = times * whole - (times - 1) * rest
    corrected = len(rest) * whole - float(((1 - 1 / times) * rest).sum())
    variance = float(((pseudo - corrected) ** 2 / (times - 1)).mean())
    return corrected, variance


def distance_interval(
    distance: Callable[[FloatArray, FloatArray], float],
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    *,
    corrected: bool = True,
    root: bool = False,
) -> tuple[float, Interval]:
    """(distance of two sets [n, d], 95 % jackknife interval around it), none below 0.

    A distance between samples lies above that of their distributions; ``corrected`` takes off that bias, so that the
    interval is one of the distributions' distance. Not corrected, the value is the plain one and the interval one of
    what is to be expected at this number of pictures. ``root``: the distance is the root of what has a bias of order
    1 / n; its square is corrected. Row i of both sets is left out together, whether or not they belong to one caption:
    pairs of independent rows are independent pairs, and sets of unequal number would be coupled otherwise.
    Raises DataError for fewer than 3 rows and for sets of unequal number.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if len(a) != len(b):
        raise DataError(f"{len(a)} rows cannot be paired with {len(b)}; give sets of equal number")
    if len(a) < 3:
        raise DataError(f"{len(a)} pictures are too few for an interval; measure 3 at least")
    power = 2 if root else 1
    whole = distance(a, b) ** power
    groups = left_out(len(a))
    without = [distance(np.delete(a, rows, axis=0), np.delete(b, rows, axis=0)) ** power for rows in groups]
    mended, variance = jackknife(whole, without, [len(rows) for rows in groups])
    value = mended if corrected else whole
    half = student_95(len(groups) - 1) * math.sqrt(variance)
    mid, low, high = (max(0.0, x) ** (1 / power) for x in (value, value - half, value + half))
    return mid, (low, high)


def set_interval(value: float, without: Sequence[float], sizes: Sequence[int], *, top: float = math.inf) -> Interval:
    """95 % jackknife interval, within 0 and ``top``, around a figure of a set of pictures.

    ``without``: the figure without each group of ``sizes`` pictures. The interval is one of what is to be expected at
    this number of pictures.
    """
    half = student_95(len(sizes) - 1) * math.sqrt(jackknife(value, without, sizes)[1])
    return max(0.0, value - half), min(top, value + half)


def _normal_tail(z: float) -> float:
    """Mass of a normal distribution beyond z."""
    return 0.5 * math.erfc(z / math.sqrt(2))
