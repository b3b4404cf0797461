"""Are two models different on the same prompts and seeds? Paired bootstrap and exact sign test.

Pairing takes out how hard each prompt is, which is most of the scatter; so far fewer pictures show a difference than
two separate intervals would.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from dalle_model.errors import DataError

Better = Literal["higher", "lower"]
Verdict = Literal["better", "worse", "no difference shown"]
LEAST_PAIRS = 8  # with fewer, the exact test cannot reach 0.05 but by unanimity
ALPHA = 0.05


@dataclass(frozen=True)
class PairedDifference:
    """Second model less the first over ``pairs`` equal prompts.

    low, high: 95 % percentile bootstrap interval of the mean difference (Efron 1979), prompts being drawn.
    wins, losses: pairs on which the second is better or worse; the rest are ties.
    sign_p: two-sided exact sign test on them (for shares of 0 and 1 it is McNemar's exact test).
    verdict: of the second model; a difference counts when interval and test agree on it.
    """

    pairs: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    wins: int
    losses: int
    sign_p: float
    verdict: Verdict


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p of a fair coin showing a split at least as uneven: exact, ties left out (Dixon and Mood 1946)."""
    n = wins + losses
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1))
    return float(min(1.0, 2 * tail / 2**n))


def compare_paired(
    first: npt.ArrayLike, second: npt.ArrayLike, better: Better, *, resamples: int = 2000, seed: int = 0
) -> PairedDifference:
    """Values [n] of two models on the same n prompts. DataError when they do not pair up or are too few."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise DataError(f"values of shapes {list(a.shape)} and {list(b.shape)} do not pair up; give one per prompt")
    if len(a) < LEAST_PAIRS:
        raise DataError(f"{len(a)} prompts in common are too few to compare on; {LEAST_PAIRS} are needed")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise DataError("values hold numbers that are not finite; evaluate both models again")
    change = b - a
    draws = np.random.Generator(np.random.Philox(seed)).integers(0, len(a), (resamples, len(a)))
    low, high = (float(x) for x in np.quantile(change[draws].mean(axis=1), [ALPHA / 2, 1 - ALPHA / 2]))
    gain = change if better == "higher" else -change
    wins, losses = int((gain > 0).sum()), int((gain < 0).sum())
    p = sign_test(wins, losses)
    verdict: Verdict = "no difference shown"
    if p < ALPHA and (low > 0 or high < 0) and (gain.mean() > 0) == (wins > losses):
        verdict = "better" if gain.mean() > 0 else "worse"
    return PairedDifference(
        len(a), float(a.mean()), float(b.mean()), float(change.mean()), low, high, wins, losses, p, verdict
    )


def pair_up(
    first: Mapping[str, float], second: Mapping[str, float]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Values of the units that both have, in the order of their names -> two float64 [n]."""
    both = sorted(first.keys() & second.keys())
    return np.array([first[unit] for unit in both]), np.array([second[unit] for unit in both])
