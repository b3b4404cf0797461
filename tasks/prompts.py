"""Prompt lists: from the config, and from files of any common kind."""

import csv
import hashlib
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from dalle_model.config import GenerateConfig
from dalle_model.errors import SourceError
from dalle_model.records import normalise_caption
from tasks.settings import Settings
from tasks.store import Store, StoreOptions

_COLUMNS = ("prompt", "text", "caption")
_MAX_BYTES = 1_000_000_000


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
    """A file by path, ``file://`` or ``s3://``. Raises SourceError when it is not there."""
    if urlsplit(uri).scheme == "s3":
        folder, _, name = uri.rpartition("/")
        data = Store.open(folder, options=StoreOptions(endpoint_url=settings.endpoint_url)).load(name)
        if data is None:
            raise SourceError(f"{uri} does not exist; check the bucket and the key")
        return data
    path = Path(uri.removeprefix("file://")).expanduser()
    if not path.is_file():  # a FIFO would block for ever
        raise SourceError(f"{path} is not a file; give a txt, jsonl, csv or parquet file of prompts")
    if path.stat().st_size > _MAX_BYTES:
        raise SourceError(f"{path} has {path.stat().st_size} bytes, more than {_MAX_BYTES}; split it")
    return path.read_bytes()


def parse_prompts(data: bytes, name: str) -> list[Prompt]:
    """Prompts of a file, by its extension. Raises SourceError naming the line that cannot be read."""
    kind = name.rpartition(".")[2].lower()
    try:
        if kind == "txt":
            return [Prompt(line) for line in data.decode().splitlines() if line.strip()]
        if kind in ("jsonl", "ndjson"):
            return [
                _prompt(json.loads(line), name, i)
                for i, line in enumerate(data.decode().splitlines(), 1)
                if line.strip()
            ]
        if kind == "csv":
            return [_prompt(row, name, i) for i, row in enumerate(csv.DictReader(io.StringIO(data.decode())), 2)]
        if kind == "parquet":
            return [_prompt(row, name, i) for i, row in enumerate(pq.read_table(io.BytesIO(data)).to_pylist(), 1)]
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error, pa.ArrowException) as error:
        raise SourceError(f"{name} cannot be read as {kind}: {error}") from error
    raise SourceError(f"{name} ends in .{kind}; prompt files are txt, jsonl, csv or parquet")


def _prompt(row: Any, name: str, line: int) -> Prompt:
    if isinstance(row, str):
        return Prompt(row)
    column = next((c for c in _COLUMNS if isinstance(row, dict) and isinstance(row.get(c), str)), None)
    if column is None:
        raise SourceError(f"{name}, row {line}: no text column; name it {' or '.join(_COLUMNS)}")
    tags = row.get("tags") or ()
    tags = tuple(t.strip() for t in tags.split(",")) if isinstance(tags, str) else tuple(str(t) for t in tags)
    negative = row.get("negative") or row.get("negative_prompt") or ""
    if not isinstance(negative, str):
        raise SourceError(f"{name}, row {line}: the negative prompt {negative!r} is no text")
    return Prompt(
        row[column],
        _whole(row.get("n"), name, line, 1),
        _whole(row.get("seed"), name, line, 0),
        tuple(t for t in tags if t),
        negative,
    )


def _whole(value: Any, name: str, line: int, least: int) -> int | None:
    if value in (None, ""):
        return None
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = least - 1
    if number < least:
        raise SourceError(f"{name}, row {line}: {value!r} is not a whole number of at least {least}")
    return number


def all_prompts(config: GenerateConfig, settings: Settings) -> tuple[list[Prompt], str]:
    """Every prompt in order, repeated ones once, and the digest of the prompt file's bytes (empty without a file).

    Text is NFC with white space folded. Raises SourceError when there is none, and no caption is wanted either.
    """
    prompts = [Prompt(text) for text in config.prompts]
    digest = ""
    if config.prompts_uri:
        data = read_uri(config.prompts_uri, settings)
        digest = hashlib.sha256(data).hexdigest()
        prompts += parse_prompts(data, config.prompts_uri)
    cleaned = [replace(p, text=normalise_caption(p.text), negative=normalise_caption(p.negative)) for p in prompts]
    unique = list(dict.fromkeys(cleaned))
    if not unique and not config.own_captions:
        raise SourceError("no prompt given; set generate.prompts, generate.prompts_uri or generate.own_captions")
    return unique, digest
