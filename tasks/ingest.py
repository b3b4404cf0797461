"""Ingest: any sources -> clean pairs in Parquet shards, with an outcome row for every input row.

A source is identified by its content, never by its place: the same folder elsewhere is the same artifact. Sources are
read one after the other and no shard holds rows of two, so a shard has one weight and one kind of picture.
"""

import json
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from dalle_model.config import IngestConfig
from dalle_model.decode_pool import DecodePool, PoolLimits
from dalle_model.decoding import Decoded, DecodeSettings, Refused
from dalle_model.errors import DataError, SourceError
from dalle_model.records import LEDGER, PAIR, pair_id
from dalle_model.sources.base import Row, read_picture
from dalle_model.sources.captions import check_caption
from dalle_model.sources.failures import PERMANENT, TRANSIENT
from dalle_model.sources.registry import Weighted, open_sources, split_sources
from tasks.artifacts import ArtifactRef, Part
from tasks.ingest_outcome import outcome
from tasks.job import Job, Outcome
from tasks.settings import Settings
from tasks.tables import TableFile, storable

_EXAMPLES_PER_REASON = 3  # kept in each receipt, for the sheet of rejected rows
_MIN_FETCHES, _WINDOW = 32, 512  # fetches before their success means something, and those that count

# How pictures are fetched has no bearing on what they are: another pace, another contact is the same artifact.
_UNRECORDED = {
    "fetch": {"contact", "concurrency", "per_host_per_s", "timeout_s", "retries", "min_success", "allow_addresses"}
}


@dataclass(frozen=True, slots=True)
class Checked:
    """A row, its normalised caption, and its id ("" where it has no picture)."""

    row: Row
    caption: str
    id: str = ""


def identity(config: IngestConfig, settings: Settings) -> tuple[dict[str, Any], dict[str, str]]:
    """What enters the fingerprint: the config with the sources' kinds instead of their places, and their content.

    Raises UsageError for unknown words, SourceError when a source is not there.
    """
    recorded = config.model_dump(mode="json", exclude=_UNRECORDED) | {"source": _kinds(config.source)}
    opened = open_sources(config)
    outside: dict[str, str] = {}
    for number, source in enumerate(opened):
        prefix = f"{number}." if len(opened) > 1 else ""
        outside |= {prefix + name: digest for name, digest in source.identity().items()}
    return recorded, outside


def _kinds(source: str) -> str:
    """ "imagefolder * 2 + openmoji" of "imagefolder:/my/place * 2 + openmoji"."""
    words = [f"{part.kind} * {part.weight:g}" if part.weight != 1 else part.kind for part in split_sources(source)]
    return " + ".join(words)


def num_pieces(config: IngestConfig, inputs: Mapping[str, ArtifactRef], settings: Settings) -> int:
    """Whole shards of the first source, as far as it knows its rows: the number of a later shard depends on all before."""
    count = open_sources(config)[0].count()
    return min(config.limit or count, count) // config.rows_per_shard


def work(job: Job) -> Outcome:
    """Read, check, decode and store every row; go on at the first shard without a receipt."""
    config: IngestConfig = job.config
    started = time.monotonic()
    sources = open_sources(config)
    progress = _Progress(job, sources, config.limit)
    if job.pieces is not None:
        return _make_pieces(job, sources[0], progress, job.pieces)
    parts = finished_parts(job)
    progress.done = sum(part.stats["rows_in"] for part in parts)
    lost = 0
    for number, source in enumerate(sources):
        if any(part.stats["source"] > number for part in parts):
            continue  # a later source was begun, so this one was read to its end
        start = sum(part.stats["rows_in"] for part in parts if part.stats["source"] == number)
        rows = islice(source.rows(start), max(config.limit - start, 0) if config.limit else None)
        with decode_pool(job, source.vector) as pool:
            decoded = pool.map(checked(progress.watch.seen(rows, source.name), config))
            while shard := next_shard(decoded, job, source, len(parts), progress):
                job.commit_part(len(parts), shard)
                parts.append(shard)
            lost += pool.children_lost
    job.progress(progress.done, progress.done, unit="images")
    if identity(config, job.settings)[1] != job.spec.recorded_config["outside"]:
        raise DataError(
            f"the source {config.source} changed while it was read; run again, and let nothing write to it meanwhile"
        )
    return outcome(
        job, parts, {"source": config.source, "decoders_lost": lost, "ingest_s": round(time.monotonic() - started, 3)}
    )


def _make_pieces(job: Job, source: Weighted, progress: "_Progress", pieces: range) -> Outcome:
    """Make the shards of a group from the first on that has no receipt yet; each holds what it holds when one process makes all."""
    config: IngestConfig = job.config
    done = job.parts()
    progress.total = len(pieces) * config.rows_per_shard
    missing = [n for n in pieces if n not in done]
    if missing:
        start, end = missing[0] * config.rows_per_shard, pieces.stop * config.rows_per_shard
        rows = islice(source.rows(start), end - start)
        with decode_pool(job, source.vector) as pool:
            decoded = pool.map(checked(progress.watch.seen(rows, source.name), config))
            for n in range(missing[0], pieces.stop):
                if (shard := next_shard(decoded, job, source, n, progress)) is None:
                    break
                job.commit_part(n, shard)
    return Outcome((), 0, {})


@dataclass
class _Progress:
    """Rows done of rows there are, as far as the sources know their number."""

    job: Job
    sources: list[Weighted]
    limit: int
    done: int = 0
    total: int = field(init=False)
    watch: "FetchWatch" = field(init=False)

    def __post_init__(self) -> None:
        self.watch = FetchWatch(self.job.config.fetch.min_success)
        counts = [source.count() for source in self.sources]
        self.total = sum(min(self.limit or count, count) for count in counts)

    def show(self) -> None:
        self.done += 1
        self.job.progress(self.done, self.total if self.done < self.total else self.done + 1, unit="images")


def decode_pool(job: Job, vector: bool) -> DecodePool[Checked]:
    """Decoding children under the limits of the config."""
    config: IngestConfig = job.config
    settings = DecodeSettings(
        image_px=config.image_px,
        background=config.background,
        max_bytes=config.max_image_bytes,
        max_mpx=config.max_image_mpx,
        vector=vector,
    )
    limits = PoolLimits(cpu_s=config.max_decode_s / 2, wall_s=config.max_decode_s)
    return DecodePool[Checked](settings, job.workers, limits)


def finished_parts(job: Job) -> list[Part]:
    """Receipts from number 0 on, up to the first that is missing or whose objects are."""
    parts = job.parts()
    missing = {obj.key for obj in job.store.missing(obj for part in parts.values() for obj in part.objects)}
    found: list[Part] = []
    while (part := parts.get(len(found))) and not missing.intersection(obj.key for obj in part.objects):
        found.append(part)
    return found


def checked(rows: Iterator[Row], config: IngestConfig) -> Iterator[tuple[Checked, bytes | Refused]]:
    """Rows with their caption and their picture's bytes, or the reason against them. Files are read here, when due."""
    for row in rows:
        caption = check_caption(row.caption, config.max_caption_chars)
        if isinstance(row.image, Refused):
            yield Checked(row, "" if isinstance(caption, Refused) else caption), row.image
        elif isinstance(caption, Refused):
            yield Checked(row, ""), caption
        else:
            image = row.image if isinstance(row.image, bytes) else read_picture(row.image, config.max_image_bytes)
            yield Checked(row, caption, pair_id(image, caption) if isinstance(image, bytes) else ""), image


def next_shard(
    decoded: Iterator[tuple[Checked, bytes, Decoded | Refused]],
    job: Job,
    source: Weighted,
    number: int,
    progress: _Progress,
) -> Part | None:
    """Build and store the next shard; None when the source has no more rows. SourceError when too few fetches succeed."""
    config: IngestConfig = job.config
    counts = _Counts(source)
    with (
        TableFile(job.spool / f"pairs-{number:06d}.parquet", PAIR) as pairs,
        TableFile(job.spool / f"ledger-{number:06d}.parquet", LEDGER) as ledger,
    ):
        for item, _, result in islice(decoded, config.rows_per_shard):
            counts.add(item.row, result)
            if isinstance(result, Decoded):
                pairs.add(_pair(item, source, result))
            ledger.add(_outcome_row(item, source.name, result))
            progress.show()
        if not counts.rows_in:
            return None
        objects = (
            job.put(pairs.finish(), ext="parquet", role="pairs", rows=counts.kept),
            job.put(ledger.finish(), ext="parquet", role="ledger", rows=counts.rows_in),
        )
    return Part(objects=objects, stats=counts.stats())


def _pair(item: Checked, source: Weighted, picture: Decoded) -> dict[str, Any]:
    row = item.row
    facts = {
        "format": picture.format,
        "source_width": picture.source_width,
        "source_height": picture.source_height,
        "notes": list(picture.notes),
    }
    return {
        "id": item.id,
        "image": picture.image,
        "caption": item.caption,
        "width": picture.width,
        "height": picture.height,
        "source": source.name,
        "key": storable(row.key),
        "licence": storable(row.licence),
        "author": storable(row.author),
        "extra": json.dumps({**(row.extra or {}), **facts}, sort_keys=True),
        "weight": source.weight,
    }


def _outcome_row(item: Checked, source: str, result: Decoded | Refused) -> dict[str, Any]:
    refused = isinstance(result, Refused)
    return {
        "id": item.id,
        "source": source,
        "key": storable(item.row.key),
        "kept": not refused,
        "reason": str(result.reason) if isinstance(result, Refused) else "",
        "rule": item.row.rule,
        "score": result.score if isinstance(result, Refused) else None,
        "detail": storable(result.detail if isinstance(result, Refused) else item.row.note),
    }


def fetch_of(row: Row) -> str:
    """How a fetch ended: fetched, transient, permanent, refused; "" for a row that was not fetched."""
    if row.rule.startswith("fetch."):
        return row.rule.removeprefix("fetch.")
    return "fetched" if row.note else ""


class FetchWatch:
    """Stops a step whose fetches mostly fail: one that ends well with a twentieth of its pictures helps nobody."""

    def __init__(self, min_success: float) -> None:
        self._min = min_success
        self._recent: deque[str] = deque(maxlen=_WINDOW)  # reasons, "" for success

    def seen(self, rows: Iterator[Row], source: str) -> Iterator[Row]:
        """The rows themselves. Raises SourceError when too few of the last fetches went well."""
        for row in rows:
            kind = fetch_of(row)
            if kind in ("fetched", TRANSIENT, PERMANENT):
                self._recent.append(row.image.reason.value if isinstance(row.image, Refused) else "")
            if kind in (TRANSIENT, PERMANENT) and isinstance(row.image, Refused):
                self._check(source, row.key, row.image)
            yield row

    def _check(self, source: str, key: str, last: Refused) -> None:
        fetched, of = self._recent.count(""), len(self._recent)
        if of < _MIN_FETCHES or fetched >= self._min * of:
            return
        reason, count = Counter(reason for reason in self._recent if reason).most_common(1)[0]
        raise SourceError(
            f"{source}: only {fetched} of the last {of} fetches succeeded, most failed ({count}) as {reason}; "
            f"the last is {storable(key)}: {storable(last.detail)}; see to the network or the list and run again "
            f"(what is fetched is kept), or lower ingest.fetch.min_success (now {self._min:g})"
        )


class _Counts:
    """What a receipt says about its shard."""

    def __init__(self, source: Weighted) -> None:
        self._source = source
        self.rows_in = self.kept = self.image_bytes = 0
        self.reasons: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.formats: Counter[str] = Counter()
        self.fetches: Counter[str] = Counter()
        self.examples: list[list[str]] = []

    def add(self, row: Row, result: Decoded | Refused) -> None:
        self.rows_in += 1
        if kind := fetch_of(row):
            self.fetches[kind] += 1
        if isinstance(result, Decoded):
            self.kept += 1
            self.image_bytes += len(result.image)
            self.notes.update(result.notes)
            self.formats[result.format] += 1
            return
        self.reasons[result.reason.value] += 1
        if self.reasons[result.reason.value] <= _EXAMPLES_PER_REASON:
            self.examples.append([result.reason.value, storable(row.key), storable(result.detail)])

    def stats(self) -> dict[str, Any]:
        return {
            "source": self._source.number,
            "rows_in": self.rows_in,
            "kept": self.kept,
            "rejected": self.reasons.total(),
            "image_bytes": self.image_bytes,
            "reasons": dict(self.reasons),
            "notes": dict(self.notes),
            "formats": dict(self.formats),
            "fetches": dict(self.fetches),
            "examples": self.examples,
        }
