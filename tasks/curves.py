"""Curves over training steps, drawn twice from one layout: as SVG for pages and as PNG for the Prefect UI.

The PNG is drawn with Pillow alone. Equal data gives equal bytes.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from markupsafe import Markup, escape
from PIL import Image, ImageDraw, ImageFont

Point = tuple[float, float]

# Distinct under the common colour deficiencies (Okabe and Ito, "Color Universal Design", 2008), darkened for white.
COLOURS = ("#0b6fb8", "#c2570c", "#0d8a66", "#a8498b", "#8a6d00", "#3f6f8f")
MAX_POINTS = 400
_SPLIT_WORDS = frozenset({"train", "training", "valid", "validation", "loss"})


@dataclass(frozen=True)
class Series:
    """One line: ``points`` are (step, value); points that are not finite are left out."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Curve:
    """One plot. ``references`` are horizontal lines (name, value), for example ln K: a model that learned nothing."""

    title: str
    series: tuple[Series, ...]
    references: tuple[tuple[str, float], ...] = ()
    unit: str = ""
    note: str = ""


def curves_of(
    columns: Mapping[str, Sequence[float | None]], references: Sequence[tuple[str, float]] = (), *, title: str = "Loss"
) -> tuple[Curve, ...]:
    """The curves of a training table: all losses in one plot, first, with ``references``; every other column in its own.

    ``columns`` has ``step`` and numeric columns of equal length; gaps are None. Columns without two finite values, and
    columns that never change, say nothing and are left out.
    """
    steps = columns.get("step", ())
    losses: list[Series] = []
    others: list[Curve] = []
    for name, values in columns.items():
        points = _finite(tuple((s, v) for s, v in zip(steps, values, strict=False) if s is not None and v is not None))
        if name == "step" or len(points) < 2 or len({v for _, v in points}) < 2:
            continue
        series = Series(_readable(name), points)
        if "loss" in name or "nll" in name:
            losses.append(series)
        else:
            others.append(Curve(series.name, (series,)))
    if len(losses) > 1:
        losses = [replace(series, name="total") if series.name == "loss" else series for series in losses]
    loss = [Curve(title, tuple(losses), tuple(references), unit="nats" if references else "")] if losses else []
    return (*loss, *others)


def _readable(column: str) -> str:
    words = column.replace(".", " ").replace("_", " ").replace("/", " ").split()
    kept = [w for w in words if w != "loss"] if len(words) > 1 else words
    return " ".join(sorted(kept, key=lambda w: w in _SPLIT_WORDS))


def _finite(points: Sequence[Point]) -> tuple[Point, ...]:
    return tuple((float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y))


def _thinned(points: tuple[Point, ...]) -> tuple[Point, ...]:
    """At most MAX_POINTS points: the mean of equal runs, and the last point as it is."""
    if len(points) <= MAX_POINTS:
        return points
    size = math.ceil(len(points) / (MAX_POINTS - 1))
    runs = [points[i : i + size] for i in range(0, len(points) - 1, size)]
    return (*((sum(x for x, _ in r) / len(r), sum(y for _, y in r) / len(r)) for r in runs), points[-1])


def number(value: float) -> str:
    """A figure for a person: four significant digits, thousands apart, no exponent where it can be helped."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 1e-4 else f"{value:.2e}"


def _linear_ticks(low: float, high: float, wanted: int) -> list[float]:
    raw = (high - low) / max(wanted, 1)
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    marks = (1, 2, 5) if last - first <= 3 else (1,)
    decades = range(first, last + 1, math.ceil((last - first) / 8))
    return [m * 10.0**d for d in decades for m in marks if low <= m * 10.0**d <= high]


@dataclass(frozen=True)
class _Line:
    name: str
    colour: int
    thin: bool
    points: tuple[Point, ...]  # px
    last: float


@dataclass(frozen=True)
class _Layout:
    """Where everything goes, in px of a ``width`` x ``height`` picture; the two renderers only draw."""

    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: list[tuple[float, str]] = field(default_factory=list)
    y_ticks: list[tuple[float, str]] = field(default_factory=list)
    lines: list[_Line] = field(default_factory=list)
    references: list[tuple[float, str]] = field(default_factory=list)
    labels: list[tuple[float, str, int]] = field(default_factory=list)  # y, text, colour


def _layout(curve: Curve, width: int, height: int) -> _Layout | None:
    """None when the curve has no finite point."""
    series = [(s.name, _thinned(_finite(s.points))) for s in curve.series]
    series = [(name, points) for name, points in series if points]
    if not series:
        return None
    xs = [x for _, points in series for x, _ in points]
    ys = [y for _, points in series for _, y in points]
    references = [(name, y) for name, y in curve.references if math.isfinite(y)]
    low, high = min(ys + [y for _, y in references]), max(ys + [y for _, y in references])
    log = low > 1e-300 and math.log(high) - math.log(low) > math.log(30)
    pad = 0.0 if log else (high - low or abs(high) or 1.0) * 0.06
    low, high = (low / 1.15, high * 1.15) if log else (max(0.0, low - pad) if low >= 0 else low - pad, high + pad)
    x0, x1 = min(xs), max(xs)
    x1 = x1 if x1 > x0 else x0 + 1
    box = _Layout(width, height, left=58, right=width - 168, top=14, bottom=height - 34)

    def px(x: float) -> float:
        return round(box.left + (x - x0) / (x1 - x0) * (box.right - box.left), 2)

    def py(y: float) -> float:
        share = (math.log(y) - math.log(low)) / (math.log(high) - math.log(low)) if log else (y - low) / (high - low)
        return round(box.bottom - share * (box.bottom - box.top), 2)

    box.x_ticks.extend((px(x), number(x)) for x in _linear_ticks(x0, x1, 6))
    box.y_ticks.extend((py(y), number(y)) for y in (_log_ticks(low, high) if log else _linear_ticks(low, high, 5)))
    box.references.extend((py(y), f"{name} {number(y)}") for name, y in references)
    subjects: dict[str, list[str]] = {}
    for name, _ in series:
        subjects.setdefault(_subject(name), []).append(name)
    order = list(subjects)
    for name, points in series:
        siblings = subjects[_subject(name)]
        thin = len(siblings) > 1 and "train" in name
        line = _Line(name, order.index(_subject(name)), thin, tuple((px(x), py(y)) for x, y in points), points[-1][1])
        box.lines.append(line)
    labels = [(line.points[-1][1], f"{line.name} {number(line.last)}", line.colour) for line in box.lines]
    box.labels.extend(_spread(labels, box))
    return box


def _subject(name: str) -> str:
    return " ".join(w for w in name.split() if w not in _SPLIT_WORDS)


def _spread(labels: list[tuple[float, str, int]], box: _Layout, gap: float = 16) -> list[tuple[float, str, int]]:
    """Labels moved apart so that none covers another, in the order of their heights, inside the box."""
    placed: list[tuple[float, str, int]] = []
    for y, text, colour in sorted(labels):
        y = max(y, placed[-1][0] + gap) if placed else max(y, box.top + 4)
        placed.append((y, text, colour))
    limit = box.bottom - 2
    for i in range(len(placed) - 1, -1, -1):
        y, text, colour = placed[i]
        placed[i] = (min(y, limit), text, colour)
        limit = placed[i][0] - gap
    return placed


def curve_svg(curve: Curve, *, width: int = 820, height: int = 300) -> Markup:
    """Inline SVG without style attributes (a strict policy forbids them): the page's style sheet colours its classes.

    A curve without a finite point gives an empty string.
    """
    box = _layout(curve, width, height)
    if box is None:
        return Markup("")
    summary = ", ".join(f"{line.name} ends at {number(line.last)}" for line in box.lines)
    name = escape(f"{curve.title}: {summary}")
    parts = [f'<svg class="curve" viewBox="0 0 {width} {height}" role="img" aria-label="{name}">']

    def text(kind: str, x: float, y: float, words: str, anchor: str = "start") -> None:
        parts.append(f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>')

    for y, words in box.y_ticks:
        parts.append(f'<path class="rule" d="M{box.left} {y}H{box.right}"/>')
        text("tick", box.left - 8, y + 4, words, "end")
    for x, words in box.x_ticks:
        text("tick", x, box.bottom + 18, words, "middle")
    text("tick", box.right + 26, box.bottom + 18, "step")
    if curve.unit:
        text("tick", box.left - 8, box.top - 3, curve.unit, "end")
    for y, words in box.references:
        parts.append(f'<path class="reference" d="M{box.left} {y}H{box.right}"/>')
        text("reference-name", box.right - 4, y - 5, words, "end")
    for line in box.lines:
        path = "L".join(f"{x} {y}" for x, y in line.points)
        thin = " thin" if line.thin else ""
        parts.append(f'<path class="line c{line.colour % len(COLOURS)}{thin}" d="M{path}"/>')
    for y, words, colour in box.labels:
        text(f"label c{colour % len(COLOURS)}", box.right + 10, y + 4, words)
    parts.append("</svg>")
    return Markup("".join(parts))


def curve_png(curves: Sequence[Curve], *, width: int = 820, height: int = 300) -> bytes:
    """The curves one below the other as a PNG on white, for places that show only pictures; b"" without any point."""
    drawn = [(curve, box) for curve in curves if (box := _layout(curve, width, height)) is not None]
    if not drawn:
        return b""
    head = 26
    picture = Image.new("RGB", (width * _SCALE, (height + head) * len(drawn) * _SCALE), "white")
    for i, (curve, box) in enumerate(drawn):
        _Pen(ImageDraw.Draw(picture), (height + head) * i + head).plot(curve, box)
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return out.getvalue()


_SCALE = 2  # px of the PNG per px of the layout: sharp on dense screens


@dataclass(frozen=True)
class _Pen:
    """Draws one layout into a picture, ``dy`` px down."""

    draw: ImageDraw.ImageDraw
    dy: float

    def plot(self, curve: Curve, box: _Layout) -> None:
        self.text(12, -10, curve.title + (f", {curve.unit}" if curve.unit else ""), "#1b1c1f", "lm", size=15)
        for y, words in box.y_ticks:
            self.line([(box.left, y), (box.right, y)], "#e4e4e0", 1)
            self.text(box.left - 8, y, words, "#62656d", "rm")
        for x, words in box.x_ticks:
            self.text(x, box.bottom + 14, words, "#62656d", "mm")
        self.text(box.right + 26, box.bottom + 14, "step", "#62656d", "lm")
        for y, words in box.references:
            for x in range(int(box.left), int(box.right), 8):
                self.line([(x, y), (x + 4, y)], "#8a8d95", 1)
            self.text(box.right - 4, y - 9, words, "#62656d", "rm")
        for line in box.lines:
            self.line(line.points, COLOURS[line.colour % len(COLOURS)], 1 if line.thin else 2.5)
        for y, words, colour in box.labels:
            self.text(box.right + 10, y, words, COLOURS[colour % len(COLOURS)], "lm")

    def text(self, x: float, y: float, words: str, fill: str, anchor: str, *, size: int = 12) -> None:
        font = ImageFont.load_default(size * _SCALE)
        self.draw.text((x * _SCALE, (y + self.dy) * _SCALE), words, fill=fill, font=font, anchor=anchor)

    def line(self, points: Sequence[Point], fill: str, width: float) -> None:
        scaled = [(x * _SCALE, (y + self.dy) * _SCALE) for x, y in points]
        self.draw.line(scaled if len(scaled) > 1 else scaled * 2, fill=fill, width=round(width * _SCALE), joint="curve")
