"""The report of a curation: a page that a person reads before trusting what was kept, and its contact sheets."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dalle_model.config import CurateConfig
from dalle_model.curation.clusters import TIERS
from dalle_model.curation.rules import not_checked
from dalle_model.curation.selection import Selection
from dalle_model.sheets import contact_sheet
from tasks.curation_tally import PER_REASON, Counts, Tally, ranked
from tasks.histograms import histogram_svg
from tasks.job import Job
from tasks.pages import curation_html, words

_THUMBNAIL_PX = 96
_CLUSTERS, _PER_CLUSTER = 12, 6
_PHRASES = 60


@dataclass(frozen=True)
class Tile:
    """A picture of the report with its caption; ``note`` says why it is there."""

    image: bytes
    caption: str
    note: str = ""
    rejected: bool = False


@dataclass(frozen=True)
class Group:
    """Tiles under a title: one reason, one rule, one cluster."""

    title: str
    note: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Report:
    """The page, and contact sheets by role."""

    html: bytes
    sheets: Mapping[str, bytes]


def make_report(job: Job, selection: Selection, tally: Tally, phrases: pa.Table | None) -> Report:
    """Read the pictures that are shown and put the page together. Equal input gives equal bytes."""
    config: CurateConfig = job.config
    clusters = _largest_clusters(selection)
    extremes = {row.row for rows in tally.extremes.values() for row in rows}
    wanted = {*tally.kept, *extremes, *chain(*tally.rejected.values(), *clusters)}
    shown = _pictures(job, sorted(wanted))
    if config.mask_personal_data:
        shown = _masked(shown)
    html = curation_html(
        title="Curation",
        summary=_summary(selection, tally),
        facts=_facts(job, selection, config),
        funnel=[(name, left) for name, left in selection.funnel()],
        reasons=selection.reasons(),
        splits=selection.splits(),
        kept=_kept(tally, shown),
        rejected=_rejected(selection, tally, shown),
        rules=_rules(tally, shown),
        clusters=_clusters(selection, clusters, shown),
        tables=_tables(tally),
        personal=sorted(tally.personal.items()),
        masked=config.mask_personal_data,
        phrases=[] if phrases is None else phrases.slice(0, _PHRASES).to_pylist(),
        mined_off=config.max_mined_boilerplate >= 1,
        silent=not_checked(config),
    )
    return Report(html, _sheets(selection, tally, shown))


Shown = Mapping[int, tuple[bytes, str]]  # row -> (stored picture, caption)


def _summary(selection: Selection, tally: Tally) -> str:
    total, kept = len(selection.verdict), int(selection.kept.sum())
    reasons = list(selection.reasons().items())[:3]
    why = ", ".join(f"{words(name)} ({count:,})" for name, count in reasons)
    text = f"{kept:,} of {total:,} pairs are kept ({100 * kept / max(total, 1):.1f} %)."
    text += f" Most were dropped as {why}." if reasons else " None was dropped."
    findings = tally.personal.total()
    return text + (f" Personal data was found {findings:,} times in captions." if findings else "")


def _facts(job: Job, selection: Selection, config: CurateConfig) -> dict[str, str]:
    return {
        "Artifact": job.fingerprint[:12],
        "Pairs": job.inputs["pairs"].fingerprint[:12],
        "Preset": config.preset,
        "Seed of the split": str(config.seed),
        "Kin": f"{int(selection.kin.sum()):,} rows in {len(np.unique(selection.clusters[selection.kin])):,} clusters",
    }


def _kept(tally: Tally, shown: Shown) -> Group:
    tiles = tuple(Tile(_thumbnail(shown[row][0]), shown[row][1]) for row in tally.kept)
    return Group("Kept", "Spread evenly over the whole set.", tiles)


def _rejected(selection: Selection, tally: Tally, shown: Shown) -> list[Group]:
    counts = selection.reasons()
    tests = {test.reason: test for test in selection.tests}
    groups = []
    for reason in counts:
        rows = tally.rejected.get(reason, [])
        tiles = tuple(
            Tile(_thumbnail(shown[row][0]), shown[row][1], _score(tally.scores_of.get(row)), rejected=True)
            for row in rows
        )
        note = f"{counts[reason]:,} rows, {tests[reason].words}" + (f"; {len(tiles)} of them" if tiles else "")
        groups.append(Group(words(reason), note, tiles))
    return groups


def _rules(tally: Tally, shown: Shown) -> list[dict[str, Any]]:
    """One entry per rule: its distribution, its thresholds, and what the threshold would cut first."""
    entries = []
    for distribution in tally.distributions.by_rule.values():
        groups = []
        for test in distribution.tests:
            extreme = tally.extremes.get(test.reason, [])
            tiles = tuple(
                Tile(_thumbnail(shown[e.row][0]), shown[e.row][1], _score(e.score), rejected=not e.kept)
                for e in extreme
            )
            groups.append(Group(words(test.reason), test.words, tiles))
        entries.append(
            {
                "name": distribution.rule.name,
                "meaning": distribution.rule.meaning,
                "version": distribution.rule.version,
                "svg": histogram_svg(distribution),
                "scored": distribution.total,
                "silent": distribution.silent,
                "failed": distribution.failed,
                "groups": groups,
            }
        )
    return entries


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _tables(tally: Tally) -> list[tuple[str, str, list[tuple[str, list[int]]]]]:
    def rows(counts: Counts, empty: str) -> list[tuple[str, list[int]]]:
        return [(name or empty, numbers) for name, numbers in ranked(counts)]

    return [
        ("Licences", "As the source states them; nothing here is legal advice.", rows(tally.licences, "(not stated)")),
        (
            "Languages",
            "Short captions are judged by their alphabet only; in capitals where that alone is known.",
            rows(tally.languages, "(nothing to say: too short or no words)"),
        ),
        ("Sources", "", rows(tally.sources, "(none)")),
    ]


# --- clusters ----------------------------------------------------------------------------------------------------


def _largest_clusters(selection: Selection) -> list[list[int]]:
    """Rows of the largest clusters of more than one row; those that a hash or an embedding joined come first."""
    rows = np.flatnonzero(selection.kin)
    names, group, sizes = np.unique(selection.clusters[rows], return_inverse=True, return_counts=True)
    near = np.zeros(len(names), np.int64)
    np.maximum.at(near, group, selection.tier[rows])
    order = np.lexsort((names, -sizes, near <= TIERS.index("bytes")))
    chosen = [int(n) for n in order[:_CLUSTERS] if sizes[n] > 1]
    return [rows[group == n][:_PER_CLUSTER].tolist() for n in chosen]


def _clusters(selection: Selection, clusters: Sequence[list[int]], shown: Shown) -> list[Group]:
    groups = []
    for rows in clusters:
        name = selection.clusters[rows[0]]
        size = int((selection.clusters[selection.kin] == name).sum())
        tiles = tuple(
            Tile(
                _thumbnail(shown[row][0]),
                shown[row][1],
                _joined(selection, row),
                rejected=bool(selection.verdict[row]),
            )
            for row in rows
        )
        groups.append(Group(f"{int(name):016x}", f"{size:,} pairs", tiles))
    return groups


def _joined(selection: Selection, row: int) -> str:
    tier = TIERS[selection.tier[row]]
    distance = float(selection.distance[row])
    return tier if np.isnan(distance) else f"{tier}, {distance:.3g} away"


# --- pictures ----------------------------------------------------------------------------------------------------


def _sheets(selection: Selection, tally: Tally, shown: Shown) -> dict[str, bytes]:
    sheets = {"sheet.kept": contact_sheet([shown[r][0] for r in tally.kept], [shown[r][1] for r in tally.kept])}
    of_each = {reason: rows for reason in selection.reasons() if (rows := tally.rejected.get(reason))}
    most = max(map(len, of_each.values()), default=0)
    mixed = [(reason, rows[turn]) for turn in range(most) for reason, rows in of_each.items() if turn < len(rows)]
    labelled = [(row, f"{reason}\n{shown[row][1]}") for reason, row in mixed[: 2 * PER_REASON]]
    sheets["sheet.rejected"] = contact_sheet([shown[r][0] for r, _ in labelled], [text for _, text in labelled])
    for reason, rows in of_each.items():
        labels = [f"{_score(tally.scores_of.get(row))}\n{shown[row][1]}".lstrip("\n") for row in rows]
        sheets[f"sheet.rejected.{reason}"] = contact_sheet([shown[row][0] for row in rows], labels)
    return sheets


def _thumbnail(image: bytes) -> bytes:
    """The picture itself when it is small, else one of at most 96 px."""
    with Image.open(io.BytesIO(image)) as opened:
        if max(opened.size) <= _THUMBNAIL_PX:
            return image
        picture = opened.convert("RGB")
    picture.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.BOX)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=85)
    return out.getvalue()


def _masked(shown: Shown) -> dict[int, tuple[bytes, str]]:
    from dalle_model.curation.personal import mask

    return {row: (image, mask(caption)[0]) for row, (image, caption) in shown.items()}


def _pictures(job: Job, rows: Iterable[int]) -> dict[int, tuple[bytes, str]]:
    """(picture, caption) of some rows, counted over all shards, in ascending order."""
    found: dict[int, tuple[bytes, str]] = {}
    wanted = np.array(list(rows), np.int64)
    first = 0
    for shard in job.inputs["pairs"].objects_of("pairs"):
        inside = wanted[(wanted >= first) & (wanted < first + shard.rows)]
        if len(inside):
            table = pq.read_table(job.fetch(shard), columns=["image", "caption"]).take(pa.array(inside - first))
            pairs = zip(table["image"].to_pylist(), table["caption"].to_pylist(), strict=True)
            found.update(zip(inside.tolist(), pairs, strict=True))
        first += shard.rows
        job.check_stop()
    return found
