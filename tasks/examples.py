"""The drawings that say most about a model, kept beside its report: those that fail, and those nearest to training.

The report is one HTML file for a browser; whoever shows an evaluation elsewhere finds the same pictures here.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.curves import number
from tasks.pages import Neighbour, ReportData, Sheet

ROLE = "examples"
FAILS, COPIES = "fails", "copies"

# One caption of a section with its pictures, in the order in which they are shown.
EXAMPLE = pa.schema(
    [
        pa.field("section", pa.string(), nullable=False),  # FAILS or COPIES
        pa.field("caption", pa.string(), nullable=False),
        pa.field("note", pa.string(), nullable=False),
        pa.field("labels", pa.list_(pa.string()), nullable=False),  # one per picture: real, tokenizer, drawn
        pa.field("pictures", pa.list_(pa.binary()), nullable=False),  # PNG
    ]
)


@dataclass(frozen=True)
class Example:
    """A row of the table."""

    section: str
    caption: str
    note: str
    labels: Sequence[str]
    pictures: Sequence[bytes]


def examples_table(data: ReportData) -> bytes:
    """The report's worst drawings and those nearest to a training picture, as Parquet with ``EXAMPLE``'s columns."""
    out = io.BytesIO()
    rows = [vars(row) for row in (*_failing(data.worst), *map(_beside_training, data.neighbours))]
    pq.write_table(pa.Table.from_pylist(rows, schema=EXAMPLE), out, compression="zstd")
    return out.getvalue()


def read_examples(data: bytes) -> list[Example]:
    """The rows of such a table in its order. Raises pyarrow.ArrowInvalid for other bytes."""
    return [Example(**row) for row in pq.read_table(io.BytesIO(data), schema=EXAMPLE).to_pylist()]


def _failing(worst: Sheet | None) -> Iterable[Example]:
    for sample in worst.samples if worst else ():
        yield Example(
            FAILS, sample.caption, sample.note, [p.label for p in sample.pictures], [p.image for p in sample.pictures]
        )


def _beside_training(near: Neighbour) -> Example:
    """A note in words: what is near, whether it is a copy, how near."""
    verdict = "a copy" if near.copied else "no copy"
    parts = [f"nearest to {near.nearest_caption!r}", verdict, f"distance {number(near.distance)}", near.note]
    note = "; ".join(part for part in parts if part)
    return Example(COPIES, near.caption, note, ["drawn", "nearest in training"], [near.generated, near.nearest])
