"""Arrow files of a Hugging Face data set that lie here, mapped into memory: no cell is read before its size is known."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from dalle_model.errors import SourceError
from dalle_model.sources.base import regular
from dalle_model.sources.metadata import MAX_LINE_BYTES
from dalle_model.sources.parquet_records import limit_for, used_fields, value_within


class ArrowSplit:
    """The files of one split, in their order. SourceError for one that is damaged."""

    def __init__(self, paths: list[Path], caption: str, image: str, max_image_bytes: int) -> None:
        self._paths = paths
        self._limit_of = limit_for(image, max_image_bytes, MAX_LINE_BYTES)
        self._caption, self._image = caption, image

    def records(self, start: int, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
        """Rows from number ``start`` on, with some columns or all that a row is made of; a Refused for a value that is too large."""
        for path in self._paths:
            try:
                with pa.memory_map(str(regular(path))) as mapped:
                    for batch in _batches(mapped):
                        batch.validate(full=True)  # it was written by strangers, and offsets may lead anywhere
                        wanted = columns or used_fields(batch.schema, self._caption, self._image)
                        names = [name for name in wanted if name in batch.schema.names]
                        for row in range(min(start, batch.num_rows), batch.num_rows):
                            yield {name: value_within(batch[name][row], self._limit_of(name)) for name in names}
                        start = max(start - batch.num_rows, 0)
            except (pa.ArrowException, OSError) as error:
                words = (str(error).splitlines() or [""])[0][:200]
                raise SourceError(f"{path} is damaged ({words}); write it again or leave it out") from error


def _batches(mapped: Any) -> Iterator[pa.RecordBatch]:
    """Record batches of a file in either format of Arrow."""
    try:
        stream = pa.ipc.open_stream(mapped)
    except pa.ArrowInvalid:
        file = pa.ipc.open_file(mapped)
        for number in range(file.num_record_batches):
            yield file.get_batch(number)
    else:
        yield from stream
