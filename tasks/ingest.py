"""Ingest: any source -> clean pairs in Parquet shards, with an outcome row for every input row.

The source is identified by its content, never by its place: the same folder elsewhere is the same artifact.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow.parquet as pq

from dalle_model.config import IngestConfig
from dalle_model.decode_pool import DecodePool, PoolLimits
from dalle_model.decoding import Decoded, DecodeSettings, Refused
from dalle_model.errors import DataError, SourceError
from dalle_model.records import LEDGER, PAIR, pair_id
from dalle_model.sheets import contact_sheet
from dalle_model.sources.base import Row, read_picture
from dalle_model.sources.captions import check_caption
from dalle_model.sources.registry import open_source, split_source
from tasks.artifacts import Part
from tasks.job import Job, Outcome
from tasks.settings import Settings
from tasks.tables import TableFile, storable

_SHEET_TILES = 48
_EXAMPLES_PER_REASON = 3  # kept in each receipt, for the sheet of rejected rows

Checked = tuple[Row, str]  # a row and its normalised caption


def identity(config: IngestConfig, settings: Settings) -> tuple[dict[str, Any], dict[str, str]]:
    """What enters the fingerprint: the config with the source's kind instead of its place, and the source's content.

    Raises UsageError for unknown words, SourceError when the source is not there.
    """
    recorded = config.model_dump(mode="json") | {"source": split_source(config.source)[0]}
    return recorded, open_source(config).identity()


def work(job: Job) -> Outcome:
    """Read, check, decode and store every row; go on at the first shard without a receipt."""
    config: IngestConfig = job.config
    started = time.monotonic()
    source = open_source(config)
    total = min(config.limit or source.count(), source.count())
    parts = _finished(job)
    done = sum(part.stats["rows_in"] for part in parts)
    settings = DecodeSettings(
        image_px=config.image_px,
        background=config.background,
        max_bytes=config.max_image_bytes,
        max_mpx=config.max_image_mpx,
        vector=source.vector,
    )
    limits = PoolLimits(cpu_s=config.max_decode_s / 2, wall_s=config.max_decode_s)
    rows = islice(source.rows(done), max(config.limit - done, 0) if config.limit else None)
    with DecodePool[Checked](settings, job.workers, limits) as pool:
        decoded = pool.map(_checked(rows, config))
        while shard := _next_shard(decoded, config, source.name, job, len(parts), done, total):
            job.commit_part(len(parts), shard)
            parts.append(shard)
            done += shard.stats["rows_in"]
        lost = pool.children_lost
    job.progress(done, done, unit="images")
    if identity(config, job.settings)[1] != job.spec.recorded_config["outside"]:
        raise DataError(
            f"the source {config.source} changed while it was read; run again, and let nothing write to it meanwhile"
        )
    return _outcome(
        job, parts, {"source": config.source, "decoders_lost": lost, "ingest_s": round(time.monotonic() - started, 3)}
    )


def _finished(job: Job) -> list[Part]:
    """Receipts from number 0 on, up to the first that is missing or whose objects are."""
    parts = job.parts()
    missing = {obj.key for obj in job.store.missing(obj for part in parts.values() for obj in part.objects)}
    found: list[Part] = []
    while (part := parts.get(len(found))) and not missing.intersection(obj.key for obj in part.objects):
        found.append(part)
    return found


def _checked(rows: Iterator[Row], config: IngestConfig) -> Iterator[tuple[Checked, bytes | Refused]]:
    """Rows with their caption and their picture's bytes, or the reason against them. Files are read here, when due."""
    for row in rows:
        caption = check_caption(row.caption, config.max_caption_chars)
        if isinstance(row.image, Refused):
            yield (row, "" if isinstance(caption, Refused) else caption), row.image
        elif isinstance(caption, Refused):
            yield (row, ""), caption
        else:
            yield (
                (row, caption),
                row.image if isinstance(row.image, bytes) else read_picture(row.image, config.max_image_bytes),
            )


def _next_shard(
    decoded: Iterator[tuple[Checked, bytes, Decoded | Refused]],
    config: IngestConfig,
    source: str,
    job: Job,
    number: int,
    done: int,
    total: int,
) -> Part | None:
    """Build and store the next shard; None when the source has no more rows."""
    counts = _Counts()
    with (
        TableFile(job.spool / f"pairs-{number:06d}.parquet", PAIR) as pairs,
        TableFile(job.spool / f"ledger-{number:06d}.parquet", LEDGER) as ledger,
    ):
        for (row, caption), data, result in islice(decoded, config.rows_per_shard):
            identifier = pair_id(data, caption) if data else ""
            counts.add(row, result)
            if isinstance(result, Decoded):
                pairs.add(_pair(row, caption, identifier, source, result))
            ledger.add(_outcome_row(row, identifier, source, result))
            at = done + counts.rows_in
            job.progress(at, total if at < total else at + 1, unit="images")  # not all sources know their length
        if not counts.rows_in:
            return None
        objects = (
            job.put(pairs.finish(), ext="parquet", role="pairs", rows=counts.kept),
            job.put(ledger.finish(), ext="parquet", role="ledger", rows=counts.rows_in),
        )
    return Part(objects=objects, stats=counts.stats())


def _pair(row: Row, caption: str, identifier: str, source: str, picture: Decoded) -> dict[str, Any]:
    facts = {
        "format": picture.format,
        "source_width": picture.source_width,
        "source_height": picture.source_height,
        "notes": list(picture.notes),
    }
    return {
        "id": identifier,
        "image": picture.image,
        "caption": caption,
        "width": picture.width,
        "height": picture.height,
        "source": source,
        "key": storable(row.key),
        "licence": storable(row.licence),
        "author": storable(row.author),
        "extra": json.dumps({**(row.extra or {}), **facts}, sort_keys=True),
    }


def _outcome_row(row: Row, identifier: str, source: str, result: Decoded | Refused) -> dict[str, Any]:
    refused = isinstance(result, Refused)
    return {
        "id": identifier,
        "source": source,
        "key": storable(row.key),
        "kept": not refused,
        "reason": str(result.reason) if isinstance(result, Refused) else "",
        "rule": "ingest",
        "score": result.score if isinstance(result, Refused) else None,
        "detail": storable(result.detail) if isinstance(result, Refused) else "",
    }


class _Counts:
    """What a receipt says about its shard."""

    def __init__(self) -> None:
        self.rows_in = self.kept = self.image_bytes = 0
        self.reasons: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.formats: Counter[str] = Counter()
        self.examples: list[list[str]] = []

    def add(self, row: Row, result: Decoded | Refused) -> None:
        self.rows_in += 1
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
            "rows_in": self.rows_in,
            "kept": self.kept,
            "rejected": self.reasons.total(),
            "image_bytes": self.image_bytes,
            "reasons": dict(self.reasons),
            "notes": dict(self.notes),
            "formats": dict(self.formats),
            "examples": self.examples,
        }


def _summed(parts: list[Part]) -> dict[str, Any]:
    """Statistics of the whole set."""
    stats: dict[str, Any] = {
        name: sum(p.stats[name] for p in parts) for name in ("rows_in", "kept", "rejected", "image_bytes")
    }
    for name in ("reasons", "notes", "formats"):
        total: Counter[str] = Counter()
        for part in parts:
            total.update(part.stats[name])
        stats[name] = dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))
    return stats


def _outcome(job: Job, parts: list[Part], facts: dict[str, Any]) -> Outcome:
    config: IngestConfig = job.config
    stats = _summed(parts)
    rows_in, kept, rejected = stats["rows_in"], stats["kept"], stats["rejected"]
    if not rows_in:
        raise SourceError(f"the source {config.source} holds no rows; name one that has pairs of picture and caption")
    if rows_in != kept + rejected:
        raise DataError(
            f"{rows_in} rows went in, but {kept} kept and {rejected} rejected came out; this is a defect, please report it"
        )
    if not kept or rejected / rows_in > config.max_rejected_share:
        reason, count = next(iter(stats["reasons"].items()))
        example = next(e for p in parts for e in p.stats["examples"] if e[0] == reason)
        raise DataError(
            f"{rejected} of {rows_in} rows of {config.source} were rejected, most ({count}) as {reason}, e.g. {example[1]}: {example[2]}; "
            f"repair the source, or raise ingest.max_rejected_share (now {config.max_rejected_share:g}) to keep the other {kept}"
        )
    sheets = (
        job.put(_kept_sheet(job, parts, kept), ext="png", role="sheet.kept"),
        job.put(_rejected_sheet(parts), ext="png", role="sheet.rejected"),
    )
    objects = tuple(o for p in parts for o in p.objects if o.role == "pairs") + tuple(
        o for p in parts for o in p.objects if o.role == "ledger"
    )
    return Outcome(objects=objects + sheets, rows=kept, stats=stats, facts=facts)


def _kept_sheet(job: Job, parts: list[Part], kept: int) -> bytes:
    """A sample spread evenly over the set."""
    tiles = min(_SHEET_TILES, kept)
    wanted = [i * kept // tiles for i in range(tiles)]
    images: list[bytes | None] = []
    labels: list[str] = []
    first = 0
    for part in parts:
        rows = [i - first for i in wanted if first <= i < first + part.stats["kept"]]
        first += part.stats["kept"]
        if rows:
            shard = next(o for o in part.objects if o.role == "pairs")
            table = pq.read_table(job.fetch(shard), columns=["image", "caption"]).take(rows)
            images += table["image"].to_pylist()
            labels += table["caption"].to_pylist()
    return contact_sheet(images, labels)


def _rejected_sheet(parts: list[Part]) -> bytes:
    """Examples of each reason in turn; what does not decode has no picture to show, so its reason and key stand there."""
    by_reason: dict[str, list[list[str]]] = {}
    for part in parts:
        for example in part.stats["examples"]:
            by_reason.setdefault(example[0], []).append(example)
    turns = [examples[n] for n in range(_SHEET_TILES) for _, examples in sorted(by_reason.items()) if n < len(examples)]
    return contact_sheet(
        [None] * len(turns[:_SHEET_TILES]), [f"{reason}\n{key}" for reason, key, _ in turns[:_SHEET_TILES]]
    )
