"""Figures with all that must be known of them: the interval, the protocol record, and the values behind a mean.

A number cannot be stored without its record: ``Findings`` is the only way into an evaluation.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dalle_model.errors import DataError
from dalle_model.intervals import Interval, mean_interval

if TYPE_CHECKING:
    from dalle_model.features import Features  # its import loads torch, which reading values does not need

OF_SHARES = "95 % Wilson over pictures"
OF_MEANS = "95 % expanded percentile bootstrap (Hesterberg 2015) over pictures, 1000 resamples, Philox seed 0"

# What one picture (or one unseen pair) had in one figure; the figure is the mean of its values.
VALUES = pa.schema(
    [
        pa.field("figure", pa.string(), nullable=False),
        pa.field("unit", pa.string(), nullable=False),  # id of the pair, so that two models pair up
        pa.field("value", pa.float64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Record:
    """What one must know to compute a figure again, and to know with what it may be compared.

    measure: what is computed, and from which publication; "own:" marks this project's own measures.
    features, features_sha256: of the network the pictures went through; "pixels" and "" where none.
    n: units measured. seed: of the drawings. resize: what happened to pictures before. reference: what they are held
    against. interval: how it was made.
    """

    measure: str
    n: int
    reference: str
    features: str = "pixels"
    features_sha256: str = ""
    seed: int = 0
    resize: str = "none"
    interval: str = OF_MEANS


@dataclass
class Findings:
    """Figures by name, with intervals, records and values; ``basis`` has what their records share."""

    basis: Record = Record("", 0, "")
    figures: dict[str, float] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)

    def mean(self, name: str, units: Sequence[str], values: npt.ArrayLike, measure: str, **about: Any) -> None:
        """A figure that is the mean of one value per unit, which are independent. Nothing is stored of no values."""
        given = np.asarray(values, np.float64)
        about.setdefault("interval", OF_SHARES if ((given == 0) | (given == 1)).all() else OF_MEANS)
        self.bounded_mean(name, units, given, mean_interval(given) if len(given) else (0.0, 0.0), measure, **about)

    def bounded_mean(
        self, name: str, units: Sequence[str], values: npt.ArrayLike, bounds: Interval, measure: str, **about: Any
    ) -> None:
        """The same with an interval of its own, for values that depend on each other; ``interval`` says how it was made."""
        given = np.asarray(values, np.float64)
        if len(given) != len(units):
            raise DataError(f"{name}: {len(given)} values for {len(units)} units; give one value each")
        if len(given):
            self.add(name, float(given.mean()), bounds, measure, n=len(given), **about)
            self.values[name] = dict(zip(units, map(_rounded, given.tolist()), strict=True))

    def add(
        self,
        name: str,
        value: float,
        bounds: Interval | None,
        measure: str,
        *,
        on: "Features | None" = None,
        **about: Any,
    ) -> None:
        """A figure with its interval, None where it comes from elsewhere. DataError when not finite or there already."""
        if name in self.figures or not all(map(math.isfinite, (value, *(bounds or ())))):
            raise DataError(
                f"the figure {name} is {value} in {bounds}, or stands twice; this is a defect, please report it"
            )
        if on is not None:
            about |= {"features": on.name, "features_sha256": on.digest}
        # Beyond nine digits, sums of floats depend on the number of threads; the figures must not.
        self.figures[name] = _rounded(value)
        if bounds is None:
            about["interval"] = "none"
        else:
            self.figures[f"{name}_low"], self.figures[f"{name}_high"] = map(_rounded, bounds)
        self.records[name] = replace(self.basis, measure=measure, **about)

    def leave_out(self, what: str) -> None:
        """Say what is not there, and why: the report and the protocol tell it."""
        self.protocol["left_out"] = "; ".join(filter(None, (self.protocol.get("left_out"), what)))

    def names(self) -> list[str]:
        """The figures without the ends of their intervals."""
        return list(self.records)

    def document(self) -> dict[str, Any]:
        """What is stored as JSON."""
        return {
            "metrics": self.figures,
            "protocol": self.protocol,
            "records": {name: asdict(record) for name, record in self.records.items()},
        }

    def table(self) -> bytes:
        """The values behind the means, as Parquet."""
        rows = [(name, unit, value) for name, each in self.values.items() for unit, value in each.items()]
        columns = list(zip(*rows, strict=True)) or [(), (), ()]
        out = io.BytesIO()
        pq.write_table(pa.table([list(c) for c in columns], schema=VALUES), out, compression="zstd")
        return out.getvalue()


def values_of(table: bytes) -> Mapping[str, Mapping[str, float]]:
    """The inverse of ``Findings.table``: figure -> unit -> value."""
    out: dict[str, dict[str, float]] = {}
    columns = pq.read_table(io.BytesIO(table)).to_pydict()
    for figure, unit, value in zip(columns["figure"], columns["unit"], columns["value"], strict=True):
        out.setdefault(figure, {})[unit] = value
    return out


def _rounded(value: float) -> float:
    return float(f"{value:.9g}")
