"""What the report of a curation counts and picks while the rows pass by once more: memory is that of the report."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dalle_model.config import CurateConfig
from dalle_model.curation.distributions import Distributions
from dalle_model.curation.rules import Check
from dalle_model.curation.selection import REMOVED, Selection

PER_REASON = 24
PER_RULE = 12
_MOST_VALUES = 200  # of a licence, source or language that is counted by name: strangers may name any number

Counts = dict[str, list[int]]  # value -> [rows, kept rows]


@dataclass(frozen=True, slots=True, order=True)
class Extreme:
    """A row at the far end of a rule's scores, rejected or not."""

    rank: float  # the smaller the further out
    row: int
    score: float
    kept: bool


@dataclass
class Tally:
    """Counts over all rows of a curation, and the rows that its report shows."""

    config: CurateConfig
    selection: Selection
    sources: Counts = field(default_factory=dict)
    licences: Counts = field(default_factory=dict)
    languages: Counts = field(default_factory=dict)
    personal: Counter[str] = field(default_factory=Counter)  # findings by kind
    masked_rows: int = 0
    extremes: dict[str, list[Extreme]] = field(default_factory=dict)
    scores_of: dict[int, float] = field(default_factory=dict)  # of the rejected rows that are shown
    _first: int = 0

    def __post_init__(self) -> None:
        self.distributions = Distributions(self.config)
        self.rejected = {
            test.reason: spread(np.flatnonzero(self.selection.verdict == number), PER_REASON)
            for number, test in enumerate(self.selection.tests, start=1)
            if test.rule != REMOVED.rule  # what was withdrawn is shown to nobody
        }
        self.kept = spread(np.flatnonzero(self.selection.kept), 2 * PER_REASON)
        removed = [n for n, test in enumerate(self.selection.tests, start=1) if test.rule == REMOVED.rule]
        self._hidden = np.isin(self.selection.verdict, removed)
        self._shown = {row for rows in self.rejected.values() for row in rows}

    def add(self, table: pa.Table) -> None:
        """Count the next table of ``judging.judged``, in the order of the selection."""
        first, end = self._first, self._first + table.num_rows
        self._first = end
        kept = self.selection.kept[first:end]
        self.distributions.add(table, kept)
        for counts, name in ((self.sources, "source"), (self.licences, "licence"), (self.languages, "language")):
            _count(counts, table[name].to_pylist(), kept)
        found = [kinds.split(" ") for kinds in table["personal_kinds"].to_pylist() if kinds]
        self.personal.update(kind for kinds in found for kind in kinds)
        self.masked_rows += len(found) if self.config.mask_personal_data else 0
        for distribution in self.distributions.by_rule.values():
            for test in distribution.tests:
                self._keep_extremes(test, np.asarray(table[test.rule].to_numpy(), np.float64), first)
        for row in self._shown:
            if first <= row < end:
                test = self.selection.tests[self.selection.verdict[row] - 1]
                if test.rule in self.distributions.by_rule:
                    self.scores_of[row] = float(table[test.rule][row - first].as_py())

    def _keep_extremes(self, test: Check, scores: npt.NDArray[np.float64], first: int) -> None:
        """The rows that this test would reject first if its threshold moved."""
        outward = scores if np.isfinite(test.low) else -scores
        outward = np.where(self._hidden[first : first + len(scores)], np.nan, outward)
        best = np.argsort(outward, kind="stable")[:PER_RULE]
        found = [
            Extreme(float(outward[i]), first + int(i), float(scores[i]), bool(self.selection.kept[first + i]))
            for i in best.tolist()
            if not np.isnan(outward[i])
        ]
        self.extremes[test.reason] = sorted([*self.extremes.get(test.reason, []), *found])[:PER_RULE]

    def stats(self) -> dict[str, Any]:
        """What goes into the manifest's stats: small tables by name."""
        tables = {"licences": self.licences, "languages": self.languages, "sources": self.sources}
        kept = {name: {value: counts[1] for value, counts in ranked(table)[:20]} for name, table in tables.items()}
        return kept | {"personal_data": dict(sorted(self.personal.items())), "masked_captions": self.masked_rows}


def ranked(counts: Counts) -> list[tuple[str, list[int]]]:
    """Most rows first."""
    return sorted(counts.items(), key=lambda item: (-item[1][0], item[0]))


def spread(rows: npt.NDArray[np.int64], count: int) -> list[int]:
    """At most ``count`` of the rows, evenly over all."""
    count = min(count, len(rows))
    return [int(rows[i * len(rows) // count]) for i in range(count)]


def _count(counts: Counts, values: list[str], kept: npt.NDArray[np.bool_]) -> None:
    for value, there in zip(values, kept.tolist(), strict=True):
        name = value if value in counts or len(counts) < _MOST_VALUES else "(others)"
        entry = counts.setdefault(name, [0, 0])
        entry[0] += 1
        entry[1] += there
