"""The rows of a Parquet file by column, with bounds: a column that is large in a row group is read page by page."""

from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import groupby
from typing import Any

import pyarrow as pa

from dalle_model.decoding import Reason, Refused
from dalle_model.sources.parquet_large import Opens, RowsApart, large_of, leaves_of

_GROUPS = 16  # row groups that are looked at before they are read
_BATCH_ROWS = 32  # pictures may be large, and a batch is in memory at once


def records_of(
    file: Any,
    groups: Iterable[int],
    path: Opens,
    columns: list[str],
    limit_of: Callable[[str], int],
    *,
    batch_rows: int = _BATCH_ROWS,
    start: int = 0,
) -> Iterator[dict[str, Any]]:
    """The rows of some row groups of an open ``pyarrow.parquet.ParquetFile``, from a row on, as values by column.

    path: where the file is, opened once more for large columns. limit_of: bytes that a value of a column ("image", or
    "image.bytes" of a struct) may have there; a larger one is a Refused. batch_rows: rows in memory at once.
    Raises ArrowException, OSError and DamagedPage for what cannot be read.
    """
    leaves = leaves_of(file, columns)
    for (large, _), some in groupby(groups, lambda g: (large_of(file, g, leaves, path), g // _GROUPS)):
        if not large:
            batches = file.iter_batches(batch_rows, row_groups=list(some), columns=columns)
            start = yield from _rows_of(batches, start, None)
            continue
        small = [leaf for leaf in leaves if leaf not in large]
        for group in some:
            with RowsApart(file, group, leaves, {leaf: limit_of(leaf) for leaf in large}, path) as apart:
                batches = file.iter_batches(batch_rows, row_groups=[group], columns=small)
                start = yield from _rows_of(batches, start, apart)


def groups_from(file: Any, start: int) -> tuple[list[int], int]:
    """Row groups that hold rows from ``start`` on, and the rows of those left out."""
    skipped = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if skipped + rows > start:
            return list(range(group, file.num_row_groups)), skipped
        skipped += rows
    return [], skipped


def used_fields(schema: pa.Schema, caption: str, image: str) -> list[str]:
    """The columns that a row is made of: other bytes and nested values are nothing that it carries along."""
    return [
        field.name
        for field in schema
        if field.name in (caption, image) or not (pa.types.is_nested(field.type) or is_bytes(field.type))
    ]


def limit_for(image: str, of_pictures: int, of_others: int) -> Callable[[str], int]:
    """Bytes that a cell may have, by its column: a picture's (perhaps a struct's part), or any other's."""
    return lambda leaf: of_pictures if leaf == image or leaf.startswith(image + ".") else of_others


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a column holds bytes that nobody called text."""
    types = pa.types
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or types.is_binary_view(kind)
    )


def is_list(kind: pa.DataType) -> bool:
    """Whether a cell of a column is a list."""
    types = pa.types
    return bool(
        types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) or types.is_list_view(kind)
    )


def _rows_of(
    batches: Iterable[pa.RecordBatch], start: int, apart: RowsApart | None
) -> Generator[dict[str, Any], None, int]:
    """The rows of batches from number ``start`` on, with what is read apart from them. Returns what is left to skip."""
    for batch in batches:
        first = min(start, batch.num_rows)
        start -= first
        names = batch.schema.names
        for row in range(0 if apart else first, batch.num_rows):
            record = {} if row < first else {n: _value(c[row]) for n, c in zip(names, batch.columns, strict=True)}
            if apart:
                apart.add_to(record)
            if row >= first:
                yield record
    return start


def value_within(scalar: Any, limit: int) -> Any:
    """The value of an Arrow scalar; a Refused where its texts and bytes are more than ``limit``, which are not copied then."""
    size = _bytes_of(scalar)
    if size > limit:
        return Refused(Reason.TOO_MANY_BYTES, f"{size} bytes, the limit is {limit}", size)
    return _value(scalar)


def _bytes_of(scalar: Any) -> int:
    if not scalar.is_valid:
        return 0
    if isinstance(scalar, pa.BinaryScalar):
        return int(scalar.as_buffer().size)
    if isinstance(scalar, pa.StructScalar):
        return sum(map(_bytes_of, scalar.values()))
    return int(scalar.values.nbytes) if isinstance(scalar, pa.ListScalar) else 0


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except (UnicodeDecodeError, ValueError, OverflowError):
        # Parquet does not check that a string is UTF-8; the caption check refuses what is no text.
        return b"\xff"
