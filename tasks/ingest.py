"""Ingest: any sources -> clean pairs in Parquet shards, with an outcome row for every input row.

A source is identified by its content, never by its place: the same folder elsewhere is the same artifact. Sources are
read one after the other and no shard holds rows of two, so a shard has one weight and one kind of picture.

Given an earlier pairs artifact, the new one is that and what is new: known pairs are recognised, and the earlier
shards are named again, not stored again. With ``retry`` it is the earlier one with its failed fetches tried again
(``tasks.ingest_again``).
"""

import time
from collections.abc import Mapping
from itertools import count as count_from
from itertools import islice
from typing import Any

from dalle_model.config import IngestConfig
from dalle_model.errors import DataError, SourceError
from dalle_model.sources.registry import Weighted, open_sources, split_sources
from dalle_model.sources.telling import Tell, silent
from tasks.artifacts import ArtifactRef
from tasks.ingest_again import known_ids, retry
from tasks.ingest_outcome import Totals, outcome
from tasks.ingest_shards import Progress, checked, decode_pool, finished_parts, stored_parts
from tasks.job import Job, Outcome
from tasks.s3_source import remote_opener
from tasks.settings import Settings

# How pictures are fetched has no bearing on what they are: another pace, another contact is the same artifact.
_UNRECORDED = {
    "fetch": {"contact", "concurrency", "per_host_per_s", "timeout_s", "retries", "min_success", "allow_addresses"}
}


def identity(
    config: IngestConfig, settings: Settings, tell: Tell = silent
) -> tuple[dict[str, Any], dict[str, str], tuple[str, ...]]:
    """What enters the fingerprint: the config with the sources' kinds instead of their places, and their content.

    Also the sources' traces, taken before their content: what is written meanwhile has another trace.
    Raises UsageError for unknown words, SourceError when a source is not there.
    """
    recorded = config.model_dump(mode="json", exclude=_UNRECORDED) | {"source": _kinds(config.source)}
    opened = open_sources(config, remote_opener(settings, tell))
    traces = tuple(source.trace() for source in opened)
    outside: dict[str, str] = {}
    for source in opened:
        outside |= _digests(source, opened, tell)
    return recorded, outside, traces


def _digests(source: Weighted, of: list[Weighted], tell: Tell) -> dict[str, str]:
    prefix = f"{source.number}." if len(of) > 1 else ""
    return {prefix + name: digest for name, digest in source.identity(tell).items()}


def _refuse_changed(job: Job) -> None:
    """DataError when a source is not what it was when the step was planned. It is read once more only where its trace is another."""
    opened = open_sources(job.config, remote_opener(job.settings, job.show_progress))
    owed = job.spec.recorded_config["outside"]
    for source in opened:
        planned = job.spec.traces[source.number] if job.spec.traces else ""
        if planned and source.trace() == planned:
            continue
        if not _digests(source, opened, job.show_progress).items() <= owed.items():
            raise DataError(
                f"the source {source.name} changed while it was read; run again, and let nothing write to it meanwhile"
            )


def _kinds(source: str) -> str:
    """ "imagefolder * 2 + openmoji" of "imagefolder:/my/place * 2 + openmoji"."""
    words = [f"{part.kind} * {part.weight:g}" if part.weight != 1 else part.kind for part in split_sources(source)]
    return " + ".join(words)


def num_pieces(config: IngestConfig, inputs: Mapping[str, ArtifactRef], settings: Settings) -> int:
    """Whole shards of the first source, as far as it knows its rows: the number of a later shard depends on all before.

    None of a list of URLs: several processes would each keep the pace of a host, and together pass it.
    """
    first = open_sources(config, remote_opener(settings))[0]
    if config.retry != "none" or first.fetches:
        return 0
    count = first.count()
    return min(config.limit or count, count) // config.rows_per_shard


def work(job: Job) -> Outcome:
    """Read, check, decode and store every row; go on at the first shard without a receipt."""
    config: IngestConfig = job.config
    started = time.monotonic()
    facts: dict[str, Any] = {"source": config.source}
    _refuse_smaller(job)
    if job.pieces is not None:
        return _make_pieces(job, job.pieces)
    made = retry(job, facts) if config.retry != "none" else _read(job, facts)
    _refuse_changed(job)
    return outcome(job, made, {**facts, "ingest_s": round(time.monotonic() - started, 3)})


def _refuse_smaller(job: Job) -> None:
    """DataError where new pictures would be smaller than those of the earlier set: in training they would be enlarged beside these."""
    base = job.inputs.get("pairs")
    if base and job.config.image_px < (before := base.config["config"]["image_px"]):
        raise DataError(
            f"the pictures of {base.fingerprint[:12]} are stored at {before} px, new ones would be at {job.config.image_px}; "
            f"set ingest.image_px to {before} or more"
        )


def _read(job: Job, facts: dict[str, Any]) -> Totals:
    """All sources from their first row on, less what an earlier artifact has."""
    config: IngestConfig = job.config
    sources = open_sources(config, remote_opener(job.settings, job.show_progress))
    base = job.inputs.get("pairs")
    known = known_ids(job, base) if base else None
    counts = [source.count() for source in sources]
    progress = Progress(job, sum(min(config.limit or count, count) for count in counts))
    parts = finished_parts(job)
    progress.done = sum(part.stats["rows_in"] for part in parts)
    lost = 0
    for number, source in enumerate(sources):
        if any(part.stats["source"] > number for part in parts):
            continue  # a later source was begun, so this one was read to its end
        start = sum(part.stats["rows_in"] for part in parts if part.stats["source"] == number)
        rows = islice(source.rows(start), max(config.limit - start, 0) if config.limit else None)
        with decode_pool(job, source.vector) as pool:
            decoded = pool.map(checked(progress.watch.seen(rows, source.name), config, known))
            parts += stored_parts(decoded, job, source, count_from(len(parts)), progress)
            lost += pool.children_lost
        if len(sources) > 1 and not any(part.stats["source"] == number for part in parts):
            raise SourceError(f"source {source.name} of {config.source} holds no rows; leave it out, or see to it")
    job.progress(progress.done, progress.done, unit="images")
    facts["decoders_lost"] = lost
    return Totals.grown(base, parts)


def _make_pieces(job: Job, pieces: range) -> Outcome:
    """Make the shards of a group from the first on that has no receipt yet; each holds what it holds when one process makes all."""
    config: IngestConfig = job.config
    done = job.parts()
    missing = [n for n in pieces if n not in done]
    if missing:
        source = open_sources(config, remote_opener(job.settings, job.show_progress))[0]
        base = job.inputs.get("pairs")
        known = known_ids(job, base) if base else None
        progress = Progress(job, len(pieces) * config.rows_per_shard)
        start, end = missing[0] * config.rows_per_shard, pieces.stop * config.rows_per_shard
        rows = islice(source.rows(start), end - start)
        with decode_pool(job, source.vector) as pool:
            decoded = pool.map(checked(rows, config, known))
            for _ in stored_parts(decoded, job, source, range(missing[0], pieces.stop), progress):
                pass
    return Outcome((), 0, {})
