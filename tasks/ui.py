"""What a step shows in the Prefect UI: a summary, the funnel of rows, contact sheets, curves, metrics, and progress.

Beside ``tasks.prefect_tasks`` the only module that imports Prefect. The UI is a courtesy: nothing here can fail a step.
Artifacts live in Prefect's database for good, so each picture is held to about 200 KB.
"""

import base64
import contextvars
import io
import json
import math
import re
import string
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging import get_run_logger

from tasks.artifacts import Manifest, ObjectRef
from tasks.curves import curve_png, curves_of, number
from tasks.figures import metrics_of
from tasks.pages import Metric, data_uri, shown, words
from tasks.store import Store

MAX_PICTURE_BYTES = 150_000  # encoded; a third more as base64
MAX_CURVES = 4
UPDATE_EVERY_S = 2.0
LOG_EVERY_S = 15.0

_KINDS = {
    "pairs": "Pictures with captions, decoded and clean.",
    "curated": "The pairs that passed every check, with their split.",
    "tokenizer": "The network that turns a picture into a grid of tokens and back.",
    "tokens": "Every pair as tokens, ready for training.",
    "model": "The trained text-to-image model, complete with its tokenizer.",
    "evaluation": "What the model can do, in figures and pictures.",
    "generations": "Pictures drawn from prompts, with all that is needed to draw them again.",
}
_SHEETS = {
    "sheet": "Samples",
    "sheet.kept": "Kept",
    "sheet.rejected": "Rejected",
    "sheet.reconstructions": "Original and reconstruction",
    "sheet.samples": "Drawn from captions",
    "sheet.code_usage": "Use of the codes",
}
_TABLES = {"licences": "Licence", "languages": "Language", "sources": "Source", "personal_data": "Personal data found"}
_SPOKEN_FOR = frozenset({"funnel", "reasons", "splits", "summary", "references", "not_checked", *_TABLES})


@dataclass(frozen=True)
class Card:
    """One markdown artifact. ``key`` (lower case, digits, dashes) is the same at every run of the step."""

    key: str
    description: str
    markdown: str


def publish(manifest: Manifest, store: Store, *, decision: str = "") -> None:
    """Show an artifact in the current Prefect run; without a run, do nothing.

    ``decision`` says in words why the step ran or was reused. Whatever goes wrong is logged and passed over.
    """
    if not _in_run():
        return
    for make in card_makers(manifest):
        try:
            card = make(manifest, store, decision)
            if card is not None:
                create_markdown_artifact(card.markdown, key=card.key, description=card.description)
        except Exception as error:  # a damaged picture or a server out of reach must not undo a finished step
            what = f"{manifest.step} {manifest.fingerprint[:12]}"
            _log("warning", f"the Prefect UI does not show all of {what}: {type(error).__name__}: {error}")


def card_makers(manifest: Manifest) -> tuple["CardMaker", ...]:
    """One function per thing that can be shown of an artifact; each returns None when there is nothing to show.

    An evaluation is one card, in the order of its report: who asks what a model can do should not gather the answer.
    """
    if manifest.kind == "evaluation":
        return (_evaluation_card,)
    return (
        _summary_card,
        _funnel_card,
        _curation_card,
        _curve_card,
        *map(_sheet_maker, _sheets(manifest)),
    )


# --- cards -------------------------------------------------------------------------------------------------------

CardMaker = Callable[[Manifest, Store, str], Card | None]


def key_of(*parts: str) -> str:
    """An artifact key as Prefect wants it: ``fit_tokenizer``, ``sheet.kept`` -> ``fit-tokenizer-sheet-kept``."""
    text = "-".join(parts).lower()
    return "-".join(re.findall("[a-z0-9]+", text))


def escaped(text: object) -> str:
    """Text that markdown shows as it is: a backslash before every ASCII mark (Prefect's older UI shows character
    references literally, the newer one does not; both take backslashes). Line ends become spaces, so that a caption
    cannot leave its table cell; hidden characters are named.
    """
    line = " ".join(shown(str(text)).split())
    return "".join(f"\\{c}" if c in string.punctuation else c for c in line)


def _summary_card(manifest: Manifest, store: Store, decision: str) -> Card:
    parts = [
        f"## {escaped(words(manifest.step))}: {manifest.rows:,} rows",
        escaped(_KINDS.get(manifest.kind, manifest.kind)),
        _run_table(manifest, decision),
    ]
    if isinstance(manifest.stats.get("summary"), str):
        parts.insert(2, escaped(manifest.stats["summary"]))
    figures = _figures(manifest.stats)
    if figures:
        parts += ["### Figures", _table(("Figure", "Value"), figures, right=(1,))]
    parts += ["### Objects", _table(("Role", "Objects", "Rows", "Size"), _objects(manifest), right=(1, 2, 3))]
    parts += ["### Where it is", _where(manifest, store)]
    return Card(key_of(manifest.step, "summary"), _description(manifest, decision), "\n\n".join(parts))


def _run_table(manifest: Manifest, decision: str) -> str:
    """What the run says of itself: why it ran, how large its result is, how long it took and on what."""
    facts = manifest.facts
    rows = [("Fingerprint", f"`{manifest.fingerprint[:12]}`")]
    if decision:
        rows.append(("This run", escaped(decision)))
    rows += [("Rows", f"{manifest.rows:,}"), ("Size", _size(manifest.bytes))]
    if isinstance(facts.get("peak_rss_bytes"), int):
        rows.append(("Peak memory", _size(facts["peak_rss_bytes"])))
    shown_facts = [name for name in ("seconds", "device", "dtype", "host") if name in facts]
    rows += [(name.capitalize(), escaped(_plain(facts[name]))) for name in shown_facts]
    rows += [(f"Input {escaped(i.name)}", f"{escaped(i.step)} `{i.fingerprint[:12]}`") for i in manifest.inputs]
    return _table(rows[0], rows[1:])


def _where(manifest: Manifest, store: Store) -> str:
    looked_at = [o for role in ("gallery", "report") for o in manifest.objects_of(role)] + _sheets(manifest)
    where = [(o.role, store.url(o.key)) for o in looked_at]
    return _paths([*where, ("manifest", store.manifest_uri(manifest.step, manifest.fingerprint))])


def _description(manifest: Manifest, decision: str) -> str:
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
        parts.append(_table(("Stage", "Rows left", "Share", ""), bars, right=(1, 2)))
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
    told = [(escaped(words(name)), escaped(remedy)) for name, remedy in silent.items()]
    parts += ["### What was not checked", _table(("What", "How it would be"), told)]
    reports = [("report", store.url(o.key)) for o in manifest.objects_of("report")]
    if reports:
        parts += ["The whole report, with pictures by reason, is one file to open in a browser:", _paths(reports)]
    return Card(key_of(manifest.step, "report"), f"{len(told)} things were not checked", "\n\n".join(parts))


def _evaluation_card(manifest: Manifest, store: Store, decision: str) -> Card:
    """What the model is and whether it is better than the last, its drawings, then figures, protocol and the run."""
    parts = ["## What the model can do"]
    if isinstance(manifest.stats.get("summary"), str):
        parts.append(escaped(manifest.stats["summary"]))
    parts += [_sheet_in(store, obj) for obj in _sheets(manifest)]
    if manifest.objects_of("report"):
        parts.append("Where it fails, what it copies and every picture: the report below is one file for a browser.")
    parts.append(_where(manifest, store))
    parts += _figures_and_protocol(manifest, store)
    parts += ["### The run", _run_table(manifest, decision)]
    return Card(key_of(manifest.step, "report"), _description(manifest, decision), "\n\n".join(parts))


def _sheet_in(store: Store, obj: ObjectRef) -> str:
    """A sheet within a card. One that is damaged costs its own place, not the figures beside it."""
    title = escaped(_SHEETS.get(obj.role, words(obj.role)))
    try:
        return f"![{title}]({data_uri(small_picture(store.read(obj)))})"
    except Exception as error:
        return f"{title}: the picture cannot be shown, {escaped(f'{type(error).__name__}: {error}')}"


def _figures_and_protocol(manifest: Manifest, store: Store) -> list[str]:
    found = manifest.objects_of("metrics")
    if not found:
        return []
    document = json.loads(store.read(found[0]))
    figures = {
        name: value for name, value in document.get("metrics", document).items() if isinstance(value, int | float)
    }
    rows = [
        (escaped(m.name), _with_interval(m), escaped(m.better or "–"), escaped(m.meaning)) for m in metrics_of(figures)
    ]
    parts = ["### All figures", _table(("Figure", "Value", "Better is", "What it means"), rows, right=(1,))]
    protocol = document.get("protocol")
    if isinstance(protocol, Mapping):
        told = [(escaped(words(name)), escaped(_plain(value))) for name, value in _flat(protocol)]
        parts += ["### How it was measured", _table(("What", "How"), told)]
    return parts


def _with_interval(metric: Metric) -> str:
    if metric.value is None:
        return "–"
    bounds = [number(bound) for bound in (metric.low, metric.high) if bound is not None]
    interval = f" [{', '.join(bounds)}]" if bounds else ""
    return escaped(f"{number(metric.value)} {metric.unit}".rstrip() + interval)


def _curve_card(manifest: Manifest, store: Store, decision: str) -> Card | None:
    found = manifest.objects_of("curve")
    if not found:
        return None
    table = pq.read_table(pa.BufferReader(store.read(found[0])))
    numeric = [f.name for f in table.schema if pa.types.is_integer(f.type) or pa.types.is_floating(f.type)]
    columns = {name: table.column(name).to_pylist() for name in numeric}
    references = [(str(name), float(value)) for name, value in (manifest.stats.get("references") or {}).items()]
    png = curve_png(curves_of(columns, references)[:MAX_CURVES])
    if not png:
        return None
    text = f"## {escaped(words(manifest.step))}: curves of the training\n\n![curves of the training]({data_uri(png)})"
    return Card(key_of(manifest.step, "curve"), f"{table.num_rows:,} points", text)


def _sheet_maker(obj: ObjectRef) -> CardMaker:
    def make(manifest: Manifest, store: Store, decision: str) -> Card:
        title = f"{escaped(words(manifest.step))}: {escaped(_SHEETS.get(obj.role, words(obj.role))).lower()}"
        picture = data_uri(small_picture(store.read(obj)))
        text = f"## {title}\n\n![{title}]({picture})\n\n{_paths([('full size', store.url(obj.key))])}"
        return Card(key_of(manifest.step, obj.role), _SHEETS.get(obj.role, words(obj.role)), text)

    return make


def _sheets(manifest: Manifest) -> list[ObjectRef]:
    return [o for o in manifest.objects if o.role == "sheet" or o.role.startswith("sheet.")]


# --- formatting --------------------------------------------------------------------------------------------------


def small_picture(image: bytes, limit: int = MAX_PICTURE_BYTES) -> bytes:
    """The picture itself when it has at most ``limit`` bytes, else a JPEG that does: quality gives first, then size."""
    if len(image) <= limit and data_uri(image):
        return image
    with Image.open(io.BytesIO(image)) as opened:
        picture = opened.convert("RGB")
    for side in (1600, 1280, 1024, 800, 640, 480, 320):
        picture.thumbnail((side, side * 4), Image.Resampling.LANCZOS)
        for quality in (88, 75):
            out = io.BytesIO()
            picture.save(out, "JPEG", quality=quality, subsampling=0)
            if out.tell() <= limit:
                return out.getvalue()
    return out.getvalue()


def _flat(stats: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Scalars of nested mappings under dotted names, without those that have a card of their own."""
    for name, value in stats.items():
        if not prefix and name in _SPOKEN_FOR:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, bool | int | float | str):
            yield prefix + name, value


def _figures(stats: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (escaped(words(name)), escaped(_plain(value))) for name, value in _flat(stats) if not isinstance(value, str)
    ]


def _plain(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return number(value)


def _objects(manifest: Manifest) -> list[tuple[str, str, str, str]]:
    by_role: dict[str, list[ObjectRef]] = {}
    for obj in manifest.objects:
        by_role.setdefault(obj.role, []).append(obj)
    return [
        (escaped(role), f"{len(objs):,}", f"{sum(o.rows for o in objs):,}", _size(sum(o.bytes for o in objs)))
        for role, objs in by_role.items()
    ]


def _counts(what: str, counts: Mapping[str, int]) -> str:
    return _table((what, "Rows"), [(escaped(words(name)), f"{count:,}") for name, count in counts.items()], right=(1,))


def _size(num_bytes: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes} B"


def _paths(named: Sequence[tuple[str, str]]) -> str:
    """Long paths in a fenced block, which scrolls; in a line or a table they would run off the page."""
    lines = [f"{name}  {' '.join(path.split())}" for name, path in named]
    return "\n".join(("```", *lines, "```"))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    rule = ["---:" if i in right else "---" for i in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


# --- progress ----------------------------------------------------------------------------------------------------


class ProgressReporter:
    """A listener of one step's events that shows them in the Prefect run: a progress artifact and lines in the log.

    Updates are sent by a thread of their own, one at a time and at most one per ``every_s``: a server that is slow or
    away never holds up the step. Outside a run it does nothing.
    """

    def __init__(self, stage: str, *, every_s: float = UPDATE_EVERY_S) -> None:
        self._stage = stage
        self._every_s = every_s
        self._active = _in_run()
        self.updates = 0  # sent so far
        self._artifact: UUID | None = None
        self._lock = threading.Lock()
        self._latest: tuple[float, str] | None = None
        self._sending = False
        self._sent_at = -math.inf
        self._logged_at = -math.inf
        self._first: dict[str, tuple[float, int, int]] = {}  # when and where counting began, and how far it is

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take one event of ``tasks.launch``; kinds it does not know are passed over."""
        if not self._active:
            return
        try:
            self._take(event)
        except Exception as error:  # an odd event is no reason to stop the work that it tells of
            _log("debug", f"an event was not shown: {type(error).__name__}: {error}")

    def _take(self, event: Mapping[str, Any]) -> None:
        kind = event.get("event")
        if kind == "progress":
            self._progress(event)
        elif kind == "log":
            _log("info", str(event["text"]))
        elif kind == "picture":
            run = contextvars.copy_context()  # a thread of its own: a slow server must not hold up the step
            threading.Thread(target=run.run, args=(self._picture, event), daemon=True).start()
        elif kind in ("start", "reused"):
            _log("info", f"{self._stage} {event['fingerprint'][:12]}: {event['decision']}")
            if kind == "reused":
                self._show(100.0, f"{self._stage}: {event['decision']}", final=True)

    def _picture(self, event: Mapping[str, Any]) -> None:
        """One artifact per step, with its history: the newest is on top."""
        try:
            title = str(event["title"])
            image = data_uri(small_picture(base64.b64decode(event["png"])))
            create_markdown_artifact(
                f"## {escaped(title)}\n\n![{escaped(title)}]({image})",
                key=key_of(self._stage, "live"),
                description=title,
            )
        except Exception as error:  # a picture is a courtesy
            _log("debug", f"a picture was not shown: {type(error).__name__}: {error}")

    def _progress(self, event: Mapping[str, Any]) -> None:
        done, total = int(event["done"]), int(event["total"])
        now = time.monotonic()
        text = self._text(event, done, total, now)
        if done >= total or now - self._logged_at >= LOG_EVERY_S:
            self._logged_at = now
            _log("info", text)
        self._show(100.0 * min(done / total, 1.0) if total else 100.0, text, final=done >= total)

    def _text(self, event: Mapping[str, Any], done: int, total: int, now: float) -> str:
        unit = str(event.get("unit", "rows"))
        started, offset, before = self._first.get(unit, (now, done, done))
        if done < before:  # a second set under the same unit begins
            started, offset = now, done
        self._first[unit] = (started, offset, done)
        rate = (done - offset) / (now - started) if now > started else 0.0
        parts = [f"{self._stage}: {done:,} of {total:,} {unit}"]
        if rate > 0:
            parts.append(f"{number(round(rate, 1))} {unit}/s")
            if done < total:
                parts.append(f"{(total - done) / rate:,.0f} s left")
        parts += [f"{words(name)} {number(float(value))}" for name, value in (event.get("figures") or {}).items()]
        return ", ".join(parts)

    def _show(self, percent: float, text: str, *, final: bool) -> None:
        with self._lock:
            self._latest = (percent, text)
            if self._sending or (not final and time.monotonic() - self._sent_at < self._every_s):
                return
            self._sending = True
        run = contextvars.copy_context()  # the thread belongs to the same task run
        threading.Thread(target=run.run, args=(self._send,), name=f"progress-{self._stage}", daemon=True).start()

    def _send(self) -> None:
        """Send the latest figure; again when a final one came in the meantime."""
        while True:
            with self._lock:
                if self._latest is None or (self._latest[0] < 100 and time.monotonic() - self._sent_at < self._every_s):
                    self._sending = False
                    return
                percent, text = self._latest
                self._latest = None
                self._sent_at = time.monotonic()
                self.updates += 1
            try:
                if self._artifact is None:
                    made = create_progress_artifact(percent, key=key_of(self._stage, "progress"), description=text)
                    self._artifact = made if isinstance(made, UUID) else None
                else:
                    update_progress_artifact(self._artifact, percent, description=text)
            except Exception as error:  # progress is a courtesy
                _log("debug", f"progress was not sent: {type(error).__name__}: {error}")


def _in_run() -> bool:
    return TaskRunContext.get() is not None or FlowRunContext.get() is not None


def _log(level: str, text: str) -> None:
    getattr(get_run_logger(), level)(text)
