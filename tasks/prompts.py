"""Prompt lists: from the config, and from files of any common kind."""

import codecs
import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from dalle_model.config import GenerateConfig
from dalle_model.config.pipeline import MAX_N, MAX_SEED
from dalle_model.decoding import Refused
from dalle_model.errors import SourceError
from dalle_model.records import normalise_caption
from dalle_model.sources.json_records import json_record
from dalle_model.sources.metadata import csv_rows, delimiter_of
from tasks.s3_client import StoreOptions
from tasks.settings import Settings
from tasks.store import Store

_TEXT = ("prompt", "text", "caption")
_NEGATIVE = ("negative", "negative_prompt")
_COLUMNS = (*_TEXT, *_NEGATIVE, "n", "seed", "tags")
_MAX_BYTES = 1_000_000_000
_WHOLE = re.compile(r"[+-]?[0-9]+(\.0*)?")  # "7.0" is what data frames make of a 7 in a column with gaps
Rows = Iterator[tuple[int, Any]]  # (line or row from 1, what stands there)


@dataclass(frozen=True)
class Prompt:
    """What to draw. ``n`` and ``seed`` None = as the config says; ``tags`` are for finding pictures again.

    ``negative``: what to steer away from, read in place of the empty caption by guidance.
    """

    text: str
    n: int | None = None
    seed: int | None = None
    tags: tuple[str, ...] = ()
    negative: str = ""


def read_uri(uri: str, settings: Settings) -> bytes:
    """A file by path, ``file://`` or ``s3://``. Raises SourceError when it is not there or cannot be read."""
    if urlsplit(uri).scheme == "s3":
        folder, _, name = uri.rpartition("/")
        data = Store.open(folder, options=StoreOptions(endpoint_url=settings.endpoint_url)).load(name)
        if data is None:
            raise SourceError(f"{uri} does not exist; check the bucket and the key")
        return data
    path = Path(unquote(urlsplit(uri).path)) if uri.startswith("file://") else Path(uri).expanduser()
    if not path.is_file():  # a FIFO would block for ever
        raise SourceError(f"{path} is not a file; give a txt, jsonl, csv or parquet file of prompts")
    if path.stat().st_size > _MAX_BYTES:
        raise SourceError(f"{path} has {path.stat().st_size} bytes, more than {_MAX_BYTES}; split it")
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror}); check its permissions") from error


def parse_prompts(data: bytes, name: str) -> list[Prompt]:
    """Prompts of a file, by its extension. Raises SourceError naming the line that cannot be read."""
    kind = Path(name).suffix.lower().removeprefix(".")
    if kind == "txt":
        return [Prompt(line) for line in re.split(r"\r\n?|\n", _text(data, name)) if line.strip()]
    if kind in ("jsonl", "ndjson"):
        rows = _json_rows(_text(data, name), name)
    elif kind in ("csv", "tsv"):
        rows = _csv_rows(_text(data, name), name, tabs=kind == "tsv")
    elif kind == "parquet":
        rows = _parquet_rows(data, name)
    else:
        ending = f"ends in .{kind}" if kind else "has no ending"
        raise SourceError(f"{name} {ending}; prompt files are txt, jsonl, csv, tsv or parquet")
    return [_prompt(row, f"{name}, {'row' if kind == 'parquet' else 'line'} {number}") for number, row in rows]


# --- kinds of files --------------------------------------------------------------------------------------------------


def _text(data: bytes, name: str) -> str:
    """UTF-8 or, as spreadsheets and editors write it, UTF-16, with a byte order mark or without."""
    wide = data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SourceError(
            f"{name} cannot be read: line {line} is not {'UTF-16' if wide else 'UTF-8'}; save the file as UTF-8"
        ) from error


def _json_rows(text: str, name: str) -> Rows:
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON may hold U+2028 as it is
        if not line.strip():
            continue
        if line.lstrip().startswith('"'):
            try:
                yield number, {"prompt": json.loads(line)}
                continue
            except ValueError as error:
                raise SourceError(f"{name}, line {number} cannot be read: {error}") from error
        record = json_record(line.encode())
        if isinstance(record, Refused):
            raise SourceError(
                f'{name}, line {number} cannot be read: {record.detail}; write one object a line, as {{"prompt": "a red heart", "n": 2}}'
            )
        yield number, record


def _csv_rows(text: str, name: str, *, tabs: bool) -> Rows:
    header: list[str] = []
    delimiter = "\t" if tabs else delimiter_of(text.partition("\n")[0])
    for first, _, cells in csv_rows(io.StringIO(text, newline=""), delimiter, strict=True):
        if isinstance(cells, csv.Error):
            raise SourceError(f"{name}, line {first} cannot be read: {cells}; is a quote never closed?") from cells
        if not any(cell.strip() for cell in cells):
            continue
        if not header:
            header = [cell.strip().lower() for cell in cells]
            _check_columns(header, name)
            continue
        if len(cells) > len(header):
            raise SourceError(
                f"{name}, line {first}: {len(cells)} cells under {len(header)} headings; put a prompt that holds {delimiter!r} in quotes"
            )
        yield first, dict(zip(header, cells, strict=False))


def _parquet_rows(data: bytes, name: str) -> Rows:
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        names = file.schema_arrow.names
        _check_columns(names, name)
        rows = file.read(columns=[column for column in _COLUMNS if column in names]).to_pylist()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise SourceError(f"{name} cannot be read as parquet: {error}") from error
    yield from enumerate(rows, 1)


def _check_columns(names: Sequence[str], name: str) -> None:
    if not set(_TEXT) & set(names):
        raise SourceError(
            f"{name} has no text column; name it {' or '.join(_TEXT)} (it has {', '.join(names)[:200] or 'none'})"
        )
    for column in _COLUMNS:
        if list(names).count(column) > 1:
            raise SourceError(f"{name} has {list(names).count(column)} columns named {column!r}; leave one of them")


# --- one row ---------------------------------------------------------------------------------------------------------


def _prompt(row: Mapping[str, Any], where: str) -> Prompt:
    column = next((c for c in _TEXT if not _missing(row.get(c))), None)
    if column is None:
        column = next((c for c in _TEXT if c in row), None)
        if column is None:
            raise SourceError(f"{where}: no text column; name it {' or '.join(_TEXT)}")
        raise SourceError(f"{where}: the {column} is missing; write one, or leave the row out")
    negative = next((row[c] for c in _NEGATIVE if not _missing(row.get(c))), "")
    for kind, text in ((column, row[column]), ("negative prompt", negative)):
        if not isinstance(text, str):
            raise SourceError(f"{where}: the {kind} {text!r} is no text")
    return Prompt(
        row[column],
        _whole(row.get("n"), "n", where, 1, MAX_N),
        _whole(row.get("seed"), "seed", where, 0, MAX_SEED),
        _tags(row.get("tags"), where),
        negative,
    )


def _missing(value: Any) -> bool:
    """Whether a cell is empty as tables write it: nothing, or a NaN. An empty text is a text."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _whole(value: Any, what: str, where: str, least: int, most: int) -> int | None:
    if _missing(value) or (isinstance(value, str) and not value.strip()):
        return None
    number = None
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()) and len(value) < 40:
        number = int(value.strip().partition(".")[0])
    elif not isinstance(value, str | bool) and hasattr(value, "__int__") and math.isfinite(value):
        number = int(value) if int(value) == value else None
    if number is None or not least <= number <= most:
        raise SourceError(f"{where}: {what} {value!r} is not a whole number of at least {least} and at most {most}")
    return number


def _tags(value: Any, where: str) -> tuple[str, ...]:
    if _missing(value):
        return ()
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, Iterable) or isinstance(value, Mapping | bytes):
        raise SourceError(f"{where}: the tags {value!r} are neither a text nor a list of texts")
    return tuple(tag for t in value if not _missing(t) and (tag := normalise_caption(str(t))))


def all_prompts(config: GenerateConfig, settings: Settings) -> tuple[list[Prompt], str]:
    """Every prompt in order, repeated ones once, and the digest of the prompt file's bytes (empty without a file).

    Text is NFC with white space folded. Raises SourceError when there is none, and no caption is wanted either.
    """
    prompts = [Prompt(text) for text in config.prompts]
    digest = ""
    if config.prompts_uri:
        data = read_uri(config.prompts_uri, settings)
        digest = hashlib.sha256(data).hexdigest()
        found = parse_prompts(data, config.prompts_uri)
        if not found and not prompts and not config.own_captions:
            raise SourceError(
                f"{config.prompts_uri} holds no prompt; write one a line, or a row with a column {_TEXT[0]}"
            )
        prompts += found
    cleaned = [replace(p, text=normalise_caption(p.text), negative=normalise_caption(p.negative)) for p in prompts]
    unique = list(dict.fromkeys(cleaned))
    if not unique and not config.own_captions:
        raise SourceError("no prompt given; set generate.prompts, generate.prompts_uri or generate.own_captions")
    return unique, digest
