"""The metadata files of a folder of pictures: which there are, and their records."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dalle_model.decoding import Refused
from dalle_model.errors import SourceError
from dalle_model.sources.base import inside, named_below, regular
from dalle_model.sources.metadata import MAX_LINE_BYTES, Line, count_lines, read_lines
from dalle_model.sources.parquet_pages import DamagedPage
from dalle_model.sources.parquet_records import is_bytes, is_list, records_of
from dalle_model.sources.remote import AnyPath
from dalle_model.sources.unpacking import kind_of

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_BATCH_ROWS = 1024


def metadata_in(root: AnyPath) -> list[AnyPath]:
    """The metadata files below a folder, in order. SourceError for two in one folder, and for a link that leads out of ``root``."""
    found = named_below(root, METADATA_NAMES)
    folders: dict[str, AnyPath] = {}
    for path in found:
        other = folders.setdefault(str(path.parent), path)
        if other is not path:
            raise SourceError(
                f"{path.parent} has both {other.name} and {path.name}: the pictures of both would be taken twice; keep one of them"
            )
        if isinstance(path, Path) and path.is_symlink() and isinstance(inside(root, path.parent, path.name), Refused):
            raise SourceError(f"{path} is a link that leads out of {root}; put a copy of the file there")
    return found


def read_records(path: AnyPath) -> Iterator[Line]:
    """The records of a metadata file. SourceError for a Parquet file that is damaged."""
    if kind_of(path.name) != "parquet":
        yield from read_lines(path)
        return
    with _table(path) as table:
        columns = [field.name for field in table.schema_arrow if _is_plain(field.type)]
        found = records_of(
            table, range(table.num_row_groups), path, columns, lambda _: MAX_LINE_BYTES, batch_rows=_BATCH_ROWS
        )
        for number, record in enumerate(found, 1):
            yield Line(number, record)


def count_records(path: AnyPath) -> int:
    """Records of a metadata file, about: for progress bars."""
    if kind_of(path.name) != "parquet":
        return count_lines(path)
    with _table(path) as table:
        return int(table.metadata.num_rows)


@contextmanager
def _table(path: AnyPath) -> Iterator[Any]:
    try:
        with regular(path).open("rb") as stream, pq.ParquetFile(stream) as table:
            yield table
    except (pa.ArrowException, OSError, DamagedPage) as error:
        words = (str(error).splitlines() or [""])[0][:200]
        raise SourceError(f"{path} is damaged ({words}); write it again or leave it out") from error


def _is_plain(kind: pa.DataType) -> bool:
    """Texts, numbers, lists of captions: other bytes and nested values are nothing that a row carries along."""
    return is_list(kind) or not (pa.types.is_nested(kind) or is_bytes(kind))
