"""Rows in, shards out: what every way of ingesting shares."""

import json
from collections import Counter, deque
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from typing import Any

from dalle_model.config import IngestConfig
from dalle_model.decode_pool import DecodePool, Picture, PoolLimits
from dalle_model.decoding import Decoded, DecodeSettings, Reason, Refused
from dalle_model.errors import SourceError
from dalle_model.records import LEDGER, PAIR, pair_id, pair_id_of
from dalle_model.sources.base import File, Row, read_picture
from dalle_model.sources.captions import check_caption
from dalle_model.sources.failures import PERMANENT, TRANSIENT
from dalle_model.sources.registry import Weighted
from dalle_model.sources.remote import Remote
from tasks.artifacts import Part
from tasks.job import Job
from tasks.tables import TableFile, storable

_JSON = json.JSONEncoder(sort_keys=True)
_EXAMPLES_PER_REASON = 3  # kept in each receipt, for the sheet of rejected rows
_READERS = 16  # requests to a bucket at once
_MIN_FETCHES, _WINDOW = 32, 512  # fetches before their success means something, and those that count


@dataclass(frozen=True, slots=True)
class Checked:
    """A row, its normalised caption ("" where that is refused), and its id ("" until its picture is read)."""

    row: Row
    caption: str
    id: str = ""

    def with_picture(self, sha256: bytes) -> "Checked":
        """The same with its id, by the digest of its picture's bytes (b"" where there are none)."""
        return Checked(self.row, self.caption, pair_id_of(sha256, self.caption)) if sha256 and not self.id else self


@dataclass
class Progress:
    """Rows done of rows there are, as far as the sources know their number."""

    job: Job
    total: int
    done: int = 0
    watch: "FetchWatch" = field(init=False)

    def __post_init__(self) -> None:
        self.watch = FetchWatch(self.job.config.fetch.min_success)

    def show(self, source: Weighted) -> None:
        """One more row of ``source``: of how many rows, or, where only reading tells these, of how many bytes."""
        self.done += 1
        if self.done >= self.total:
            read, size = source.bytes_read()
            if size:
                unit, scale = ("MB", 2**20) if size >= 2**26 else ("kB", 2**10)
                total = -(-size // scale)
                done = min(read // scale, total - 1)  # the last row may still be in the decoder
                self.job.progress(done, total, unit=unit, images=self.done)
                return
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
    rows: Iterable[Row], config: IngestConfig, known: Container[str] | None = None
) -> Iterator[tuple[Checked, Picture | Refused]]:
    """Rows with their caption and their picture, or the reason against them.

    Pictures that are files are left to be read where they are decoded; but given ``known`` ids, all are read here, as a
    pair that is known is not decoded again.
    """
    for item, image in _read_ahead(_captioned(rows, config), config.max_image_bytes, files_too=known is not None):
        if known is None or not isinstance(image, bytes):
            yield item, image
        elif (pair := replace(item, id=pair_id(image, item.caption))).id in known:
            yield pair, Refused(Reason.KNOWN, "the pair is in the earlier set")
        else:
            yield pair, image


def _captioned(rows: Iterable[Row], config: IngestConfig) -> Iterator[tuple[Checked, File | bytes | Refused]]:
    """What needs no reading is checked first: a row without a picture, then its caption."""
    for row in rows:
        caption = check_caption(row.caption, config.max_caption_chars)
        text = caption if isinstance(caption, str) else ""
        refused = isinstance(caption, Refused) and not isinstance(row.image, Refused)
        yield Checked(row, text), caption if refused and isinstance(caption, Refused) else row.image


def _read_ahead(
    rows: Iterator[tuple[Checked, File | bytes | Refused]], max_bytes: int, *, files_too: bool
) -> Iterator[tuple[Checked, Picture | Refused]]:
    """Rows with their pictures, in order. What lies in a bucket is read in advance, many at once: each costs a round trip."""
    waiting: deque[tuple[Checked, Picture | Refused | Future[bytes | Refused]]] = deque()
    with ThreadPoolExecutor(_READERS, "read") as readers:
        for item, image in rows:
            if isinstance(image, Remote):
                waiting.append((item, readers.submit(read_picture, image, max_bytes)))
            elif files_too and isinstance(image, str):
                waiting.append((item, read_picture(image, max_bytes)))
            else:
                waiting.append((item, image))
            while len(waiting) > _READERS or (waiting and not isinstance(waiting[0][1], Future)):
                yield _arrived(*waiting.popleft())
        while waiting:
            yield _arrived(*waiting.popleft())


def _arrived(item: Checked, image: Picture | Refused | Future[bytes | Refused]) -> tuple[Checked, Picture | Refused]:
    return item, image.result() if isinstance(image, Future) else image


@dataclass(frozen=True, slots=True)
class Shard:
    """The rows of a shard in local files, counted."""

    pairs: TableFile
    ledger: TableFile
    counts: "Counts"

    def store(self, job: Job) -> Part:
        """Put both files into the store."""
        objects = (
            job.put(self.pairs.finish(), ext="parquet", role="pairs", rows=self.counts.kept),
            job.put(self.ledger.finish(), ext="parquet", role="ledger", rows=self.counts.rows_in),
        )
        return Part(objects=objects, stats=self.counts.stats())


def stored_parts(
    decoded: Iterator[tuple[Checked, bytes, Decoded | Refused]],
    job: Job,
    source: Weighted,
    numbers: Iterable[int],
    progress: Progress,
) -> Iterator[Part]:
    """Receipts of the shards with these numbers, up to the end of the source. SourceError when too few fetches succeed.

    While a shard is stored, which is mostly waiting for a disk or a network, the rows of the next are read: at most one
    shard is on its way, and receipts are written in order.
    """
    with ThreadPoolExecutor(1, "store") as storing:
        on_its_way: Future[Part] | None = None
        for number in numbers:
            with ExitStack() as files:
                shard = _filled(decoded, job, source, number, progress, files)
                if on_its_way:
                    yield on_its_way.result()
                on_its_way = storing.submit(_committed, shard, job, number, files.pop_all()) if shard else None
            if not on_its_way:
                return
        if on_its_way:
            yield on_its_way.result()


def _filled(
    decoded: Iterator[tuple[Checked, bytes, Decoded | Refused]],
    job: Job,
    source: Weighted,
    number: int,
    progress: Progress,
    files: ExitStack,
) -> Shard | None:
    """The next rows; None when the source has no more. ``files`` closes and removes the local files."""
    config: IngestConfig = job.config
    shard = Shard(
        pairs=files.enter_context(TableFile(job.spool / f"pairs-{number:06d}.parquet", PAIR)),
        ledger=files.enter_context(TableFile(job.spool / f"ledger-{number:06d}.parquet", LEDGER)),
        counts=Counts(source),
    )
    for given, sha256, result in islice(decoded, config.rows_per_shard):
        item = given.with_picture(sha256)
        shard.counts.add(item.row, result)
        if isinstance(result, Decoded):
            shard.pairs.add(pair_row(item, source, result))
        shard.ledger.add(outcome_row(item, source.name, result))
        progress.show(source)
    return shard if shard.counts.rows_in else None


def _committed(shard: Shard, job: Job, number: int, files: ExitStack) -> Part:
    with files:
        part = shard.store(job)
        job.commit_part(number, part)
    return part


def _facts(kind: str, width: int, height: int, notes: tuple[str, ...]) -> dict[str, Any]:
    return {"format": kind, "source_width": width, "source_height": height, "notes": list(notes)}


@lru_cache(maxsize=4096)
def _facts_alone(kind: str, width: int, height: int, notes: tuple[str, ...]) -> str:
    """The text of a row that has nothing else: many pictures of a set are of one size."""
    return _JSON.encode(_facts(kind, width, height, notes))


def pair_row(item: Checked, source: Weighted, picture: Decoded) -> dict[str, Any]:
    row = item.row
    facts = (picture.format, picture.source_width, picture.source_height, picture.notes)
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
        "extra": _JSON.encode({**row.extra, **_facts(*facts)}) if row.extra else _facts_alone(*facts),
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
