"""Metadata lines of unknown quality (JSON lines, CSV) -> one record per line, or the reason why it is none.

One line stays one record whatever stands in it: a line that is none is an outcome, not an exception.
"""

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Set
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO, cast

import pyarrow as pa

from dalle_model.decoding import Reason, Refused
from dalle_model.sources.remote import AnyPath

MAX_LINE_BYTES = 1_000_000
CAPTION_COLUMNS = ("text", "caption", "prompt", "title")
DAMAGED_GZ = (EOFError, zlib.error, gzip.BadGzipFile)
_PACKED = re.compile(r"\.(?:gz|bz2|xz|zst)$")
_KEPT_CHARS = 500  # of a value that is carried along in `extra`
_EXTRA_CHARS = 20_000  # of all names and values there: a line may hold a hundred thousand


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its number from 1 and its record."""

    number: int
    record: dict[str, Any] | Refused


def read_lines(path: AnyPath) -> Iterator[Line]:
    """Records of a .jsonl, .csv or .tsv file, streamed; with .gz, .bz2, .xz or .zst behind its name it is unpacked on the way.

    One that is cut off or damaged ends with a refused line that says so.
    """
    kind = kind_of(path.name)
    number = 0
    with path.open("rb") as stream, unpacked(stream, path.name) as plain:
        try:
            lines = _csv_lines(plain, tabs=kind == "tsv") if kind in ("csv", "tsv") else _json_lines(plain)
            for line in lines:
                number = line.number
                yield line
        except DAMAGED_GZ as error:
            yield Line(number + 1, damaged_gz(number, error))


def damaged_gz(lines: int, error: BaseException) -> Refused:
    """The row that stands for what is lost of a .gz after some lines."""
    words = f"the file is cut off or damaged after line {lines} ({type(error).__name__})"
    return Refused(Reason.UNREADABLE_FILE, f"{words}: what follows is lost; fetch or write it again")


def kind_of(name: str) -> str:
    """The kind of a file by its name, small letters, without a .gz or the like behind it: "csv" of "list.CSV.gz"."""
    return _PACKED.sub("", name.lower()).rpartition(".")[2]


def unpacked(stream: BinaryIO, name: str) -> AbstractContextManager[BinaryIO]:
    """The stream itself, or what a .gz, .bz2, .xz or .zst unpacks to."""
    kind = name.lower().rpartition(".")[2]
    found: Any
    if kind == "gz":
        found = gzip.GzipFile(fileobj=stream, mode="rb")
    elif kind == "bz2":
        found = io.BufferedReader(_Unpacking(bz2.BZ2File(stream)))
    elif kind == "xz":
        found = io.BufferedReader(_Unpacking(lzma.LZMAFile(stream)))  # noqa: SIM115 - the caller closes it
    elif kind == "zst":
        found = io.BufferedReader(_Unpacking(pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd")))
    else:
        return nullcontext(stream)
    return cast(AbstractContextManager[BinaryIO], found)


def is_packed(name: str) -> bool:
    """Whether a file is unpacked on the way, by its name."""
    return _PACKED.search(name.lower()) is not None


class _Unpacking(io.RawIOBase):
    """What a packed stream holds; every library's word for damage is an EOFError here."""

    def __init__(self, packed: Any) -> None:
        self._packed = packed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._packed.read(len(buffer))
        except (lzma.LZMAError, pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno:  # the disk's or the network's
                raise
            raise EOFError(str(error)) from error
        buffer[: len(data)] = data
        return len(data)


def count_lines(path: AnyPath) -> int:
    """Lines of a file, of a damaged .gz those before the damage; for progress bars, so the header and blank lines do not matter."""
    found = 0
    with path.open("rb") as stream, unpacked(stream, path.name) as plain, suppress(*DAMAGED_GZ):
        for block in iter(lambda: plain.read(1 << 20), b""):
            found += block.count(b"\n")
    return found


def caption_in(record: dict[str, Any], column: str) -> Any:
    """The caption of a record: ``column``, or the first of the usual names. None when there is none."""
    for name in (column,) if column else CAPTION_COLUMNS:
        if name in record:
            return record[name]
    return None


def extra_in(record: dict[str, Any], used: Set[str]) -> dict[str, Any]:
    """Short plain values of a record that have no column of their own, as far as there is room for them."""
    kept: dict[str, Any] = {}
    room = _EXTRA_CHARS
    for name, value in record.items():
        number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
        plain = number or (isinstance(value, str) and len(value) <= _KEPT_CHARS)
        if isinstance(name, str) and name not in used and plain:
            room -= len(name) + (len(value) if isinstance(value, str) else 20)
            if room < 0:
                break
            kept[name] = value
    return kept


def _json_lines(stream: BinaryIO) -> Iterator[Line]:
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                continue
            yield Line(number, Refused(Reason.BAD_METADATA, f"line of more than {MAX_LINE_BYTES} bytes"))
        elif line.strip():
            yield Line(number, json_record(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line))


def json_record(line: bytes) -> dict[str, Any] | Refused:
    """The object that a JSON text of unknown quality holds, or why it holds none."""
    try:
        record = _DECODER.decode(line.decode())
    except (ValueError, RecursionError) as error:  # covers bad UTF-8, bad JSON, doublets, too deep nesting
        return Refused(Reason.BAD_METADATA, f"{type(error).__name__}: {error}"[:200])
    return (
        record
        if isinstance(record, dict)
        else Refused(Reason.BAD_METADATA, f"a JSON {type(record).__name__}, not an object")
    )


def _no_doublets(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        # JSON leaves open which value counts, so two readers may train on different captions.
        raise ValueError("the same key stands twice in one object")
    return record


_DECODER = json.JSONDecoder(object_pairs_hook=_no_doublets)


def _csv_lines(stream: BinaryIO, tabs: bool) -> Iterator[Line]:
    csv.field_size_limit(MAX_LINE_BYTES)
    start = io.BufferedReader(stream)  # type: ignore[type-var]  # what gzip gives reads as well
    if start.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):  # a spreadsheet's "Unicode text"
        text = io.TextIOWrapper(start, "utf-16", errors="replace", newline="")
    else:
        # surrogateescape: bad UTF-8 in one cell must not end the file; the caption check refuses lone surrogates.
        text = io.TextIOWrapper(start, "utf-8-sig", errors="surrogateescape", newline="")
    at_end = False
    first_line = next(text, "")

    def lines() -> Iterator[str]:
        nonlocal at_end
        yield from chain([first_line] if first_line else [], text)
        at_end = True

    header: list[str] | None = None
    doublet = ""
    for first, last, cells in csv_rows(lines(), "\t" if tabs else delimiter_of(first_line)):
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
