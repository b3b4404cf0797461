"""The one card of an evaluation in Prefect's UI, in the order of the report: what is it, where does it fail, is it
copying, then figures, protocol and the run.

Tables hold short cells alone and explanations are lists: in the older UI the column of text is 728 px wide in a window
of 1,300 px, and cells there never break.
"""

import io
import json
import re
from collections.abc import Mapping, Sequence

from PIL import Image

from tasks.artifacts import Manifest, ObjectRef
from tasks.cards import SHEET_TITLES, description, flat, run_table, sheets_of, where
from tasks.curves import number
from tasks.examples import COPIES, FAILS, ROLE, Example, read_examples
from tasks.figures import figures_by_split
from tasks.markdown import Card, escaped, key_of, plain, small_picture, table
from tasks.pages import Metric, data_uri, words
from tasks.store import Store

MAX_SHOWN = 6  # examples of a section
_TILE_PX, _GAP_PX = 80, 4
_STRIP_BYTES = 12_000
_SECTIONS = (
    (FAILS, "Where it fails", "The captions that came out worst"),
    (COPIES, "Is it copying?", "The drawings nearest to a training picture, copies first"),
)
_DIGEST = re.compile(r"[0-9a-f]{64}")


def evaluation_card(manifest: Manifest, store: Store, decision: str) -> Card:
    """Whatever is damaged costs its own place alone, as long as the figures can be read."""
    parts = ["## What the model can do"]
    if isinstance(manifest.stats.get("summary"), str):
        parts.append(escaped(manifest.stats["summary"]))
    parts += [_sheet(store, obj) for obj in sheets_of(manifest)]
    parts += _examples(manifest, store)
    if manifest.objects_of("report"):
        parts.append("More of them, and every picture: the report below is one file for a browser.")
    parts.append(where(manifest, store))
    parts += _figures_and_protocol(manifest, store)
    parts += ["### The run", run_table(manifest, decision)]
    return Card(key_of(manifest.step, "report"), description(manifest, decision), "\n\n".join(parts))


def _sheet(store: Store, obj: ObjectRef) -> str:
    title = escaped(SHEET_TITLES.get(obj.role, words(obj.role)))
    try:
        return f"![{title}]({data_uri(small_picture(store.read(obj)))})"
    except Exception as error:
        return f"{title}: the picture cannot be shown, {escaped(f'{type(error).__name__}: {error}')}"


# --- examples --------------------------------------------------------------------------------------------------------


def _examples(manifest: Manifest, store: Store) -> list[str]:
    """Nothing for evaluations of before they were kept."""
    found = manifest.objects_of(ROLE)
    if not found:
        return []
    try:
        rows = read_examples(store.read(found[0]))
        parts = []
        for section, title, intro in _SECTIONS:
            if some := [row for row in rows if row.section == section][:MAX_SHOWN]:
                parts += [f"### {title}", f"{intro}; from left to right: {escaped(_labels(some))}."]
                parts.append("\n".join(_item(row) for row in some))
        return parts
    except Exception as error:
        return [f"The worst drawings cannot be shown: {escaped(f'{type(error).__name__}: {error}')}"]


def _labels(rows: Sequence[Example]) -> str:
    longest = max(rows, key=lambda row: len(row.labels))
    return ", ".join(longest.labels)


def _item(row: Example) -> str:
    """A list item, which breaks its lines in both UIs, with the pictures of one caption as a strip below it."""
    said = f"**{escaped(row.caption)}**" if row.caption.strip() else "(no caption)"
    note = f": {escaped(row.note)}" if row.note else ""
    return f"- {said}{note}\n  ![{escaped(', '.join(row.labels))}]({data_uri(_strip(row.pictures))})"


def _strip(pictures: Sequence[bytes]) -> bytes:
    """Pictures side by side, each ``_TILE_PX`` wide, as one small picture. Enlarged ones keep hard pixels."""
    strip = Image.new("RGB", (len(pictures) * (_TILE_PX + _GAP_PX) - _GAP_PX, _TILE_PX), "white")
    for place, picture in enumerate(pictures):
        with Image.open(io.BytesIO(picture)) as opened:
            smaller = opened.width < _TILE_PX
            how = Image.Resampling.NEAREST if smaller else Image.Resampling.LANCZOS
            tile = opened.convert("RGB").resize((_TILE_PX, _TILE_PX), how)
        strip.paste(tile, (place * (_TILE_PX + _GAP_PX), 0))
    out = io.BytesIO()
    strip.save(out, "PNG")
    return small_picture(out.getvalue(), _STRIP_BYTES)


# --- figures ---------------------------------------------------------------------------------------------------------


def _figures_and_protocol(manifest: Manifest, store: Store) -> list[str]:
    found = manifest.objects_of("metrics")
    if not found:
        return []
    document = json.loads(store.read(found[0]))
    figures = {
        name: value for name, value in document.get("metrics", document).items() if isinstance(value, int | float)
    }
    parts: list[str] = []
    meanings: dict[str, str] = {}
    for split, metrics in figures_by_split(figures).items():
        head = ("Figure", "Value", "95 % range", "Better is")
        rows = [(escaped(m.name), _value(m), _range(m), m.better or "–") for m in metrics]
        parts += [f"### Figures: {split}", table(head, rows, right=(1, 2))]
        meanings |= {m.name: m.meaning for m in metrics if m.meaning}
    if meanings:
        parts += ["### What they mean", _told(meanings)]
    protocol = document.get("protocol")
    if isinstance(protocol, Mapping):
        parts += ["### How it was measured", _told({words(name): _short(plain(v)) for name, v in flat(protocol)})]
    return parts


def _told(named: Mapping[str, str]) -> str:
    return "\n".join(f"- **{escaped(name)}**: {escaped(text)}" for name, text in named.items())


def _short(text: str) -> str:
    """Digests by their first digits, as everywhere: whole ones have no place at which a line could break."""
    return _DIGEST.sub(lambda match: match[0][:12], text)


def _value(metric: Metric) -> str:
    return "–" if metric.value is None else escaped(f"{number(metric.value)} {metric.unit}".rstrip())


def _range(metric: Metric) -> str:
    bounds = [number(bound) for bound in (metric.low, metric.high) if bound is not None]
    return escaped(" to ".join(bounds)) or "–"
