"""Metadata lines of unknown quality (JSON lines, CSV) -> one record per line, or the reason why it is none.

One line stays one record whatever stands in it: a line that is none is an outcome, not an exception.
"""

import csv
import math
import re
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO

from dalle_model.decoding import Reason, Refused
from dalle_model.sources.json_records import buffered, encoding_of, json_records, text_stream
from dalle_model.sources.remote import AnyPath
from dalle_model.sources.unpacking import DAMAGED_GZ, damaged_gz, kind_of, unpacked

MAX_LINE_BYTES = 1_000_000
CAPTION_COLUMNS = ("text", "caption", "prompt", "title")
_SEPARATOR = re.compile(r'"?sep=([,;|\t])"?\s*$', re.IGNORECASE)
_KEPT_CHARS = 500  # of a value that is carried along in `extra`
_EXTRA_CHARS = 20_000  # of all names and values there: a line may hold a hundred thousand


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its number from 1 and its record."""

    number: int
    record: dict[str, Any] | Refused


def read_lines(path: AnyPath) -> Iterator[Line]:
    """Records of a .jsonl (or .json), .csv or .tsv file, streamed; with .gz, .bz2, .xz or .zst behind its name it is unpacked on the way.

    One that is cut off or damaged ends with a refused line that says so.
    """
    kind = kind_of(path.name)
    number = 0
    with path.open("rb") as stream, unpacked(stream, path.name) as plain:
        try:
            if kind in ("csv", "tsv"):
                lines = _csv_lines(plain, tabs=kind == "tsv")
            else:
                lines = (Line(*found) for found in json_records(plain, MAX_LINE_BYTES))
            for line in lines:
                number = line.number
                yield line
        except DAMAGED_GZ as error:
            yield Line(number + 1, damaged_gz(number, error))


def count_lines(path: AnyPath) -> int:
    """Lines of a file, of a damaged .gz those before the damage; for progress bars, so the header and blank lines do not matter."""
    found = 0
    with path.open("rb") as stream, unpacked(stream, path.name) as plain, suppress(*DAMAGED_GZ):
        for block in iter(lambda: plain.read(1 << 20), b""):
            found += block.count(b"\n")
    return found


def lowered(record: dict[str, Any]) -> dict[str, Any]:
    """A record also by the small letters of its names: headings are often capitals. A name as it is written comes first."""
    return {name.lower(): value for name, value in record.items()} | record


def first_of(fields: dict[str, Any], wanted: str, usual: Sequence[str]) -> Any:
    """The value of the column ``wanted``, or of the first of the usual names, in ``lowered`` fields. None when there is none."""
    return next((fields[name] for name in ((wanted, wanted.lower()) if wanted else usual) if name in fields), None)


def caption_in(record: dict[str, Any], column: str) -> Any:
    """The caption of a record: ``column``, or the first of the usual names, small or capital. None when there is none."""
    return first_of(lowered(record), column, CAPTION_COLUMNS)


def extra_in(record: dict[str, Any], used: Set[str]) -> dict[str, Any]:
    """Short plain values of a record that have no column of their own, as far as there is room for them."""
    kept: dict[str, Any] = {}
    room = _EXTRA_CHARS
    for name, value in record.items():
        number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
        plain = number or (isinstance(value, str) and len(value) <= _KEPT_CHARS)
        if isinstance(name, str) and plain and name not in used and name.lower() not in used:
            room -= len(name) + (len(value) if isinstance(value, str) else 20)
            if room < 0:
                break
            kept[name] = value
    return kept


def _csv_lines(stream: BinaryIO, tabs: bool) -> Iterator[Line]:
    csv.field_size_limit(MAX_LINE_BYTES)
    start = buffered(stream)
    text = text_stream(start, encoding_of(start.peek(2)))
    at_end = False
    first_line = next(text, "")
    said = _SEPARATOR.match(first_line)
    if said:  # a line of its own by which spreadsheets say what they put for a comma
        first_line = next(text, "")

    def lines() -> Iterator[str]:
        nonlocal at_end
        yield from chain(["\n"] if said else [], [first_line] if first_line else [], text)
        at_end = True

    mark = "\t" if tabs else delimiter_of(first_line)
    header: list[str] | None = None
    doublet = ""
    for first, last, cells in csv_rows(lines(), said[1] if said else mark):
        if isinstance(cells, csv.Error):
            yield Line(last, Refused(Reason.BAD_METADATA, f"CSV: {cells}"))
            continue
        if at_end:  # more lines were asked for inside a row: the csv module would take all that follows for one cell
            words = f"a quote that opens in line {first} is never closed, so the lines to {last} are one cell; close it"
            yield Line(last, Refused(Reason.BAD_METADATA, f"CSV: {words}"))
            return
        if not cells:
            continue
        if header is None and not any(cell.startswith(("http://", "https://")) for cell in cells):
            header = [cell.strip() for cell in cells]
            doublet = next((name for name in header if name and header.count(name) > 1), "")
            continue
        if header is None:  # a list of URLs without headings, as Conceptual Captions has it
            header = _headings_of(cells)
        if doublet:  # as in JSON: two readers may train on different captions
            words = f"the heading {doublet[:_KEPT_CHARS]!r} stands twice; leave one"
            yield Line(last, Refused(Reason.BAD_METADATA, f"CSV: {words}"))
        elif len(cells) == len(header):
            yield Line(last, dict(zip(header, cells, strict=True)))
        else:
            yield Line(last, Refused(Reason.BAD_METADATA, f"{len(cells)} cells under {len(header)} headings"))


def csv_rows(
    lines: Iterable[str], delimiter: str, *, strict: bool = False
) -> Iterator[tuple[int, int, list[str] | csv.Error]]:
    """Rows of a table with their first and last line, from 1: the cells, or why they cannot be read; the next rows follow.

    strict: a quote that is out of place is an error, and spaces behind a delimiter do not count.
    """
    reader = csv.reader(lines, delimiter=delimiter, strict=strict, skipinitialspace=strict)
    while True:
        first = reader.line_num + 1
        cells: list[str] | csv.Error
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            cells = error
        yield first, reader.line_num, cells


def delimiter_of(headings: str) -> str:
    """A comma; or what spreadsheets write in its place, where the headings have that and no comma. Addresses may hold a ;."""
    if "," in headings:
        return ","
    return next((c for c in ("\t" if "://" in headings else ";\t") if c in headings), ",")


def _headings_of(cells: list[str]) -> list[str]:
    url = next(n for n, cell in enumerate(cells) if cell.startswith(("http://", "https://")))
    rest = iter(["text", *(f"column {n}" for n in range(2, len(cells)))])
    return ["url" if n == url else next(rest) for n in range(len(cells))]
