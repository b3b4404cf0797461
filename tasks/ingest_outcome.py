"""What an ingest run leaves behind: its totals, its verdict on the source, and sheets of what was kept and rejected."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from dalle_model.config import IngestConfig
from dalle_model.decoding import Reason
from dalle_model.errors import DataError, SourceError
from dalle_model.sheets import contact_sheet
from dalle_model.sources.failures import FAILURES, PERMANENT, TRANSIENT
from tasks.artifacts import Manifest, ObjectRef, Part
from tasks.job import Job, Outcome

_SHEET_TILES = 48


@dataclass(frozen=True)
class Totals:
    """The shards of an artifact with their statistics; ``parts`` are those that this run made.

    judged: the statistics by which the source is judged. An earlier set that it is added to does not speak for it.
    """

    parts: list[Part]
    objects: tuple[ObjectRef, ...]
    stats: dict[str, Any]
    judged: dict[str, Any]

    @classmethod
    def grown(cls, base: Manifest | None, parts: list[Part]) -> "Totals":
        """The shards of an earlier artifact, then the new ones."""
        made = _summed([part.stats for part in parts])
        if base is None:
            return cls(parts, (*_of(parts, "pairs"), *_of(parts, "ledger")), made, made)
        stats = _summed([base.stats, made])
        stats["new"] = {name: made[name] for name in ("rows_in", "kept", "rejected")} | {
            "known": made["reasons"].get(Reason.KNOWN.value, 0)
        }
        pairs = (*base.objects_of("pairs"), *_of(parts, "pairs"))
        return cls(parts, (*pairs, *base.objects_of("ledger"), *_of(parts, "ledger")), stats, made)

    @classmethod
    def replaced(cls, base: Manifest, parts: list[Part], places: list[int]) -> "Totals":
        """The shards of an earlier artifact and the pairs that came later; ledger shards at ``places`` are replaced."""
        ledger = list(base.objects_of("ledger"))
        for place, obj in zip(places, _of(parts, "ledger"), strict=True):
            ledger[place] = obj
        stats = _summed([base.stats, *(part.stats for part in parts)], [part.stats["replaced"] for part in parts])
        stats["tried_again"] = {name: sum(part.stats[name] for part in parts) for name in ("rows_in", "kept")}
        return cls(parts, (*base.objects_of("pairs"), *_of(parts, "pairs"), *ledger), stats, stats)


def _of(parts: list[Part], role: str) -> list[ObjectRef]:
    return [obj for part in parts for obj in part.objects if obj.role == role]


def _summed(added: list[dict[str, Any]], taken: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Statistics of a whole set: the sum of those of its pieces, less those that were replaced."""
    stats: dict[str, Any] = {}
    for name in ("rows_in", "kept", "rejected", "image_bytes"):
        stats[name] = sum(s[name] for s in added) - sum(s[name] for s in taken or [])
    for name in ("reasons", "notes", "formats", "fetches"):
        total: Counter[str] = Counter()
        for s in added:
            total.update(s.get(name, {}))  # older artifacts lack some
        for s in taken or []:
            total.subtract(s[name])
        stats[name] = {key: n for key, n in sorted(total.items(), key=lambda item: (-item[1], item[0])) if n}
    return stats


def outcome(job: Job, made: Totals, facts: dict[str, Any]) -> Outcome:
    """The artifact of all finished shards. Raises SourceError for no rows, DataError when too many are rejected."""
    config: IngestConfig = job.config
    parts, stats = made.parts, made.stats
    rows_in, kept, rejected = stats["rows_in"], stats["kept"], stats["rejected"]
    if not sum(part.stats["rows_in"] for part in parts):
        raise SourceError(f"the source {config.source} holds no rows; name one that has pairs of picture and caption")
    if rows_in != kept + rejected:
        raise DataError(
            f"{rows_in} rows went in, but {kept} kept and {rejected} rejected came out; this is a defect, please report it"
        )
    _refuse_few_fetches(made.judged, config)
    _refuse_few_pairs(parts, made.judged, config)
    new = sum(part.stats["kept"] for part in parts)
    sheets = (
        job.put(_kept_sheet(job, parts, new), ext="png", role="sheet.kept"),
        job.put(_rejected_sheet(parts), ext="png", role="sheet.rejected"),
    )
    return Outcome(objects=made.objects + sheets, rows=kept, stats=stats, facts=facts)


def _refuse_few_pairs(parts: list[Part], stats: dict[str, Any], config: IngestConfig) -> None:
    """DataError when too many rows are rejected. Known pairs are no fault of the source."""
    known = stats["reasons"].get(Reason.KNOWN.value, 0)
    rows_in, rejected = stats["rows_in"] - known, stats["rejected"] - known
    if stats["kept"] + known and rejected <= config.max_rejected_share * rows_in:
        return
    reason, count = next((r, n) for r, n in stats["reasons"].items() if r != Reason.KNOWN.value)
    example = next((e for p in parts for e in p.stats["examples"] if e[0] == reason), [reason, "an earlier row", ""])
    others = (
        f", or raise ingest.max_rejected_share (now {config.max_rejected_share:g}) to keep the other {stats['kept']}"
        if stats["kept"]
        else ""
    )
    raise DataError(
        f"{rejected} of {rows_in} rows of {config.source} were rejected, most ({count}) as {reason}, e.g. {example[1]}: {example[2]}; "
        f"repair the source{others}"
    )


def _refuse_few_fetches(stats: dict[str, Any], config: IngestConfig) -> None:
    """SourceError when too few of all fetches succeeded: a short list ends before the watch on them has seen enough."""
    fetched = stats["fetches"].get("fetched", 0)
    tried = fetched + stats["fetches"].get(TRANSIENT, 0) + stats["fetches"].get(PERMANENT, 0)
    if fetched < config.fetch.min_success * tried:
        causes = [reason for reason in stats["reasons"] if FAILURES.get(Reason(reason)) in (TRANSIENT, PERMANENT)]
        raise SourceError(
            f"only {fetched} of {tried} fetches of {config.source} succeeded, most failed as {causes[0]}; "
            f"see to the network or the list, or lower ingest.fetch.min_success (now {config.fetch.min_success:g})"
        )


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
