"""What an ingest run leaves behind: its totals, its verdict on the source, and sheets of what was kept and rejected."""

from collections import Counter
from typing import Any

import pyarrow.parquet as pq

from dalle_model.config import IngestConfig
from dalle_model.decoding import Reason
from dalle_model.errors import DataError, SourceError
from dalle_model.sheets import contact_sheet
from dalle_model.sources.failures import FAILURES, PERMANENT, TRANSIENT
from tasks.artifacts import Part
from tasks.job import Job, Outcome

_SHEET_TILES = 48


def _summed(parts: list[Part]) -> dict[str, Any]:
    """Statistics of the whole set."""
    stats: dict[str, Any] = {
        name: sum(p.stats[name] for p in parts) for name in ("rows_in", "kept", "rejected", "image_bytes")
    }
    for name in ("reasons", "notes", "formats", "fetches"):
        total: Counter[str] = Counter()
        for part in parts:
            total.update(part.stats[name])
        stats[name] = dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))
    return stats


def outcome(job: Job, parts: list[Part], facts: dict[str, Any]) -> Outcome:
    """The artifact of all finished shards. Raises SourceError for no rows, DataError when too many are rejected."""
    config: IngestConfig = job.config
    stats = _summed(parts)
    rows_in, kept, rejected = stats["rows_in"], stats["kept"], stats["rejected"]
    if not rows_in:
        raise SourceError(f"the source {config.source} holds no rows; name one that has pairs of picture and caption")
    if rows_in != kept + rejected:
        raise DataError(
            f"{rows_in} rows went in, but {kept} kept and {rejected} rejected came out; this is a defect, please report it"
        )
    _refuse_few_fetches(stats, config)
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
