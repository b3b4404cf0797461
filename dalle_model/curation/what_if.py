"""What other thresholds would keep: a scan of stored scores, no picture is opened."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from dalle_model.config import CurateConfig
from dalle_model.curation.rules import Check, checks

FACTORS = (0.5, 0.8, 1.0, 1.25, 2.0)
# Of thresholds that are off or zero, to which factors say nothing: these and the present one.
_ALTERNATIVES = {
    "max_boilerplate": (0.25, 0.5, 0.75),
    "max_mined_boilerplate": (0.25, 0.5, 0.75, 0.99),
    "max_profanity": (1, 2, 1000),
    "max_policy": (1, 2, 1000),
    "max_personal_data": (0, 1, 2),
    "max_blur": (0.4, 0.5, 0.6, 0.7, 0.8),
    "max_text_share": (0.01, 0.02, 0.05, 0.1),
    "max_watermark": (0.3, 0.5, 0.7),
    "min_agreement": (-0.5, 0.0, 0.2, 0.25, 0.28, 0.5, 1.0),
}


@dataclass(frozen=True, slots=True)
class Move:
    """One threshold moved alone, the others as they are. Duplicates and placeholders are not judged again."""

    reason: str
    knob: str
    threshold: float
    kept: int
    gained: int  # rows that come in
    lost: int  # rows that go


def what_if(features: Iterable[pa.Table], config: CurateConfig, factors: tuple[float, ...] = FACTORS) -> list[Move]:
    """Rows kept, gained and lost for each threshold times each factor, in the order of the funnel.

    ``features`` are tables of ``judging.judged``. Thresholds that are off are tried at usual values instead.
    """
    tests = checks(config)
    moved = [_moved(test, factors) for test in tests]
    counts = [np.zeros((len(options), 3), np.int64) for options in moved]
    for table in features:
        scores = [np.asarray(table[test.rule].to_numpy(), np.float64) for test in tests]
        passed = np.stack([test.passed(score) for test, score in zip(tests, scores, strict=True)])
        failures = (~passed).sum(0)
        kept = failures == 0
        for row, options in enumerate(moved):
            others = failures - ~passed[row] == 0
            for column, option in enumerate(options):
                after = others & option.passed(scores[row])
                counts[row][column] += after.sum(), (after & ~kept).sum(), (kept & ~after).sum()
    return [
        Move(option.reason, option.knob, bound_of(option), *map(int, counts[row][column]))
        for row, options in enumerate(moved)
        for column, option in enumerate(options)
    ]


def bound_of(test: Check) -> float:
    """The threshold itself."""
    return test.low if math.isfinite(test.low) else test.high


def _moved(test: Check, factors: tuple[float, ...]) -> list[Check]:
    """The check at other thresholds, in ascending order, its present one among them."""
    bound = bound_of(test)
    values = {bound * factor for factor in factors}
    if test.knob in _ALTERNATIVES and bound in (-1000.0, 0.0, 1.0, 1000.0):
        values = {bound, *map(float, _ALTERNATIVES[test.knob])}
    low = math.isfinite(test.low)
    return [replace(test, low=value) if low else replace(test, high=value) for value in sorted(values)]
