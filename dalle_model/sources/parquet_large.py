"""Which columns of a Parquet row group are too large to be read as a whole, and their values row by row."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, Self

from dalle_model.decoding import Refused
from dalle_model.sources.captions import text_of
from dalle_model.sources.parquet_pages import Value, page_bytes, readable, values

_TEXTS = ("STRING", "JSON", "ENUM")
LARGE_CHUNK_BYTES = 2**26  # of one column of a row group; pyarrow takes up to six times as much to read it
MOST_UNREADABLE_BYTES = 2**30  # of one in an encoding that only pyarrow reads; the rows of larger ones are refused


class Opens(Protocol):
    """A file, wherever it lies: a path, an object of a bucket, an address of the Hub."""

    def open(self, mode: Literal["rb"], /) -> BinaryIO:
        """A stream that can seek; a context manager."""
        ...


def leaves_of(file: Any, columns: list[str]) -> dict[str, int]:
    """Some columns as they are stored, a struct in parts ("image.bytes"), with their numbers."""
    found = {}
    for number in range(len(file.schema)):
        leaf = file.schema.column(number).path
        if leaf in columns or leaf.partition(".")[0] in columns:
            found[leaf] = number
    return found


def large_of(file: Any, group: int, leaves: Mapping[str, int], path: Opens) -> tuple[str, ...]:
    """The large columns of texts and bytes of a row group. Raises DamagedPage.

    A local file's pages are asked themselves: its index may say anything. Elsewhere that would be a request for each.
    """
    facts, found = file.metadata.row_group(group), []
    with ExitStack() as opened:
        stream = opened.enter_context(path.open("rb")) if isinstance(path, Path) else None
        for leaf, number in leaves.items():
            chunk, column = facts.column(number), file.schema.column(number)
            if chunk.physical_type != "BYTE_ARRAY" or column.max_repetition_level:
                continue
            size = chunk.total_uncompressed_size
            if size <= LARGE_CHUNK_BYTES and stream is not None:
                size = page_bytes(stream, chunk)
            if size > (LARGE_CHUNK_BYTES if readable(chunk) else MOST_UNREADABLE_BYTES):
                found.append(leaf)
    return tuple(found)


class RowsApart:
    """The values of large columns of one row group, a mapping by column for each row. A context manager."""

    def __init__(
        self, file: Any, group: int, leaves: Mapping[str, int], limits: Mapping[str, int], path: Opens
    ) -> None:
        self._opened = ExitStack()
        self._values: dict[str, Iterator[Value]] = {}
        self._whole = set(file.schema_arrow.names)  # a column's own name may hold a dot
        self._texts = {leaf for leaf in limits if file.schema.column(leaves[leaf]).logical_type.type in _TEXTS}
        for leaf, limit in limits.items():
            stream = self._opened.enter_context(path.open("rb"))
            chunk, column = file.metadata.row_group(group).column(leaves[leaf]), file.schema.column(leaves[leaf])
            self._values[leaf] = values(stream, chunk, column.max_definition_level, limit)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def add_to(self, record: dict[str, Any]) -> None:
        """Put the values of the next row into its record, those of a struct's parts into one mapping.

        A text that is no UTF-8 stays bytes, which no check takes for a text.
        """
        for leaf, found in self._values.items():
            value: Any = next(found, None)
            if leaf in self._texts and isinstance(value, bytes):
                value = text_of(value)
            name, _, part = (leaf, "", "") if leaf in self._whole else leaf.partition(".")
            if not part or isinstance(value, Refused):
                record[name] = value
            elif not isinstance(record.get(name), Refused):
                record[name] = {**(record.get(name) or {}), part: value}
