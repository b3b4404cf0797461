"""What other thresholds would keep: a scan of stored scores, no picture is opened."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from dalle_model.config import CurateConfig
from dalle_model.curation.rules import Check, checks

FACTORS = (0.5, 0.8, 1.0, 1.25, 2.0)


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
    """Rows kept, gained and lost for each threshold times each factor, in the order of the funnel."""
    tests = checks(config)
    moved = [[_times(test, factor) for factor in factors] for test in tests]
    counts = np.zeros((len(tests), len(factors), 3), np.int64)
    for table in features:
        scores = [np.asarray(table[test.rule].to_numpy(), np.float64) for test in tests]
        passed = np.stack([test.passed(score) for test, score in zip(tests, scores, strict=True)])
        failures = (~passed).sum(0)
        kept = failures == 0
        for row, options in enumerate(moved):
            others = failures - ~passed[row] == 0
            for column, option in enumerate(options):
                after = others & option.passed(scores[row])
                counts[row, column] += after.sum(), (after & ~kept).sum(), (kept & ~after).sum()
    return [
        Move(option.reason, option.knob, _bound(option), *map(int, counts[row, column]))
        for row, options in enumerate(moved)
        for column, option in enumerate(options)
    ]


def _bound(test: Check) -> float:
    return test.low if np.isfinite(test.low) else test.high


def _times(test: Check, factor: float) -> Check:
    return replace(test, low=test.low * factor, high=test.high * factor)
