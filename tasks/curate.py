"""Curate: which pairs are good enough, which are kin, and which split each belongs to.

Features (scores and hashes of every pair) are measured once per pairs artifact and shared by all curations of it, so
another threshold costs a scan and no picture is decoded again.
"""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dalle_model.config import CurateConfig
from dalle_model.curation.clusters import SPLITS
from dalle_model.curation.features import FEATURES, FEATURES_VERSION, measure, versions
from dalle_model.curation.rules import BEAUTY, not_checked, rules_of
from dalle_model.curation.selection import SET_RULES, Outside, Selection, select
from dalle_model.errors import DataError
from dalle_model.records import CLUSTER, CURATED, LEDGER, SCORE
from dalle_model.sources.telling import Tell, silent
from tasks.artifacts import Manifest, ObjectRef, fingerprint
from tasks.curate_scores import outside_of, scored
from tasks.curation_report import make_report
from tasks.curation_tally import Tally
from tasks.job import Job, Outcome
from tasks.kin import cluster_rows, embedding_of, embeddings_of, excluded, joined, kin_stats, marks_of, pairs_of
from tasks.model_scores import models_in
from tasks.removals import withdrawn_in
from tasks.settings import Settings
from tasks.shard_measures import of_shards
from tasks.step import open_store
from tasks.tables import TableFile

Floats = np.ndarray[Any, np.dtype[np.float32]]

_COLUMNS = ["id", "image", "caption", "width", "height", "source", "key", "licence", "extra"]


def identity(config: CurateConfig, settings: Settings, tell: Tell = silent) -> tuple[dict[str, Any], dict[str, str]]:
    """The config with excluded sets, files and models by their content instead of their names.

    Raises RefNotFound or UsageError for what is not there and for an unknown language, DataError for a damaged list.
    """
    found = excluded(open_store(settings), config.exclude) if config.exclude else []
    recorded, outside = outside_of(config, settings)
    recorded |= {"exclude": sorted(m.fingerprint for m in found)}
    return recorded, outside | {f"exclude.{m.fingerprint[:16]}": m.fingerprint for m in found}


def work(job: Job) -> Outcome:
    """Measure what is not measured yet, then judge, split and file every pair."""
    config: CurateConfig = job.config
    started = time.monotonic()
    features = _measured(job, job.inputs["pairs"])
    measured_s = time.monotonic() - started
    found = scored(job, features)
    selection = select(found.tables(job), config, _outside(job))
    tally = Tally(config, selection)
    models = models_in(job.spec.recorded_config["outside"])
    with (
        TableFile(job.spool / "curated.parquet", CURATED) as curated,
        TableFile(job.spool / "ledger.parquet", LEDGER) as ledger,
        TableFile(job.spool / "scores.parquet", SCORE) as scores,
        TableFile(job.spool / "clusters.parquet", CLUSTER) as clusters,
    ):
        first = 0
        for shard, table in enumerate(found.tables(job)):
            verdict = selection.verdict[first : first + table.num_rows]
            weights = _weights(job, shard) * _liking(table, config)
            curated.add_table(_curated(table, selection, shard, first, weights))
            ledger.add_table(_ledger(table, verdict, selection))
            scores.add_table(_scores(table, selection, config, models))
            clusters.add_table(cluster_rows(table, selection, first))
            tally.add(table)
            first += table.num_rows
            job.check_stop()
        rows = curated.rows
        if ledger.rows != len(selection.verdict) or rows + sum(selection.reasons().values()) != ledger.rows:
            raise DataError(
                f"{len(selection.verdict)} pairs went in, but {rows} kept of {ledger.rows} came out; this is a defect, please report it"
            )
        objects = (
            job.put(curated.finish(), ext="parquet", role="curated", rows=rows),
            job.put(ledger.finish(), ext="parquet", role="ledger", rows=ledger.rows),
            job.put(scores.finish(), ext="parquet", role="scores", rows=scores.rows),
            job.put(clusters.finish(), ext="parquet", role="clusters", rows=clusters.rows),
        )
    report = make_report(job, selection, tally, found.phrases)
    seen = (
        job.put(report.html, ext="html", role="report"),
        *(job.put(sheet, ext="png", role=role) for role, sheet in report.sheets.items()),
    )
    withdrawn_in(
        job.store, job.inputs["pairs"], job.spec.recorded_config["outside"], job.settings
    )  # also not in the meantime
    facts = {"measure_s": round(measured_s, 3), "curate_s": round(time.monotonic() - started, 3)}
    return Outcome(
        objects=(*objects, *features, *found.objects, *seen),
        rows=rows,
        stats=_stats(selection, config) | tally.stats(),
        facts=facts,
    )


def _outside(job: Job) -> Outside:
    """What is read beside the features of the pairs themselves."""
    recorded = job.spec.recorded_config
    pairs = job.inputs["pairs"]
    ids = withdrawn_in(job.store, pairs, recorded["outside"], job.settings)
    known = pa.array(sorted(ids), pa.string())
    embedding = embedding_of(job)
    # As the fingerprint has them: a name may have moved since.
    sets = [
        marks_of(job, manifest, _measured(job, pairs_of(job.store, manifest)), embedding)
        for manifest in excluded(job.store, recorded["config"]["exclude"])
    ]
    return Outside(
        removed=(lambda table: pa.compute.is_in(table["id"], known).to_numpy()) if ids else None,
        embeddings=None if embedding is None else embeddings_of(job, pairs, embedding),
        evaluation=joined(sets) if sets else None,
        unit=1.0 if embedding is None else embedding.unit,
    )


def _measured(job: Job, pairs: Manifest) -> list[ObjectRef]:
    """Features of every shard of pairs. Their receipts hang on the pairs alone, so other thresholds find them."""

    def receipts(manifest: Manifest) -> str:
        return fingerprint("features", FEATURES_VERSION, versions(), {"pairs": manifest.fingerprint})

    with ThreadPoolExecutor(job.workers, "measure") as threads:
        return of_shards(
            job, pairs, receipts, lambda shard, number: _measure_shard(job, shard, number, threads), "pairs"
        )


def _measure_shard(job: Job, shard: ObjectRef, number: int, threads: ThreadPoolExecutor) -> ObjectRef:
    with TableFile(job.spool / f"features-{number:06d}.parquet", FEATURES) as out:
        # Row groups are bounded in bytes by ingest, so memory does not grow with the shard.
        with pq.ParquetFile(job.fetch(shard)) as file:
            for group in range(file.num_row_groups):
                out.add_table(measure(file.read_row_group(group, columns=_COLUMNS), threads))
        return job.put(out.finish(), ext="parquet", role="features", rows=out.rows)


def _weights(job: Job, shard: int) -> Floats:
    """Weight of every pair of a shard, which is its source's."""
    obj = job.inputs["pairs"].objects_of("pairs")[shard]
    if not obj.rows:
        return np.zeros(0, np.float32)
    with pq.ParquetFile(job.fetch(obj)) as file:
        if "weight" not in file.schema_arrow.names:  # a shard of 0.1.0 that a later artifact was built onto
            return np.ones(obj.rows, np.float32)
        weights: Floats = file.read(columns=["weight"])["weight"].to_numpy()
        return weights


def _curated(table: pa.Table, selection: Selection, shard: int, first: int, weights: Floats) -> pa.Table:
    end = first + table.num_rows
    rows = np.flatnonzero(selection.kept[first:end])
    kept = table.take(rows)
    names = np.array(SPLITS)[selection.split[first:end][rows]]
    return pa.table(
        {
            "id": kept["id"],
            "shard": pa.array(np.full(len(rows), shard), pa.int32()),
            "row": pa.array(rows, pa.int32()),
            "caption": kept["caption"],
            "split": pa.array(names.tolist(), pa.string()),
            "weight": pa.array(weights[rows]),
            "cluster": pa.array([f"{int(c):016x}" for c in selection.clusters[first:end][rows]], pa.string()),
        },
        schema=CURATED,
    )


def _liking(table: pa.Table, config: CurateConfig) -> Floats:
    """Factor of every pair's weight, about 1: what looks better is drawn more often in training, nothing never."""
    if config.aesthetic_model:
        low, high = config.aesthetic_range
        beauty = np.clip((np.asarray(table[BEAUTY.name], np.float64) - low) / (high - low), 0, 1)
    else:
        beauty = np.asarray(table["aesthetic"], np.float64)
    factor: Floats = (1 + config.aesthetic_weight * (2 * beauty - 1)).astype(np.float32)
    return factor


def _ledger(table: pa.Table, verdict: np.ndarray[Any, np.dtype[np.uint8]], selection: Selection) -> pa.Table:
    tests = selection.tests
    score = np.full(len(verdict), np.nan)
    for number, test in enumerate(tests, start=1):
        if test.rule not in SET_RULES and (failed := verdict == number).any():
            score[failed] = table[test.rule].to_numpy()[failed]
    words = {"reason": [t.reason for t in tests], "rule": [t.rule for t in tests], "detail": [t.words for t in tests]}
    return (
        pa.table(
            {
                **{name: table[name] for name in ("id", "source", "key")},
                "kept": pa.array(verdict == 0),
                **{name: pa.array(["", *texts], pa.string()).take(pa.array(verdict)) for name, texts in words.items()},
                "score": pa.array(score, pa.float64(), from_pandas=True),
            }
        )
        .select(LEDGER.names)
        .cast(LEDGER)
    )


def _scores(table: pa.Table, selection: Selection, config: CurateConfig, models: Mapping[str, str]) -> pa.Table:
    """Every score of every rule with its verdict under the thresholds of this curation."""
    pieces = []
    for rule in rules_of(config):
        scores = np.asarray(table[rule.name].to_numpy(), np.float64)
        passed = np.ones(len(scores), bool)
        for test in selection.tests:
            if test.rule == rule.name:
                passed &= test.passed(scores)
        columns = {
            "id": table["id"],
            "rule": pa.array([rule.name] * len(scores), pa.string()),
            "rule_version": pa.array(np.full(len(scores), rule.version), pa.int32()),
            "score": table[rule.name],
            "passed": pa.array(passed),
            "model": pa.array([models.get(rule.name)] * len(scores), pa.string()),
        }
        pieces.append(pa.table(columns, schema=SCORE))
    return pa.concat_tables(pieces).combine_chunks()


def _stats(selection: Selection, config: CurateConfig) -> dict[str, Any]:
    return {
        "rows_in": len(selection.verdict),
        "kept": int(selection.kept.sum()),
        "funnel": selection.funnel(),
        "reasons": selection.reasons(),
        "splits": selection.splits(),
        **kin_stats(selection),
        "thresholds": {test.reason: test.words for test in selection.tests},
        "not_checked": not_checked(config),
    }
