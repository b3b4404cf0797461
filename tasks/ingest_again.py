"""Ingest once more: onto an earlier artifact, or only what failed for a passing reason."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dalle_model.config import IngestConfig
from dalle_model.decoding import Decoded, Refused
from dalle_model.errors import DataError
from dalle_model.records import LEDGER, PAIR
from dalle_model.sources.failures import TRANSIENT
from dalle_model.sources.registry import Weighted, open_sources
from tasks.artifacts import Manifest, ObjectRef, Part
from tasks.ingest_outcome import Totals
from tasks.ingest_shards import Checked, Counts, Progress, checked, decode_pool, finished_parts, outcome_row, pair_row
from tasks.job import Job, load_ancestor
from tasks.s3_source import remote_opener
from tasks.tables import TableFile

_RULE = f"fetch.{TRANSIENT}"


class KnownIds:
    """Ids of pairs: 32 bytes each, looked up by bisection."""

    def __init__(self, ids: list[str]) -> None:
        self._ids = np.sort(np.array(ids, "S64")) if ids else np.zeros(0, "S64")

    def __contains__(self, identifier: object) -> bool:
        if not isinstance(identifier, str) or not identifier:
            return False
        wanted = np.bytes_(identifier.encode())
        at = int(np.searchsorted(self._ids, wanted))
        return at < len(self._ids) and bool(self._ids[at] == wanted)


def known_ids(job: Job, base: Manifest) -> KnownIds:
    """Ids of the pairs that an artifact holds, from its ledger: its pictures are not read."""
    ids: list[str] = []
    for obj in base.objects_of("ledger"):
        table = pq.read_table(job.fetch(obj), columns=["id", "kept"])
        ids += table.filter(table["kept"])["id"].to_pylist()
    return KnownIds(ids)


@dataclass(frozen=True, slots=True)
class _Piece:
    """One ledger shard of the earlier artifact that holds failed fetches: where, and which rows of which source."""

    index: int  # among the ledger's objects
    obj: ObjectRef
    source: Weighted
    places: tuple[int, ...]  # within the shard
    numbers: tuple[int, ...]  # within the source


def retry(job: Job, facts: dict[str, Any]) -> Totals:
    """Fetch again what failed for a passing reason in the input ``pairs``; every other row stays as it was.

    A ledger shard keeps its rows and their order, so a row of the source is found by its place, at every repetition.
    """
    config: IngestConfig = job.config
    base = job.inputs.get("pairs")
    if base is None:
        raise DataError("nothing to try again: give the pairs artifact whose fetches failed, or use --retry")
    pieces = list(_pieces(job, base, open_sources(config, remote_opener(job.settings, job.show_progress))))
    if not pieces:
        raise DataError(
            f"no fetch of {base.fingerprint[:12]} failed for a passing reason; there is nothing to try again"
        )
    parts = finished_parts(job)
    progress = Progress(job, sum(len(piece.places) for piece in pieces))
    progress.done = sum(part.stats["rows_in"] for part in parts)
    facts["decoders_lost"] = 0
    left = pieces[len(parts) :]
    for source in {piece.source.number: piece.source for piece in left}.values():
        mine = [piece for piece in left if piece.source is source]
        wanted = {number for piece in mine for number in piece.numbers}
        rows = progress.watch.seen(source.rows_of(wanted), source.name)
        with decode_pool(job, source.vector) as pool:
            decoded = pool.map(checked(rows, config))
            for piece in mine:
                part = _tried_again(decoded, job, piece, len(parts), progress)
                job.commit_part(len(parts), part)
                parts.append(part)
            facts["decoders_lost"] += pool.children_lost
    job.progress(progress.done, progress.done, unit="images")
    return Totals.replaced(base, parts, [piece.index for piece in pieces])


def _pieces(job: Job, base: Manifest, sources: list[Weighted]) -> Iterator[_Piece]:
    by_name = {source.name: source for source in sources}
    seen = dict.fromkeys(by_name, 0)
    first = _first_ledger(job, base)
    for index, obj in enumerate(base.objects_of("ledger")):
        if index < first:
            continue
        table = pq.read_table(job.fetch(obj), columns=["source", "rule", "kept"])
        source = by_name[table["source"][0].as_py()]
        failed = pc.and_(pc.equal(table["rule"], _RULE), pc.invert(table["kept"]))
        places = np.flatnonzero(failed.to_numpy(zero_copy_only=False)).tolist()
        if places:
            numbers = tuple(seen[source.name] + place for place in places)
            yield _Piece(index, obj, source, tuple(places), numbers)
        seen[source.name] += table.num_rows


def _first_ledger(job: Job, manifest: Manifest) -> int:
    """Number of ledger shards that an artifact took over from the one it was built onto."""
    while manifest.config["config"].get("retry", "none") != "none":
        manifest = load_ancestor(job.store, manifest, "pairs")
    if not any(used.name == "pairs" for used in manifest.inputs):
        return 0
    return len(load_ancestor(job.store, manifest, "pairs").objects_of("ledger"))


def _tried_again(
    decoded: Iterator[tuple[Checked, bytes, Decoded | Refused]],
    job: Job,
    piece: _Piece,
    number: int,
    progress: Progress,
) -> Part:
    """A shard of the pairs that came this time, and the ledger shard with their outcome in the place of the old one."""
    before = pq.read_table(job.fetch(piece.obj))
    rows, counts, replaced = before.to_pylist(), Counts(piece.source), Counts(piece.source)
    with (
        TableFile(job.spool / f"pairs-{number:06d}.parquet", PAIR) as pairs,
        TableFile(job.spool / f"ledger-{number:06d}.parquet", LEDGER) as ledger,
    ):
        for place in piece.places:
            given, sha256, result = next(decoded)
            item = given.with_picture(sha256)
            counts.add(item.row, result)
            replaced.reasons[rows[place]["reason"]] += 1
            replaced.fetches[TRANSIENT] += 1
            if isinstance(result, Decoded):
                pairs.add(pair_row(item, piece.source, result))
            rows[place] = outcome_row(item, piece.source.name, result)
            progress.show(piece.source)
        ledger.add_table(pa.Table.from_pylist(rows, schema=LEDGER))
        objects = (
            job.put(pairs.finish(), ext="parquet", role="pairs", rows=counts.kept),
            job.put(ledger.finish(), ext="parquet", role="ledger", rows=len(rows)),
        )
    gone = {"rows_in": len(piece.places), "rejected": len(piece.places)}
    stats = counts.stats() | {"replaced": {**replaced.stats(), **gone, "kept": 0}}
    return Part(objects=objects, stats=stats)
