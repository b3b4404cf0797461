"""Source words ("openmoji", "imagefolder:PATH * 2 + urls:LIST", ...) -> sources."""

import math
import re
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass

from dalle_model.config import IngestConfig
from dalle_model.errors import DataError, UsageError
from dalle_model.sources.base import Row, Source

KINDS = ("openmoji", "openclipart", "scenes", "imagefolder", "hf", "parquet", "jsonl", "csv", "webdataset", "urls")
_ALONE = ("openmoji",)  # take no words after a colon
_OPTIONAL = ("scenes", "openclipart")  # may take some
_WEIGHT = re.compile(r"^(?P<source>.*\S)\s+\*\s+(?P<weight>\S+)$", re.DOTALL)
MAX_WEIGHT = 1000.0


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

    def identity(self) -> dict[str, str]:
        """Of the source itself."""
        return self.source.identity()

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


def split_sources(text: str) -> list[SourceWords]:
    """The terms of "SOURCE [* WEIGHT] + ...". UsageError names the kinds, or what is no weight."""
    return [_split(term.strip()) for term in re.split(r"\s\+\s", text)]


def _split(term: str) -> SourceWords:
    weight = 1.0
    if found := _WEIGHT.match(term):
        try:
            weight = float(found["weight"])
        except ValueError:
            weight = math.nan
        if not 0 < weight <= MAX_WEIGHT:
            raise UsageError(
                f"source {term!r}: {found['weight']!r} is no weight above 0 and at most {MAX_WEIGHT:g}; write e.g. openmoji * 2"
            )
        term = found["source"]
    kind, colon, rest = term.partition(":")
    alone, optional = kind in _ALONE, kind in _OPTIONAL
    if kind not in KINDS or (alone and colon) or (not alone and not optional and not rest):
        raise UsageError(
            f"unknown source {term!r}; give openmoji, openclipart[:PATH], scenes[:COUNT], imagefolder:PATH, "
            "hf:NAME[:config][:split], parquet:PATH, jsonl:PATH, csv:PATH, webdataset:PATH or urls:LIST; "
            "several as SOURCE + SOURCE * WEIGHT"
        )
    return SourceWords(kind, rest, weight)


def open_sources(config: IngestConfig) -> list[Weighted]:
    """All sources of a config in their order. Raises UsageError for unknown words, SourceError for what is not there."""
    opened: list[Weighted] = []
    names: Counter[str] = Counter()
    for number, words in enumerate(split_sources(config.source)):
        source = _open(words.kind, words.rest, config)
        names[source.name] += 1
        name = source.name if names[source.name] == 1 else f"{source.name}#{names[source.name]}"
        opened.append(Weighted(source, number, name, words.weight))
    return opened


def open_source(config: IngestConfig) -> Source:
    """The only source of a config; UsageError when it names several."""
    words = split_sources(config.source)
    if len(words) > 1:
        raise UsageError(f"{config.source!r} names {len(words)} sources where one is needed; name one")
    return _open(words[0].kind, words[0].rest, config)


def _open(kind: str, rest: str, config: IngestConfig) -> Source:
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
    if kind == "imagefolder":
        from dalle_model.sources.imagefolder import ImageFolder

        return ImageFolder(rest, config.caption_column)
    if kind in ("jsonl", "csv"):
        from dalle_model.sources.imagefolder import MetadataFile

        return MetadataFile(kind, rest, config.caption_column)
    if kind == "webdataset":
        from dalle_model.sources.webdataset import WebDataset

        return WebDataset(rest, config.caption_column, config.max_image_bytes)
    if kind == "urls":
        from dalle_model.sources.url_list import UrlList

        return UrlList(rest, config)
    if kind == "parquet":
        from dalle_model.sources.parquet import ParquetFiles

        return ParquetFiles(rest, config.caption_column, config.image_column)
    from dalle_model.sources.huggingface import HuggingFace

    return HuggingFace(rest, config.caption_column, config.image_column)
