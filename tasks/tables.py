"""Parquet files built row by row in the spool, with memory bounded by bytes and not by rows."""

from operator import itemgetter
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

_FLUSH_BYTES = 32_000_000
_FLUSH_ROWS = 16_384
_TEXT_CHARS = 1000


def storable(text: str, limit: int = _TEXT_CHARS) -> str:
    """A text that UTF-8 can hold, cut to ``limit`` characters: names of files may be any bytes."""
    return text[:limit] if text.isascii() else text[:limit].encode(errors="backslashreplace").decode()


class TableFile:
    """One Parquet file: ``add`` rows, then ``finish``. Left without ``finish`` it removes itself.

    Row groups end after a number of rows or bytes, so equal rows give an equal file.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.rows = 0
        self._schema = schema
        self._rows: list[dict[str, Any]] = []
        sized = [f.name for f in schema if f.type in (pa.binary(), pa.string())]
        self._sized = itemgetter(*sized, *sized[:1]) if sized else lambda row: ()  # two names at least: then a tuple
        self._bytes = 0
        # Encoded pictures do not shrink and their dictionary would only cost time.
        packed = [f.name for f in schema if f.type != pa.binary()]
        self._writer = pq.ParquetWriter(
            path,
            schema,
            compression={n: "zstd" if n in packed else "none" for n in schema.names},
            use_dictionary=packed,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer.is_open:
            self._writer.close()
        self.path.unlink(missing_ok=True)

    def add(self, row: dict[str, Any]) -> None:
        """Append one row: a value for each column of the schema."""
        self._rows.append(row)
        self._bytes += sum(map(len, filter(None, self._sized(row)[:-1])))
        self.rows += 1
        if self._bytes >= _FLUSH_BYTES or len(self._rows) >= _FLUSH_ROWS:
            self._flush()

    def add_table(self, table: pa.Table) -> None:
        """Append a table of the same schema as one row group."""
        self._flush()
        self._writer.write_table(table.cast(self._schema), row_group_size=max(table.num_rows, 1))
        self.rows += table.num_rows

    def finish(self) -> Path:
        """Close the file and return it; it stays until the ``with`` block ends."""
        self._flush()
        self._writer.close()
        return self.path

    def _flush(self) -> None:
        if self._rows:
            columns = {name: [row[name] for row in self._rows] for name in self._schema.names}
            self._writer.write_table(pa.table(columns, schema=self._schema))
            self._rows, self._bytes = [], 0
