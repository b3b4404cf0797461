"""Parquet files of a Hugging Face data set, without the library that would read each row group as a whole.

``datasets`` says which files a split has; their rows are read with the bounds of ``parquet_records``, and a row to start
from is found by the index of each file, where the library would read all rows before it.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from dalle_model.errors import SourceError
from dalle_model.sources.metadata import MAX_LINE_BYTES
from dalle_model.sources.parquet_large import Opens
from dalle_model.sources.parquet_records import groups_from, limit_for, records_of, used_fields


@dataclass(frozen=True, slots=True)
class Addressed:
    """A file elsewhere, by an address such as hf://datasets/NAME@COMMIT/FILE."""

    address: str

    def __str__(self) -> str:
        return self.address

    def open(self, mode: str) -> BinaryIO:
        """As of a path; tried again as the library does."""
        from datasets.utils.file_utils import xopen

        return cast(BinaryIO, xopen(self.address, mode))


class ParquetSplit:
    """The files of one split, in their order. SourceError for one that cannot be opened; what breaks later is raised as it comes."""

    def __init__(self, addresses: list[str], caption: str, image: str, max_image_bytes: int) -> None:
        self._files: list[Opens] = [Addressed(place) if "://" in place else Path(place) for place in addresses]
        self._caption, self._image, self._max_bytes = caption, image, max_image_bytes

    def count(self) -> int:
        """Rows, by the index of each file."""
        found = 0
        for path in self._files:
            with self._opened(path) as file:
                found += file.metadata.num_rows
        return found

    def records(self, start: int, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
        """Rows from number ``start`` on by column, of ``columns`` alone where those are given."""
        limit = limit_for(self._image, self._max_bytes, MAX_LINE_BYTES)
        for path in self._files:
            with self._opened(path) as file:
                groups, skipped = groups_from(file, start)
                start -= skipped
                used = columns or used_fields(file.schema_arrow, self._caption, self._image)
                here = [name for name in used if name in file.schema_arrow.names]
                yield from records_of(file, groups, path, here, limit, start=start)
                start = 0 if groups else start

    @contextmanager
    def _opened(self, path: Opens) -> Iterator[Any]:
        with ExitStack() as opened:
            try:
                file = opened.enter_context(pq.ParquetFile(opened.enter_context(path.open("rb"))))
            except (pa.ArrowException, OSError) as error:
                words = (str(error).splitlines() or [""])[0][:200]
                raise SourceError(f"{path} is no readable Parquet file ({words}); fetch or write it again") from error
            yield file
