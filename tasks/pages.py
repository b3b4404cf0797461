"""Pages that people look at: the gallery of a generation batch, and the evaluation report.

Each page is one file that needs nothing else: pictures are data URIs, and a content security policy forbids every
request, every style and every script but the page's own (by hash). Text from outside is escaped by Jinja; characters
that could reorder or hide text are shown by name. Equal input gives equal bytes: nothing here knows the time.
"""

import base64
import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tasks.curves import Curve, curve_svg, number

Verdict = Literal["good", "fair", "poor", ""]
Better = Literal["higher", "lower", ""]
SHOWN_SAMPLES = 24  # of a sheet; the rest is folded away
SHOWN_TAGS = 40
MAX_PER_ROW = 6

# Marks that reorder text (embeddings, overrides, isolates) or that nobody sees.
_INVISIBLE = frozenset(
    "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c\u200b\u2060\ufeff\u00ad"
)
_MAGIC = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"))


# --- the report's input ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Headline:
    """One of the few figures that matter, explained. ``share`` and ``goal`` (0..1) draw a bar with a mark."""

    name: str
    value: float | str
    meaning: str
    verdict: Verdict = ""
    hint: str = ""  # what would be good or bad, e.g. "0.5 or more is the goal; chance is 0.01"
    share: float | None = None
    goal: float | None = None


@dataclass(frozen=True)
class Metric:
    """One row of the table of metrics, with its confidence interval and the value of the model before this one."""

    name: str
    value: float | None
    unit: str = ""
    better: Better = ""
    low: float | None = None
    high: float | None = None
    previous: float | None = None
    meaning: str = ""
    protocol: str = ""  # features, number of samples, seed, reference set


@dataclass(frozen=True)
class Funnel:
    """Rows left after each stage, and why the others were dropped."""

    title: str
    stages: tuple[tuple[str, int], ...]
    reasons: Mapping[str, int] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """An encoded picture (PNG, JPEG, WebP) with a short label: training picture, reconstruction, generated."""

    label: str
    image: bytes


@dataclass(frozen=True)
class Sample:
    """Pictures of one caption, side by side. ``recognised`` None = not judged."""

    caption: str
    pictures: tuple[Picture, ...]
    recognised: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class Sheet:
    """A section of samples: training captions, held-out compositions, worst prompts."""

    title: str
    intro: str
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Neighbour:
    """A generated picture beside the training picture nearest to it."""

    caption: str
    generated: bytes
    nearest: bytes
    nearest_caption: str
    distance: float
    copied: bool | None = None  # so near that it counts as a copy; None = not judged
    note: str = ""


@dataclass(frozen=True)
class ComparedFigure:
    """One figure of two models on the same prompts. ``p``: of the paired sign test; ``verdict`` on the second model."""

    name: str
    before: float
    now: float
    difference: float
    low: float
    high: float
    pairs: int
    wins: int
    losses: int
    p: float
    verdict: str
    decides: bool


@dataclass(frozen=True)
class Compared:
    """A model against the one before it."""

    sentence: str
    rows: tuple[ComparedFigure, ...]


@dataclass(frozen=True)
class Ancestor:
    """One artifact that this evaluation stands on."""

    step: str
    kind: str
    fingerprint: str
    uri: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportData:
    """All that the report can show. An empty section is left out of the page."""

    title: str
    summary: str  # two or three sentences in plain words
    facts: Mapping[str, str] = field(default_factory=dict)
    headlines: tuple[Headline, ...] = ()
    sheets: tuple[Sheet, ...] = ()  # the sheet of training captions
    heldout: Sheet | None = None
    worst: Sheet | None = None
    compared: Compared | None = None
    neighbours: tuple[Neighbour, ...] = ()
    neighbours_note: str = ""
    curves: tuple[Curve, ...] = ()
    funnels: tuple[Funnel, ...] = ()
    metrics: tuple[Metric, ...] = ()
    lineage: tuple[Ancestor, ...] = ()
    notes: tuple[str, ...] = ()  # caveats, one sentence each


# --- pages -------------------------------------------------------------------------------------------------------


def gallery_html(rows: Iterable[Mapping[str, Any]], *, title: str, facts: Mapping[str, str], tile_px: int) -> bytes:
    """One HTML file that shows a batch: pictures by prompt, search, tags, provenance on click, refusals with reasons.

    ``rows`` have the columns of ``records.GENERATION`` and are shown in their order; ``facts`` stand in the head of the
    page; ``tile_px`` is the side of a picture on the page, in CSS px.
    """
    cards, made_by = _cards(rows)
    counts = Counter(tag for card in cards for tag in card.tags)
    # Where most prompts have as many pictures, the cards stand in columns; else each is as wide as it needs.
    sizes = Counter(len(card.drawn) for card in cards if card.drawn)
    usual, times = max(sizes.items(), key=lambda item: (item[1], item[0]), default=(1, 0))
    rules = "".join(f".n{n}{{--n:{n}}}" for n in sorted(sizes))
    return _page(
        "gallery.html.j2",
        style=_text("gallery.css") + f":root{{--tile:{tile_px}px;--n:{min(usual, MAX_PER_ROW)}}}{rules}",
        script=_text("gallery.js"),
        mixed=times < 0.75 * sizes.total(),
        usual=usual,
        title=title,
        facts=facts,
        cards=cards,
        data={"cards": [card.data() for card in cards], "made_by": made_by},
        tile_px=tile_px,
        tags=sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:SHOWN_TAGS],
        num_pictures=sum(len(card.drawn) for card in cards),
        num_refused=sum(1 for card in cards if card.refused),
    )


@dataclass
class _Drawn:
    uri: str
    index: int
    seed: int
    made_by: int


@dataclass
class _Card:
    """One prompt of the gallery with everything that was drawn for it."""

    prompt: str
    tags: list[str]
    sha: str
    drawn: list[_Drawn] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # distinct reasons
    remarks: list[str] = field(default_factory=list)  # distinct reasons of drawn rows, such as a cut caption

    def data(self) -> dict[str, Any]:
        """What the page's script knows. Seeds are 64 bits: as text they survive JavaScript, whose numbers hold 53."""
        pictures = [[p.index, str(p.seed), p.made_by] for p in self.drawn]
        return {"prompt": self.prompt, "tags": self.tags, "sha": self.sha, "pictures": pictures}


def _cards(rows: Iterable[Mapping[str, Any]]) -> tuple[list[_Card], list[dict[str, str]]]:
    """Rows by prompt and tags in the order of their first appearance, and the distinct ways in which they were made."""
    cards: dict[tuple[str, str], _Card] = {}
    made_by: dict[tuple[str, str, str, str], int] = {}
    for row in rows:
        key = (row["prompt"], row["tags"])
        card = cards.setdefault(key, _Card(row["prompt"], tags_of(row["tags"]), row["prompt_sha256"]))
        reasons = card.remarks if row["status"] == "drawn" else card.refused
        reason = row["reason"] or ("" if row["status"] == "drawn" else "no reason was recorded")
        if reason and reason not in reasons:
            reasons.append(reason)
        if row["status"] != "drawn":
            continue
        by = made_by.setdefault((row["model"], row["sampler"], row["code_version"], row["negative"]), len(made_by))
        card.drawn.append(_Drawn(data_uri(row["image"]), row["index"], row["seed"], by))
    return list(cards.values()), [{"model": m, "sampler": s, "code": c, "negative": n} for m, s, c, n in made_by]


def report_html(data: ReportData) -> bytes:
    """The evaluation report as one HTML file without scripts, for a reader who does not train models for a living.

    Its order is that of the reader's questions: what is it, is it better than the last, where does it fail, is it
    copying; then all drawings, then curves and tables.
    """
    curves = [(curve, svg) for curve in data.curves if (svg := curve_svg(curve))]
    funnels = [(funnel, _shares(funnel.stages)) for funnel in data.funnels if funnel.stages]
    sections = [
        ("headlines", "In short", data.headlines),
        ("compared", "Better than the last?", data.compared),
        ("worst", shown(data.worst.title) if data.worst else "", data.worst and data.worst.samples),
        ("copying", "Is it copying?", data.neighbours),
        *((f"samples-{i}", shown(sheet.title), sheet.samples) for i, sheet in enumerate(data.sheets, 1)),
        ("heldout", shown(data.heldout.title) if data.heldout else "", data.heldout and data.heldout.samples),
        ("curves", "How it learned", curves),
        ("funnel", "What it learned from", funnels),
        ("metrics", "All figures", data.metrics),
        ("notes", "Read with care", data.notes),
        ("lineage", "Where it comes from", data.lineage),
    ]
    return _page(
        "report.html.j2",
        style=_text("report.css"),
        script="",
        title=data.title,
        data=data,
        curves=curves,
        funnels=funnels,
        sections=[(anchor, name) for anchor, name, content in sections if content],
        shown_samples=SHOWN_SAMPLES,
    )


def curation_html(*, title: str, **values: Any) -> bytes:
    """The report of a curation as one HTML file without scripts; ``values`` are those of ``tasks.curation_report``."""
    style = _text("report.css") + _text("curation.css")
    values["stages"] = _shares(values.pop("funnel"))
    return _page("curation.html.j2", style=style, script="", title=title, **values)


def _page(template: str, *, style: str, script: str, **values: Any) -> bytes:
    style = _text("page.css") + style
    allowed = [f"style-src {_hash(style)}", *([f"script-src {_hash(script)}"] if script else [])]
    policy = "; ".join(("default-src 'none'", "img-src data:", *allowed, "base-uri 'none'", "form-action 'none'"))
    page = _environment().get_template(template)
    return page.render(style=Markup(style), script=Markup(script), policy=policy, **values).encode("utf-8", "replace")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _text(name: str) -> str:
    return files("tasks").joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tasks"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(shown=shown, number=number, datauri=data_uri, words=words, pretty=pretty)
    return environment


# --- text and pictures -------------------------------------------------------------------------------------------


def shown(text: str) -> str:
    """Text that can be looked at: control characters and those that reorder or hide text are named, e.g. ⟨U+202E⟩.

    Joiners and variation selectors stay, because emoji and many scripts need them.
    """
    return "".join(f"⟨U+{ord(c):04X}⟩" if _deceives(c) else c for c in text)


def _deceives(char: str) -> bool:
    return char in _INVISIBLE or (unicodedata.category(char) in ("Cc", "Cs") and char not in "\t\n\r")


def tags_of(text: str) -> list[str]:
    """Tags of a row: a JSON list, or words between commas."""
    if text.lstrip().startswith("["):
        try:
            listed = json.loads(text)
        except ValueError:
            listed = None
        if isinstance(listed, list):
            return list(dict.fromkeys(str(tag).strip() for tag in listed if str(tag).strip()))
    return list(dict.fromkeys(tag.strip() for tag in text.replace(";", ",").split(",") if tag.strip()))


def data_uri(image: bytes) -> str:
    """The picture's own bytes as a data URI; empty when they are no PNG, JPEG, GIF or WebP."""
    kind = next((mime for magic, mime in _MAGIC if image.startswith(magic)), "")
    if not kind and image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        kind = "image/webp"
    return f"data:{kind};base64,{base64.b64encode(image).decode()}" if kind else ""


def words(name: str) -> str:
    """A reason or rule code as words: ``caption_too_short`` -> caption too short."""
    return name.replace("_", " ").replace(".", ": ")


def pretty(config: Mapping[str, Any]) -> str:
    """A config as JSON that a person can read."""
    return json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)


def _shares(stages: Sequence[tuple[str, int]]) -> list[tuple[str, int, float]]:
    """Each stage of a funnel with its share of the first."""
    first = stages[0][1] if stages else 0
    return [(name, rows, rows / first if first else 0.0) for name, rows in stages]
