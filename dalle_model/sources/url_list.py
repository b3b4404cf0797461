"""A list of URLs with captions; the pictures are fetched when they are due.

txt (a URL, white space, its caption), csv, tsv, jsonl (or json) and parquet, each also packed (.gz, .bz2, .xz, .zst). The list's content is the source's
identity: what a server sends today is not ours to promise. What was fetched is in the receipts of the step, so a step
that is killed goes on without asking again for what it has.
"""

import sys
import tempfile
import zlib
from collections.abc import Container, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dalle_model.config import IngestConfig
from dalle_model.decoding import Reason, Refused
from dalle_model.errors import SourceError
from dalle_model.sources.addresses import AddressPolicy
from dalle_model.sources.base import Row, existing, trace_of
from dalle_model.sources.captions import check_caption, each_caption, text_of
from dalle_model.sources.contents import content_digest
from dalle_model.sources.failures import FAILURES
from dalle_model.sources.fetching import Fetched, Fetcher, FetchSettings
from dalle_model.sources.json_records import byte_lines
from dalle_model.sources.metadata import (
    CAPTION_COLUMNS,
    MAX_LINE_BYTES,
    count_lines,
    extra_in,
    read_lines,
)
from dalle_model.sources.parquet_pages import DamagedPage
from dalle_model.sources.parquet_records import is_bytes, is_list, records_of
from dalle_model.sources.remote import AnyPath, Remote
from dalle_model.sources.telling import Tell, silent
from dalle_model.sources.unpacking import DAMAGED_GZ, damaged_gz, is_packed, kind_of, unpacked

URL_COLUMNS = ("url", "image_url", "image", "link", "file_name")
_KINDS = ("txt", "csv", "tsv", "jsonl", "json", "parquet")
_MAX_UNPACKED_BYTES = 16 * 2**30  # of a .parquet.gz, which cannot be read as a stream
_BATCH_ROWS = 1024


@dataclass(frozen=True, slots=True)
class _Entry:
    """One line of a list; ``url`` is why there is nothing to fetch, where that is so."""

    where: str
    url: str | Refused
    record: dict[str, Any]  # by column in lower case


_Checked = tuple[Row, Refused | None]  # a row, and why its picture is of no use to it


class UrlList:
    """Rows in the order of the list, each with the decision to fetch it or not in its note."""

    name = "urls"
    vector = False

    def __init__(self, path: str | Remote, config: IngestConfig) -> None:
        self._file = existing(path, "urls")
        self._kind = kind_of(self._file.name)
        if self._kind not in _KINDS or not self._file.is_file():
            raise SourceError(
                f"source urls: {path} is no list; give a .{', .'.join(_KINDS)} file, which may also end in .gz, .bz2, .xz or .zst"
            )
        self._config = config
        fetch = config.fetch
        self._fetch = FetchSettings(
            concurrency=fetch.concurrency,
            per_host_per_s=fetch.per_host_per_s,
            timeout_s=fetch.timeout_s,
            retries=fetch.retries,
            max_bytes=config.max_image_bytes,
            obey_opt_out=fetch.obey_opt_out,
            contact=fetch.contact,
            addresses=AddressPolicy.parse(fetch.allow_addresses),
        )

    def identity(self, tell: Tell = silent) -> dict[str, str]:
        return {"urls": content_digest(self._file.parent, [self._file], tell)}

    def trace(self) -> str:
        return trace_of([self._file])

    def count(self) -> int:
        if self._kind != "parquet":
            return count_lines(self._file)
        with self._table() as (table, _):
            return int(table.metadata.num_rows)

    def rows(self, start: int) -> Iterator[Row]:
        # Cut at the limit here already: the fetcher looks ahead, and what is not wanted is not asked for.
        end = self._config.limit or sys.maxsize
        yield from self._fetched(range(start, end), end)

    def rows_of(self, numbers: Container[int]) -> Iterator[Row]:
        """The rows of some numbers, in order: for another try."""
        yield from self._fetched(numbers, sys.maxsize)

    def _fetched(self, numbers: Container[int], end: int) -> Iterator[Row]:
        """The rows of some numbers below ``end``. A picture is asked for once, however many captions it has."""
        with Fetcher(self._fetch) as fetcher:
            for rows, result in fetcher.map(self._wanted(numbers, end)):
                for row, refused in rows:
                    if refused is not None:
                        yield replace(row, image=refused, rule="ingest")
                    elif isinstance(result, Fetched):
                        yield replace(row, image=result.data, note=result.decision)
                    else:
                        failure = FAILURES.get(result.reason)
                        yield replace(row, image=result, rule=f"fetch.{failure}" if failure else "ingest")

    def _wanted(self, numbers: Container[int], end: int) -> Iterator[tuple[list[_Checked], str | Refused]]:
        """The rows of each picture that are wanted, and its URL; a picture without a caption is not worth a request."""
        number = 0
        for entry in self._entries():
            caption = self._caption_of(entry.record)
            if not isinstance(caption, list) and number not in numbers:
                number += 1
            else:
                rows = list(each_caption(self._row(entry, caption)))
                mine = [self._checked(row) for n, row in enumerate(rows, number) if n in numbers]
                number += len(rows)
                if any(refused is None for _, refused in mine) or isinstance(entry.url, Refused):
                    yield [(row, None) for row, _ in mine] if isinstance(entry.url, Refused) else mine, entry.url
                elif mine:
                    yield mine, mine[0][1] or entry.url
            if number >= end:
                return

    def _checked(self, row: Row) -> _Checked:
        refused = (
            row.image if isinstance(row.image, Refused) else check_caption(row.caption, self._config.max_caption_chars)
        )
        return row, refused if isinstance(refused, Refused) else None

    def _caption_of(self, record: dict[str, Any]) -> Any:
        wanted = self._caption_names()
        return text_of(next((record[name] for name in wanted if name in record), None))

    def _caption_names(self) -> tuple[str, ...]:
        column = self._config.caption_column.lower()
        return (column,) if column else CAPTION_COLUMNS

    def _row(self, entry: _Entry, caption: Any) -> Row:
        """A row without its picture; its caption may be a list of captions."""
        record = entry.record
        licence, author = record.get("licence", record.get("license")), record.get("author")
        used = {self._url_column(record), *self._caption_names(), *CAPTION_COLUMNS, "licence", "license", "author"}
        too_long = isinstance(caption, Refused)
        return Row(
            entry.url if isinstance(entry.url, str) else entry.where,
            "" if too_long else caption,
            Refused(Reason.CAPTION_TOO_LONG, caption.detail) if too_long else b"",
            licence if isinstance(licence, str) else "",
            author if isinstance(author, str) else "",
            extra_in(record, used),
        )

    def _url_column(self, record: dict[str, Any]) -> str:
        wanted = self._config.image_column.lower()
        return next((name for name in ((wanted,) if wanted else URL_COLUMNS) if name in record), wanted or "url")

    # reading the list

    def _entries(self) -> Iterator[_Entry]:
        read = {"txt": self._text_lines, "parquet": self._parquet_rows}.get(self._kind, self._records)
        for where, record in read():
            if isinstance(record, Refused):
                yield _Entry(where, record, {})
                continue
            lowered = {name.lower(): value for name, value in record.items() if isinstance(name, str)}
            url = lowered.get(self._url_column(lowered))
            if not isinstance(url, str) or not url.strip():
                url = Refused(Reason.BAD_METADATA, "the row has no URL as text")
            yield _Entry(where, url.strip() if isinstance(url, str) else url, lowered)

    def _records(self) -> Iterator[tuple[str, dict[str, Any] | Refused]]:
        for line in read_lines(self._file):
            yield f"{self._file.name}#{line.number}", line.record

    def _text_lines(self) -> Iterator[tuple[str, dict[str, Any] | Refused]]:
        with self._file.open("rb") as packed, unpacked(packed, self._file.name) as stream:
            number = 0
            try:
                readline = byte_lines(stream)
                while line := readline(MAX_LINE_BYTES + 1):
                    number += 1
                    where = f"{self._file.name}#{number}"
                    if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                        while (rest := readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                            continue
                        yield where, Refused(Reason.BAD_METADATA, f"line of more than {MAX_LINE_BYTES} bytes")
                        continue
                    words = line.decode("utf-8", "surrogateescape").split(None, 1)
                    if words:
                        yield where, {"url": words[0], **({"text": words[1].strip()} if words[1:] else {})}
            except DAMAGED_GZ as error:
                yield f"{self._file.name}#{number + 1}", damaged_gz(number, error)
            except OSError as error:
                raise _damaged(self._file, error) from error

    def _parquet_rows(self) -> Iterator[tuple[str, dict[str, Any] | Refused]]:
        with self._table() as (table, path):
            columns = [field.name for field in table.schema_arrow if self._is_used(field)]
            groups = range(table.num_row_groups)
            found = records_of(table, groups, path, columns, lambda _: MAX_LINE_BYTES, batch_rows=_BATCH_ROWS)
            try:
                for number, record in enumerate(found):
                    yield f"{self._file.name}#{number}", record
            except (pa.ArrowException, OSError, DamagedPage) as error:
                raise _damaged(self._file, error) from error

    def _is_used(self, field: pa.Field) -> bool:
        """Other bytes and nested values are nothing that a row carries along."""
        if field.name.lower() in self._caption_names():
            return is_list(field.type) or not pa.types.is_nested(field.type)
        return not (pa.types.is_nested(field.type) or is_bytes(field.type))

    @contextmanager
    def _table(self) -> Iterator[tuple[Any, AnyPath]]:
        """The opened list, and where it lies unpacked."""
        with ExitStack() as opened:
            try:
                path = opened.enter_context(_unpacked(self._file)) if is_packed(self._file.name) else self._file
                table = opened.enter_context(pq.ParquetFile(opened.enter_context(path.open("rb"))))
            except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
                raise _damaged(self._file, error) from error
            yield table, path


@contextmanager
def _unpacked(path: AnyPath) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile() as whole, path.open("rb") as packed, unpacked(packed, path.name) as stream:
        while block := stream.read(1 << 20):
            whole.write(block)
            if whole.tell() > _MAX_UNPACKED_BYTES:  # a .gz may be a bomb
                raise OSError(f"it unpacks to more than {_MAX_UNPACKED_BYTES} bytes")
        whole.flush()
        yield Path(whole.name)


def _damaged(path: AnyPath, error: BaseException) -> SourceError:
    words = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return SourceError(f"the list {path} cannot be read ({words}); check it, or write it again")
