"""Pairs in Parquet files: a caption column and an image column (bytes, Hugging Face's {bytes, path}, or a path)."""

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dalle_model.decoding import Reason, Refused
from dalle_model.errors import SourceError
from dalle_model.sources.base import File, Row, existing, inside, regular, skip, trace_of, walk
from dalle_model.sources.captions import each_caption, place_of, text_of
from dalle_model.sources.contents import content_digest
from dalle_model.sources.metadata import CAPTION_COLUMNS, MAX_LINE_BYTES, extra_in
from dalle_model.sources.parquet_pages import DamagedPage
from dalle_model.sources.parquet_records import groups_from, is_list, limit_for, records_of, used_fields
from dalle_model.sources.remote import AnyPath, Remote
from dalle_model.sources.telling import Tell, silent

IMAGE_COLUMNS = ("image", "bytes", "jpg", "png", "image_bytes")


class ParquetFiles:
    """A Parquet file, or all of a folder in sorted order. Rows in the order of the files."""

    name = "parquet"
    vector = False

    def __init__(
        self,
        path: str | Remote,
        caption_column: str = "",
        image_column: str = "",
        max_image_bytes: int = 20_000_000,
    ) -> None:
        found = existing(path, "parquet")
        self._root = found if found.is_dir() else found.parent
        self._files = [p for p in walk(found, hidden=False) if p.suffix == ".parquet"] if found.is_dir() else [found]
        if not self._files:
            raise SourceError(f"source parquet: the folder {path} has no .parquet file; give the folder that has some")
        schema = self._open(self._files[0]).schema_arrow
        self._caption = pick_column(schema.names, caption_column, CAPTION_COLUMNS, f"parquet:{path}", "caption_column")
        self._image = pick_column(schema.names, image_column, IMAGE_COLUMNS, f"parquet:{path}", "image_column")
        self._max_bytes = max_image_bytes
        self._many_captions = is_list(schema.field(self._caption).type)
        self._paths_matter = _may_hold_paths(schema.field(self._image).type)

    def identity(self, tell: Tell = silent) -> dict[str, str]:
        return {"parquet": content_digest(self._root, self._all_files(), tell)}

    def trace(self) -> str:
        return trace_of(self._all_files())

    def _all_files(self) -> Iterable[AnyPath]:
        """A column of paths makes every file below the folder part of the content."""
        return walk(self._root, hidden=True) if self._paths_matter else self._files

    def count(self) -> int:
        return sum(self._open(path).metadata.num_rows for path in self._files)

    def rows(self, start: int) -> Iterator[Row]:
        if not self._many_captions:
            return self._rows_from(start)
        # Rows are more than records: the captions alone tell how many, no picture is read for that.
        record, left = place_of(start, self._captions()) if start else (0, 0)
        return skip((each for row in self._rows_from(record) for each in each_caption(row)), left)

    def _captions(self) -> Iterator[Any]:
        for path in self._files:
            with self._open(path) as file:
                for record in self._records(file, range(file.num_row_groups), path, 0, [self._caption]):
                    yield text_of(record.get(self._caption))

    def _rows_from(self, start: int) -> Iterator[Row]:
        """Records from a number on."""
        for path in self._files:
            where = path.relative_to(self._root).as_posix()
            with self._open(path) as file:
                missing = {self._caption, self._image} - set(file.schema_arrow.names)
                if missing:
                    raise SourceError(
                        f"{path} has no column {sorted(missing)[0]!r}, which {self._files[0].name} has; the files of one source must agree"
                    )
                groups, skipped = groups_from(file, start)
                start -= skipped
                number = skipped + start
                columns = used_fields(file.schema_arrow, self._caption, self._image)
                for record in self._records(file, groups, path, start, columns):
                    yield self._row(record, path.parent, f"{where}#{number}")
                    number += 1
                start = 0 if groups else start

    def _records(
        self, file: Any, groups: Iterable[int], path: AnyPath, start: int, columns: list[str]
    ) -> Iterator[dict[str, Any]]:
        """The rows of some row groups by column, from a row on. SourceError for a damaged file."""
        try:
            limit = limit_for(self._image, self._max_bytes, MAX_LINE_BYTES)
            yield from records_of(file, groups, path, columns, limit, start=start)
        except (pa.ArrowException, OSError, DamagedPage) as error:
            raise SourceError(f"{path} is damaged ({_first_line(error)}); write it again or leave it out") from error

    def _row(self, record: dict[str, Any], folder: AnyPath, key: str) -> Row:
        caption = text_of(record.get(self._caption))
        image = image_of(record.get(self._image), self._root, folder)
        if isinstance(caption, Refused):
            image = Refused(Reason.CAPTION_TOO_LONG, caption.detail)
        licence, author = record.get("licence", record.get("license")), record.get("author")
        used = {self._caption, self._image, "licence", "license", "author"}
        return Row(
            key,
            caption,
            image,
            licence if isinstance(licence, str) else "",
            author if isinstance(author, str) else "",
            extra_in(record, used),
        )

    def _open(self, path: AnyPath) -> Any:
        try:
            return pq.ParquetFile(path.open() if isinstance(path, Remote) else regular(path))
        except (pa.ArrowException, OSError) as error:
            raise SourceError(
                f"{path} is no readable Parquet file ({_first_line(error)}); check the path, or write the file again"
            ) from error


def _may_hold_paths(kind: pa.DataType) -> bool:
    """Whether a cell may name a file: a text, or a struct that has one."""
    types = pa.types
    if types.is_dictionary(kind):
        return _may_hold_paths(kind.value_type)
    return bool(
        types.is_struct(kind) or types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    )


def pick_column(names: list[str], wanted: str, usual: tuple[str, ...], source: str, knob: str) -> str:
    """The column to read: ``wanted``, or the first of the usual names, small or capital. SourceError lists what is there, or names a doublet."""
    capitals = [name for known in usual for name in names if name.lower() == known != name]
    for name in (wanted,) if wanted else (*usual, *capitals):
        if names.count(name) > 1:  # Parquet allows it, and readers differ in which they take
            raise SourceError(
                f"source {source} has {names.count(name)} columns {name!r}; write it with one, or set ingest.{knob}"
            )
        if name in names:
            return name
    is_list = knob == "image_column" and any(name.lower() in ("url", "image_url") for name in names)
    urls = ", or give the file as a list of URLs, urls:LIST" if is_list else ""
    looked_for = repr(wanted) if wanted else " or ".join(usual)
    raise SourceError(
        f"source {source} has no column {looked_for}; it has {', '.join(names) or 'none'}: set ingest.{knob}{urls}"
    )


def image_of(value: Any, root: AnyPath | None, folder: AnyPath | None) -> bytes | File | Refused:
    """Bytes or file behind a cell: bytes, {"bytes", "path"}, or a path that stays below ``root`` (None = no paths)."""
    if isinstance(value, Refused):
        return value
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and root is not None and folder is not None:
        return inside(root, folder, value)
    if value is None:
        return Refused(Reason.NO_IMAGE, "the row has no picture")
    return Refused(
        Reason.NO_IMAGE, f"the picture is a {type(value).__name__}; bytes, {{bytes, path}} or a path are read"
    )


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
