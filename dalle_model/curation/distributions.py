"""How the scores of a set are spread: counts in fixed bins, so that memory does not grow with the rows."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dalle_model.config import CurateConfig
from dalle_model.curation.rules import Check, Rule, checks, rules_of

Edges = npt.NDArray[np.float64]

_SHARES = np.linspace(0, 1, 41)
_COUNTS = np.arange(-0.5, 11, 1)
_EDGES: dict[str, Edges] = {
    "side_px": 2.0 ** np.arange(2, 14.5, 0.5),
    "aspect": np.geomspace(1, 10, 41),
    "caption_words": np.arange(-0.5, 41, 1),
    "caption_chars": np.geomspace(1, 4096, 41),
    "entropy_bits": np.linspace(0, 8, 41),
    "profanity": _COUNTS,
    "policy": _COUNTS,
    "personal_data": _COUNTS,
    "agreement": np.concatenate([np.linspace(-0.5, 0.5, 31), np.linspace(0.6, 8, 20)]),  # cosines are fine, nats coarse
}


@dataclass
class Distribution:
    """Counts of a rule's scores per bin, of all rows and of the kept ones; ``silent`` rows have no score."""

    rule: Rule
    tests: tuple[Check, ...]  # those that judge this rule's score
    edges: Edges
    every: npt.NDArray[np.int64]
    kept: npt.NDArray[np.int64]
    silent: int = 0
    failed: int = 0  # rows that fail one of ``tests``, also where an earlier rule had rejected them

    def add(self, scores: npt.NDArray[np.float64], kept: npt.NDArray[np.bool_]) -> None:
        """Count the scores of some rows. What lies beyond the edges is counted in the outermost bins."""
        there = ~np.isnan(scores)
        self.silent += int((~there).sum())
        if self.tests:
            self.failed += int((~np.all([test.passed(scores) for test in self.tests], axis=0)).sum())
        bins = np.clip(np.searchsorted(self.edges, scores[there], "right") - 1, 0, len(self.every) - 1)
        self.every += np.bincount(bins, minlength=len(self.every))
        self.kept += np.bincount(bins[kept[there]], minlength=len(self.every))

    def place(self, value: float) -> float:
        """Where a value stands between the outer edges, 0..1, with bins drawn equally wide."""
        return float(np.interp(value, self.edges, np.linspace(0, 1, len(self.edges))))

    @cached_property
    def total(self) -> int:
        """Rows with a score."""
        return int(self.every.sum())


class Distributions:
    """The distributions of all rules of a config."""

    def __init__(self, config: CurateConfig) -> None:
        tests = checks(config)
        self.by_rule = {
            rule.name: _empty(rule, tuple(test for test in tests if test.rule == rule.name))
            for rule in rules_of(config)
        }

    def add(self, table: pa.Table, kept: npt.NDArray[np.bool_]) -> None:
        """Count a table of ``judging.judged``; ``kept`` [R] is the verdict of each row."""
        for name, distribution in self.by_rule.items():
            distribution.add(np.asarray(table[name].to_numpy(), np.float64), kept)


def _empty(rule: Rule, tests: tuple[Check, ...]) -> Distribution:
    edges = _EDGES.get(rule.name, _SHARES)
    bins = len(edges) - 1
    return Distribution(rule, tests, edges, np.zeros(bins, np.int64), np.zeros(bins, np.int64))
