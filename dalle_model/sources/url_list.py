"""A list of URLs with captions; the pictures are fetched when they are due.

txt (a URL, white space, its caption), csv, tsv, jsonl and parquet, each also packed (.gz, .bz2, .xz, .zst). The list's content is the source's
identity: what a server sends today is not ours to promise. What was fetched is in the receipts of the step, so a step
that is killed goes on without asking again for what it has.
"""

import tempfile
import zlib
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from dalle_model.config import IngestConfig
from dalle_model.decoding import Reason, Refused
from dalle_model.errors import SourceError
from dalle_model.sources.addresses import AddressPolicy
from dalle_model.sources.base import Row, existing, trace_of
from dalle_model.sources.captions import check_caption
from dalle_model.sources.contents import content_digest
from dalle_model.sources.failures import FAILURES
from dalle_model.sources.fetching import Fetched, Fetcher, FetchSettings
from dalle_model.sources.metadata import (
    CAPTION_COLUMNS,
    DAMAGED_GZ,
    MAX_LINE_BYTES,
    count_lines,
    damaged_gz,
    extra_in,
    is_packed,
    kind_of,
    read_lines,
    unpacked,
)
from dalle_model.sources.remote import AnyPath, Remote
from dalle_model.sources.telling import Tell, silent

URL_COLUMNS = ("url", "image_url", "image", "link", "file_name")
_KINDS = ("txt", "csv", "tsv", "jsonl", "parquet")
_MAX_UNPACKED_BYTES = 16 * 2**30  # of a .parquet.gz, which cannot be read as a stream
_BATCH_ROWS = 1024


@dataclass(frozen=True, slots=True)
class _Entry:
    """One line of a list; ``url`` is why there is nothing to fetch, where that is so."""

    where: str
    url: str | Refused
    record: dict[str, Any]


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
        with self._table() as table:
            return int(table.metadata.num_rows)

    def rows(self, start: int) -> Iterator[Row]:
        # Cut at the limit here already: the fetcher looks ahead, and what is not wanted is not asked for.
        yield from self._fetched(islice(self._entries(), start, self._config.limit or None))

    def rows_of(self, numbers: Container[int]) -> Iterator[Row]:
        """The rows of some numbers, in order: for another try."""
        yield from self._fetched(entry for number, entry in enumerate(self._entries()) if number in numbers)

    def _fetched(self, entries: Iterator[_Entry]) -> Iterator[Row]:
        with Fetcher(self._fetch) as fetcher:
            for row, result in fetcher.map(self._checked(entry) for entry in entries):
                if isinstance(result, Fetched):
                    yield replace(row, image=result.data, note=result.decision)
                else:
                    failure = FAILURES.get(result.reason)
                    yield replace(row, image=result, rule=f"fetch.{failure}" if failure else "ingest")

    def _checked(self, entry: _Entry) -> tuple[Row, str | Refused]:
        """A row without its picture, and its URL; a row without a caption is not worth a request."""
        record = {name.lower(): value for name, value in entry.record.items() if isinstance(name, str)}
        column = self._config.caption_column.lower()
        caption = next((record[name] for name in ((column,) if column else CAPTION_COLUMNS) if name in record), None)
        checked = check_caption(caption, self._config.max_caption_chars)
        licence, author = record.get("licence", record.get("license")), record.get("author")
        used = {self._url_column(record), column, *CAPTION_COLUMNS, "licence", "license", "author"}
        row = Row(
            entry.url if isinstance(entry.url, str) else entry.where,
            caption,
            b"",
            licence if isinstance(licence, str) else "",
            author if isinstance(author, str) else "",
            extra_in(record, used),
        )
        return row, checked if isinstance(checked, Refused) and isinstance(entry.url, str) else entry.url

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
            yield _Entry(where, url.strip() if isinstance(url, str) else url, record)

    def _records(self) -> Iterator[tuple[str, dict[str, Any] | Refused]]:
        for line in read_lines(self._file):
            yield f"{self._file.name}#{line.number}", line.record

    def _text_lines(self) -> Iterator[tuple[str, dict[str, Any] | Refused]]:
        with self._file.open("rb") as packed, unpacked(packed, self._file.name) as stream:
            number = 0
            try:
                while line := stream.readline(MAX_LINE_BYTES + 1):
                    number += 1
                    where = f"{self._file.name}#{number}"
                    if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                        _to_line_end(stream)
                        yield where, Refused(Reason.BAD_METADATA, f"line of more than {MAX_LINE_BYTES} bytes")
                        continue
                    words = line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape").split(None, 1)
                    if words:
                        yield where, {"url": words[0], **({"text": words[1].strip()} if words[1:] else {})}
            except DAMAGED_GZ as error:
                yield f"{self._file.name}#{number + 1}", damaged_gz(number, error)
            except OSError as error:
                raise _damaged(self._file, error) from error

    def _parquet_rows(self) -> Iterator[tuple[str, dict[str, Any] | Refused]]:
        with self._table() as table:
            names = [f.name for f in table.schema_arrow if not pa.types.is_nested(f.type)]
            number = 0
            try:
                for batch in table.iter_batches(_BATCH_ROWS, columns=names):
                    for row in range(batch.num_rows):
                        record = {name: _value(batch.column(n)[row]) for n, name in enumerate(batch.schema.names)}
                        yield f"{self._file.name}#{number}", record
                        number += 1
            except (pa.ArrowException, OSError) as error:
                raise _damaged(self._file, error) from error

    def _table(self) -> Any:
        try:
            return pq.ParquetFile(_seekable(self._file))
        except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
            raise _damaged(self._file, error) from error


def _seekable(path: AnyPath) -> BinaryIO:
    if not is_packed(path.name):
        return path.open("rb")
    whole = tempfile.TemporaryFile()  # noqa: SIM115 - the reader closes it
    with path.open("rb") as packed, unpacked(packed, path.name) as stream:
        while block := stream.read(1 << 20):
            whole.write(block)
            if whole.tell() > _MAX_UNPACKED_BYTES:  # a .gz may be a bomb
                raise OSError(f"it unpacks to more than {_MAX_UNPACKED_BYTES} bytes")
    whole.seek(0)
    return cast(BinaryIO, whole)


def _to_line_end(stream: BinaryIO) -> None:
    while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
        continue


def _damaged(path: AnyPath, error: BaseException) -> SourceError:
    words = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return SourceError(f"the list {path} cannot be read ({words}); check it, or write it again")


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except (UnicodeDecodeError, ValueError, OverflowError):
        return b""  # Parquet does not check that a string is UTF-8; no text is refused later
