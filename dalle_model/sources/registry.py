"""Source words ("openmoji", "imagefolder:PATH * 2 + urls:LIST", ...) -> sources."""

import math
import re
from collections import Counter
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass

from dalle_model.config import IngestConfig
from dalle_model.errors import DataError, UsageError
from dalle_model.sources.base import Row, Source
from dalle_model.sources.remote import Remote
from dalle_model.sources.telling import Tell, silent

KINDS = ("openmoji", "openclipart", "scenes", "imagefolder", "hf", "parquet", "jsonl", "csv", "webdataset", "urls")
_ALONE = ("openmoji",)  # take no words after a colon
_OPTIONAL = ("scenes", "openclipart")  # may take some
_WEIGHT = re.compile(r"^(?P<source>.*\S)\s+\*\s+(?P<weight>\S+)$", re.DOTALL)
_PLUS = re.compile(r"\s\+\s")
_QUOTED = re.compile(r'\s*(?P<kind>\w+):"(?P<rest>[^"]+)"(?:\s+\*\s+(?P<weight>\S+))?\s*(?:\s(?P<more>\+)\s|$)')
IN_BUCKETS = ("imagefolder", "parquet", "jsonl", "csv", "webdataset", "urls")
MAX_WEIGHT = 1000.0  # and its inverse is the least: weights are stored in 32 bits
_PATHS = "A path with ' + ' or ' * ' in it stands in double quotes: imagefolder:\"a + b\""
Opener = Callable[[str], Remote]


@dataclass(frozen=True, slots=True)
class SourceWords:
    """One term of ``ingest.source``."""

    kind: str
    rest: str
    weight: float


class Weighted:
    """A source as one of several: its number, its weight, and a name that no other has."""

    def __init__(self, source: Source, number: int, name: str, weight: float) -> None:
        self.source, self.number, self.name, self.weight = source, number, name, weight
        self.vector = source.vector
        self.fetches = hasattr(source, "rows_of")

    def identity(self, tell: Tell = silent) -> dict[str, str]:
        """Of the source itself."""
        return self.source.identity(tell)

    def trace(self) -> str:
        """Of the source itself."""
        return self.source.trace()

    def rows(self, start: int) -> Iterator[Row]:
        """Of the source itself."""
        return self.source.rows(start)

    def rows_of(self, numbers: Container[int]) -> Iterator[Row]:
        """The rows of some numbers. DataError for a source that fetches nothing."""
        rows_of = getattr(self.source, "rows_of", None)
        if rows_of is None:
            raise DataError(f"source {self.name} fetches nothing, so nothing of it can be tried again")
        found: Iterator[Row] = rows_of(numbers)
        return found

    def count(self) -> int:
        """Of the source itself."""
        return self.source.count()

    def bytes_read(self) -> tuple[int, int]:
        """(bytes read so far, bytes there are) of a source whose rows only reading tells; (0, 0) of others."""
        bytes_read = getattr(self.source, "bytes_read", None)
        found: tuple[int, int] = bytes_read() if bytes_read else (0, 0)
        return found


def split_sources(text: str) -> list[SourceWords]:
    """The terms of "SOURCE [* WEIGHT] + ...". What stands in double quotes behind a colon is a path, whatever it holds.

    UsageError names the kinds, or what is no weight.
    """
    found: list[SourceWords] = []
    at: int | None = 0
    while at is not None:
        if quoted := _QUOTED.match(text, at):
            weight = _weight(quoted["weight"], quoted[0].strip()) if quoted["weight"] else 1.0
            found.append(_words(quoted["kind"], ":", quoted["rest"], weight, quoted[0].strip()))
            at = quoted.end() if quoted["more"] else None
        else:
            plus = _PLUS.search(text, at)
            found.append(_split(text[at : plus.start() if plus else None].strip()))
            at = plus.end() if plus else None
    return found


def _split(term: str) -> SourceWords:
    weight, source = 1.0, term
    if found := _WEIGHT.match(term):
        weight, source = _weight(found["weight"], term), found["source"]
    return _words(*source.partition(":"), weight, source)


def _weight(words: str, term: str) -> float:
    try:
        weight = float(words)
    except ValueError:
        weight = math.nan
    if not 1 / MAX_WEIGHT <= weight <= MAX_WEIGHT:
        raise UsageError(
            f"source {term!r}: {words!r} is no weight from {1 / MAX_WEIGHT:g} to {MAX_WEIGHT:g}; write e.g. openmoji * 2. {_PATHS}"
        )
    return weight


def _words(kind: str, colon: str, rest: str, weight: float, term: str) -> SourceWords:
    alone, optional = kind in _ALONE, kind in _OPTIONAL
    if kind not in KINDS or (alone and colon) or (not alone and not optional and not rest):
        raise UsageError(
            f"unknown source {term!r}; give openmoji, openclipart[:PATH], scenes[:COUNT], imagefolder:PATH, "
            "hf:NAME[:config][:split], parquet:PATH, jsonl:PATH, csv:PATH, webdataset:PATH or urls:LIST; "
            f"several as SOURCE + SOURCE * WEIGHT. {_PATHS}"
        )
    return SourceWords(kind, rest, weight)


def open_sources(config: IngestConfig, remote: Opener | None = None) -> list[Weighted]:
    """All sources of a config in their order; ``remote`` opens s3:// places. Raises UsageError for unknown words, SourceError for what is not there."""
    opened: list[Weighted] = []
    names: Counter[str] = Counter()
    for number, words in enumerate(split_sources(config.source)):
        source = _open(words.kind, words.rest, config, remote)
        names[source.name] += 1
        name = source.name if names[source.name] == 1 else f"{source.name}#{names[source.name]}"
        opened.append(Weighted(source, number, name, words.weight))
    return opened


def open_source(config: IngestConfig) -> Source:
    """The only source of a config; UsageError when it names several."""
    words = split_sources(config.source)
    if len(words) > 1:
        raise UsageError(f"{config.source!r} names {len(words)} sources where one is needed; name one")
    return _open(words[0].kind, words[0].rest, config, None)


def _open(kind: str, rest: str, config: IngestConfig, remote: Opener | None) -> Source:
    if kind in IN_BUCKETS:
        return _open_place(kind, _place(kind, rest, remote), config)
    # Imported at use: a source's packages are optional, and datasets takes seconds to load.
    if kind == "openmoji":
        from dalle_model.sources.openmoji import OpenMoji

        return OpenMoji()
    if kind == "openclipart":
        from dalle_model.sources.openclipart import OpenClipart

        return OpenClipart(rest)
    if kind == "scenes":
        from dalle_model.sources.scenes import Scenes

        return Scenes(rest, config.image_px)
    from dalle_model.sources.huggingface import HuggingFace

    return HuggingFace(rest, config.caption_column, config.image_column, config.max_image_bytes)


def _place(kind: str, words: str, remote: Opener | None) -> str | Remote:
    """A local path as it is, a place in a bucket opened."""
    if "://" not in words:
        return words
    if not words.startswith("s3://"):
        raise UsageError(
            f"source {kind}:{words}: {words.partition('://')[0]}:// is not read; give a path or s3://bucket/prefix"
        )
    if remote is None:
        raise UsageError(f"source {kind}:{words}: buckets are read by the ingest step only")
    return remote(words)


def _open_place(kind: str, place: str | Remote, config: IngestConfig) -> Source:
    if kind == "imagefolder":
        from dalle_model.sources.imagefolder import Columns, ImageFolder

        return ImageFolder(place, Columns(config.caption_column, config.image_column))
    if kind in ("jsonl", "csv"):
        from dalle_model.sources.imagefolder import Columns, MetadataFile

        return MetadataFile(kind, place, Columns(config.caption_column, config.image_column))
    if kind == "webdataset":
        from dalle_model.sources.webdataset import WebDataset

        return WebDataset(place, config.caption_column, config.max_image_bytes)
    if kind == "urls":
        from dalle_model.sources.url_list import UrlList

        return UrlList(place, config)
    from dalle_model.sources.parquet import ParquetFiles

    return ParquetFiles(place, config.caption_column, config.image_column, config.max_image_bytes)
