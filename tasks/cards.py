"""What Prefect shows of an artifact, as markdown: a summary, the funnel of rows, curves, contact sheets.

The card of an evaluation has its own module, ``tasks.evaluation_card``. Artifacts of Prefect live in its database for
good, so each picture is held to about 200 KB.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.artifacts import Manifest, ObjectRef
from tasks.curves import curve_png, curves_of
from tasks.markdown import Card, escaped, key_of, paths, plain, size, small_picture, table
from tasks.pages import data_uri, words
from tasks.store import Store

MAX_CURVES = 4
CardMaker = Callable[[Manifest, Store, str], Card | None]

_KINDS = {
    "pairs": "Pictures with captions, decoded and clean.",
    "curated": "The pairs that passed every check, with their split.",
    "tokenizer": "The network that turns a picture into a grid of tokens and back.",
    "tokens": "Every pair as tokens, ready for training.",
    "model": "The trained text-to-image model, complete with its tokenizer.",
    "evaluation": "What the model can do, in figures and pictures.",
    "generations": "Pictures drawn from prompts, with all that is needed to draw them again.",
}
SHEET_TITLES = {
    "sheet": "Samples",
    "sheet.kept": "Kept",
    "sheet.rejected": "Rejected",
    "sheet.reconstructions": "Original and reconstruction",
    "sheet.samples": "Drawn from captions",
    "sheet.code_usage": "Use of the codes",
}
_TABLES = {"licences": "Licence", "languages": "Language", "sources": "Source", "personal_data": "Personal data found"}
_SPOKEN_FOR = frozenset({"funnel", "reasons", "splits", "summary", "references", "not_checked", *_TABLES})


def step_cards(manifest: Manifest) -> tuple[CardMaker, ...]:
    """One function per thing that can be shown of an artifact; each returns None when there is nothing to show."""
    return (
        _summary_card,
        _funnel_card,
        _curation_card,
        _curve_card,
        *map(_sheet_maker, sheets_of(manifest)),
    )


# --- cards -------------------------------------------------------------------------------------------------------


def _summary_card(manifest: Manifest, store: Store, decision: str) -> Card:
    parts = [
        f"## {escaped(words(manifest.step))}: {manifest.rows:,} rows",
        escaped(_KINDS.get(manifest.kind, manifest.kind)),
        run_table(manifest, decision),
    ]
    if isinstance(manifest.stats.get("summary"), str):
        parts.insert(2, escaped(manifest.stats["summary"]))
    figures = _figures(manifest.stats)
    if figures:
        parts += ["### Figures", table(("Figure", "Value"), figures, right=(1,))]
    parts += ["### Objects", table(("Role", "Objects", "Rows", "Size"), _objects(manifest), right=(1, 2, 3))]
    parts += ["### Where it is", where(manifest, store)]
    return Card(key_of(manifest.step, "summary"), description(manifest, decision), "\n\n".join(parts))


def run_table(manifest: Manifest, decision: str) -> str:
    """What the run says of itself: why it ran, how large its result is, how long it took and on what."""
    facts = manifest.facts
    rows = [("Fingerprint", f"`{manifest.fingerprint[:12]}`")]
    if decision:
        rows.append(("This run", escaped(decision)))
    rows += [("Rows", f"{manifest.rows:,}"), ("Size", size(manifest.bytes))]
    if isinstance(facts.get("peak_rss_bytes"), int):
        rows.append(("Peak memory", size(facts["peak_rss_bytes"])))
    shown_facts = [name for name in ("seconds", "device", "dtype", "host") if name in facts]
    rows += [(name.capitalize(), escaped(plain(facts[name]))) for name in shown_facts]
    rows += [(f"Input {escaped(i.name)}", f"{escaped(i.step)} `{i.fingerprint[:12]}`") for i in manifest.inputs]
    return table(rows[0], rows[1:])


def where(manifest: Manifest, store: Store) -> str:
    """Where its pages, its sheets and its manifest lie."""
    looked_at = [o for role in ("gallery", "report") for o in manifest.objects_of(role)] + sheets_of(manifest)
    places = [(o.role, store.url(o.key)) for o in looked_at]
    return paths([*places, ("manifest", store.manifest_uri(manifest.step, manifest.fingerprint))])


def description(manifest: Manifest, decision: str) -> str:
    """One line for the list of artifacts."""
    how = "reused" if decision.startswith("reused") else "done"
    return f"{words(manifest.step)} {how}: {manifest.rows:,} rows, {manifest.fingerprint[:12]}"


def _funnel_card(manifest: Manifest, store: Store, decision: str) -> Card | None:
    stats = manifest.stats
    funnel = [(str(name), int(left)) for name, left in stats.get("funnel") or ()]
    if not funnel and {"rows_in", "kept"} <= stats.keys():
        funnel = [("rows read", int(stats["rows_in"])), ("kept", int(stats["kept"]))]
    reasons = {str(name): int(count) for name, count in (stats.get("reasons") or {}).items() if count}
    splits = {str(name): int(count) for name, count in (stats.get("splits") or {}).items()}
    if not funnel and not reasons:
        return None
    parts = [f"## {escaped(words(manifest.step))}: which rows were kept"]
    if funnel:
        first = max(funnel[0][1], 1)
        bars = [
            (escaped(words(name)), f"{left:,}", f"{100 * left / first:.1f} %", "█" * round(20 * left / first))
            for name, left in funnel
        ]
        parts.append(table(("Stage", "Rows left", "Share", ""), bars, right=(1, 2)))
    if reasons:
        ranked = dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
        parts += ["### Dropped because", _counts("Reason", ranked)]
    if splits:
        parts += ["### Splits", _counts("Split", splits)]
    lost = f"{sum(reasons.values()):,} rows dropped"
    dropped = f"{funnel[0][1]:,} rows in, {funnel[-1][1]:,} kept" if funnel else lost
    return Card(key_of(manifest.step, "funnel"), dropped, "\n\n".join(parts))


def _curation_card(manifest: Manifest, store: Store, decision: str) -> Card | None:
    """Small tables of the kept pairs, what was not checked, and where the whole report lies."""
    silent = manifest.stats.get("not_checked")
    if not isinstance(silent, Mapping):
        return None
    parts = ["## What the kept pairs are"]
    for name, title in _TABLES.items():
        counts = {str(value) or "(none)": int(count) for value, count in (manifest.stats.get(name) or {}).items()}
        if counts:
            parts.append(_counts(title, counts))
    told = [f"- **{escaped(words(name))}**: {escaped(remedy)}" for name, remedy in silent.items()]
    parts += ["### What was not checked, and how it would be", "\n".join(told)]
    reports = [("report", store.url(o.key)) for o in manifest.objects_of("report")]
    if reports:
        parts += ["The whole report, with pictures by reason, is one file to open in a browser:", paths(reports)]
    return Card(key_of(manifest.step, "report"), f"{len(told)} things were not checked", "\n\n".join(parts))


def _curve_card(manifest: Manifest, store: Store, decision: str) -> Card | None:
    found = manifest.objects_of("curve")
    if not found:
        return None
    curve = pq.read_table(pa.BufferReader(store.read(found[0])))
    numeric = [f.name for f in curve.schema if pa.types.is_integer(f.type) or pa.types.is_floating(f.type)]
    columns = {name: curve.column(name).to_pylist() for name in numeric}
    references = [(str(name), float(value)) for name, value in (manifest.stats.get("references") or {}).items()]
    png = curve_png(curves_of(columns, references)[:MAX_CURVES])
    if not png:
        return None
    text = f"## {escaped(words(manifest.step))}: curves of the training\n\n![curves of the training]({data_uri(png)})"
    return Card(key_of(manifest.step, "curve"), f"{curve.num_rows:,} points", text)


def _sheet_maker(obj: ObjectRef) -> CardMaker:
    def make(manifest: Manifest, store: Store, decision: str) -> Card:
        title = f"{escaped(words(manifest.step))}: {escaped(SHEET_TITLES.get(obj.role, words(obj.role))).lower()}"
        picture = data_uri(small_picture(store.read(obj)))
        text = f"## {title}\n\n![{title}]({picture})\n\n{paths([('full size', store.url(obj.key))])}"
        return Card(key_of(manifest.step, obj.role), SHEET_TITLES.get(obj.role, words(obj.role)), text)

    return make


def sheets_of(manifest: Manifest) -> list[ObjectRef]:
    """Its contact sheets."""
    return [o for o in manifest.objects if o.role == "sheet" or o.role.startswith("sheet.")]


# --- what they share ---------------------------------------------------------------------------------------------


def flat(stats: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Scalars of nested mappings under dotted names, without those that have a card of their own."""
    for name, value in stats.items():
        if not prefix and name in _SPOKEN_FOR:
            continue
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        elif isinstance(value, bool | int | float | str):
            yield prefix + name, value


def _figures(stats: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(escaped(words(name)), escaped(plain(value))) for name, value in flat(stats) if not isinstance(value, str)]


def _objects(manifest: Manifest) -> list[tuple[str, str, str, str]]:
    by_role: dict[str, list[ObjectRef]] = {}
    for obj in manifest.objects:
        by_role.setdefault(obj.role, []).append(obj)
    return [
        (escaped(role), f"{len(objs):,}", f"{sum(o.rows for o in objs):,}", size(sum(o.bytes for o in objs)))
        for role, objs in by_role.items()
    ]


def _counts(what: str, counts: Mapping[str, int]) -> str:
    return table((what, "Rows"), [(escaped(words(name)), f"{count:,}") for name, count in counts.items()], right=(1,))
