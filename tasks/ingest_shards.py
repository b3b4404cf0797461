"""Rows in, shards out: what every way of ingesting shares."""

import json
from collections import Counter, deque
from collections.abc import Container, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from dalle_model.config import IngestConfig
from dalle_model.decode_pool import DecodePool, PoolLimits
from dalle_model.decoding import Decoded, DecodeSettings, Reason, Refused
from dalle_model.errors import SourceError
from dalle_model.records import LEDGER, PAIR, pair_id
from dalle_model.sources.base import Row, read_picture
from dalle_model.sources.captions import check_caption
from dalle_model.sources.failures import PERMANENT, TRANSIENT
from dalle_model.sources.registry import Weighted
from dalle_model.sources.remote import Remote
from tasks.artifacts import Part
from tasks.job import Job
from tasks.tables import TableFile, storable

_EXAMPLES_PER_REASON = 3  # kept in each receipt, for the sheet of rejected rows
_READERS = 16  # requests to a bucket at once
_MIN_FETCHES, _WINDOW = 32, 512  # fetches before their success means something, and those that count


@dataclass(frozen=True, slots=True)
class Checked:
    """A row, its normalised caption, and its id ("" where it has no picture)."""

    row: Row
    caption: str
    id: str = ""


@dataclass
class Progress:
    """Rows done of rows there are, as far as the sources know their number."""

    job: Job
    total: int
    done: int = 0
    watch: "FetchWatch" = field(init=False)

    def __post_init__(self) -> None:
        self.watch = FetchWatch(self.job.config.fetch.min_success)

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


def checked(
    rows: Iterator[Row], config: IngestConfig, known: Container[str] = frozenset()
) -> Iterator[tuple[Checked, bytes | Refused]]:
    """Rows with their caption and their picture's bytes, or the reason against them. Files are read here, when due.

    A pair whose id is ``known`` is not decoded again.
    """
    for row, image in _read_ahead(rows, config.max_image_bytes):
        caption = check_caption(row.caption, config.max_caption_chars)
        if isinstance(image, bytes) and isinstance(caption, str):
            item = Checked(row, caption, pair_id(image, caption))
            yield item, Refused(Reason.KNOWN, "the pair is in the earlier set") if item.id in known else image
        elif isinstance(image, Refused):
            yield Checked(row, caption if isinstance(caption, str) else ""), image
        elif isinstance(caption, Refused):
            yield Checked(row, ""), caption


def _read_ahead(rows: Iterator[Row], max_bytes: int) -> Iterator[tuple[Row, bytes | Refused]]:
    """Rows with their pictures, in order. What lies in a bucket is read in advance, many at once: each costs a round trip."""
    waiting: deque[tuple[Row, bytes | Refused | Future[bytes | Refused]]] = deque()
    with ThreadPoolExecutor(_READERS, "read") as readers:
        for row in rows:
            image = row.image
            if isinstance(image, Remote):
                waiting.append((row, readers.submit(read_picture, image, max_bytes)))
            else:
                waiting.append((row, read_picture(image, max_bytes) if isinstance(image, Path) else image))
            while len(waiting) > _READERS or (waiting and not isinstance(waiting[0][1], Future)):
                yield _arrived(*waiting.popleft())
        while waiting:
            yield _arrived(*waiting.popleft())


def _arrived(row: Row, image: bytes | Refused | Future[bytes | Refused]) -> tuple[Row, bytes | Refused]:
    return row, image.result() if isinstance(image, Future) else image


def next_shard(
    decoded: Iterator[tuple[Checked, bytes, Decoded | Refused]],
    job: Job,
    source: Weighted,
    number: int,
    progress: Progress,
) -> Part | None:
    """Build and store the next shard; None when the source has no more rows. SourceError when too few fetches succeed."""
    config: IngestConfig = job.config
    counts = Counts(source)
    with (
        TableFile(job.spool / f"pairs-{number:06d}.parquet", PAIR) as pairs,
        TableFile(job.spool / f"ledger-{number:06d}.parquet", LEDGER) as ledger,
    ):
        for item, _, result in islice(decoded, config.rows_per_shard):
            counts.add(item.row, result)
            if isinstance(result, Decoded):
                pairs.add(pair_row(item, source, result))
            ledger.add(outcome_row(item, source.name, result))
            progress.show()
        if not counts.rows_in:
            return None
        objects = (
            job.put(pairs.finish(), ext="parquet", role="pairs", rows=counts.kept),
            job.put(ledger.finish(), ext="parquet", role="ledger", rows=counts.rows_in),
        )
    return Part(objects=objects, stats=counts.stats())


def pair_row(item: Checked, source: Weighted, picture: Decoded) -> dict[str, Any]:
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


def outcome_row(item: Checked, source: str, result: Decoded | Refused) -> dict[str, Any]:
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


class Counts:
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
