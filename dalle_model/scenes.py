"""Captioned scenes whose truth is known exactly: one to three flat shapes on white, and the caption that fits them.

A scene is a pure function of (seed, index), the same on every machine: the random bits are Philox's raw stream, and
drawing uses no function beyond the four basic operations. The grammar of the captions, ``of`` and ``and`` aside:

    caption  = group | group place | group relation group | group "and" group
    group    = count [size] colour shape            "two small red circles", "an orange ring"
    place    = "at the left" | "at the right" | "at the top" | "at the bottom" | "in the centre"
    relation = "left of" | "right of" | "above" | "below"

Places and relations are said of single shapes only; a scene has three shapes at most.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float64]

SCENES_VERSION = 1
"""Rises whenever any scene or any pixel of one changes."""

# Seen from white these lie at least 20 degrees apart (see ``scene_checks``), so a paler edge keeps its colour's name.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 20, 40),
    "orange": (245, 130, 10),
    "yellow": (245, 225, 0),
    "green": (20, 160, 60),
    "blue": (30, 80, 220),
    "purple": (140, 40, 180),
    "black": (20, 20, 20),
}
# Area over the square of the radius, and the distance of the farthest point over the radius.
AREAS = {"circle": 3.141592653589793, "square": 3.24, "triangle": 1.89, "cross": 2.31, "ring": 2.356194490192345}
_REACH = {"circle": 1.0, "square": 1.28, "triangle": 1.22, "cross": 1.06, "ring": 1.0}
SHAPES = tuple(AREAS)
RADII = {"small": 0.09, "": 0.125, "large": 0.17}  # "": the caption does not name the size
SIZES = ("small", "large")
COUNTS = ("a", "two", "three")
PLACES = {
    "left": "at the left",
    "right": "at the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "centre": "in the centre",
}
RELATIONS = {"left": "left of", "right": "right of", "top": "above", "bottom": "below"}
_PLURALS = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}
_RADIUS_SPREAD = 0.05
_CENTRE_SHARE = 0.12  # a place is "centre" up to this distance from the middle along both axes
_GAP = 0.06  # between two shapes at least, and a third of it to the border; in sides of the picture
_SUPERSAMPLING = 4
_TRIES = 300


@dataclass(frozen=True, slots=True)
class Group:
    """What a caption says of ``count`` equal shapes; ``size`` "" = not said."""

    count: int
    size: str
    colour: str
    shape: str

    def words(self) -> str:
        """The group in the grammar."""
        noun = self.shape if self.count == 1 else _PLURALS[self.shape]
        words = [*([self.size] if self.size else []), self.colour, noun]
        article = "an" if self.count == 1 and words[0][0] in "aeiou" else COUNTS[self.count - 1]
        return " ".join([article, *words])


@dataclass(frozen=True, slots=True)
class Statement:
    """What a caption says: one or two groups, and a place of the one or a relation between the two ("" = not said)."""

    groups: tuple[Group, ...]
    place: str = ""
    relation: str = ""

    def words(self) -> str:
        """The caption."""
        first = self.groups[0].words()
        if len(self.groups) == 1:
            return f"{first} {PLACES[self.place]}" if self.place else first
        return f"{first} {RELATIONS[self.relation] if self.relation else 'and'} {self.groups[1].words()}"

    def things(self) -> list[Group]:
        """Each stated shape on its own, in the order of the caption."""
        return [group for group in self.groups for _ in range(group.count)]


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape in a picture. ``x``, ``y``: its centroid from the top left; ``radius``: both in sides of the picture."""

    colour: str
    shape: str
    size: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True)
class Scene:
    """A statement and shapes for which it is true, in the order of the caption."""

    statement: Statement
    things: tuple[Thing, ...]

    @property
    def caption(self) -> str:
        """The statement in words."""
        return self.statement.words()

    def record(self) -> dict[str, Any]:
        """The exact truth as plain JSON values."""
        return {"scene": asdict(self.statement) | {"things": [asdict(thing) for thing in self.things]}}


def place_of(x: float, y: float) -> str:
    """The place of a point in the unit square: centre, or the side towards which it lies farther from the middle."""
    dx, dy = x - 0.5, y - 0.5
    if max(abs(dx), abs(dy)) < _CENTRE_SHARE:
        return "centre"
    return relation_of(dx, dy)


def relation_of(dx: float, dy: float) -> str:
    """Where something displaced by (dx, dy) lies: left, right, top or bottom, by the longer of the two."""
    if abs(dx) >= abs(dy):
        return "left" if dx < 0 else "right"
    return "top" if dy < 0 else "bottom"


# --- captions --------------------------------------------------------------------------------------------------------

_NOUNS = {plural: shape for shape, plural in _PLURALS.items()} | {shape: shape for shape in SHAPES}
_GROUP = rf"(an?|two|three) (?:({'|'.join(SIZES)}) )?({'|'.join(COLOURS)}) ({'|'.join(_NOUNS)})"
_JOINTS = {words: name for name, words in RELATIONS.items()} | {"and": ""}
_PLACE_NAMES = {words: name for name, words in PLACES.items()}
_CAPTION = re.compile(rf"{_GROUP}(?: ({'|'.join(_PLACE_NAMES)})| ({'|'.join(_JOINTS)}) {_GROUP})?")


def parse_caption(caption: str) -> Statement | None:
    """What a caption of the grammar says, or None: it is another sentence, or one that no scene fulfils."""
    found = _CAPTION.fullmatch(caption)
    if found is None:
        return None
    words = found.groups(default="")
    groups = tuple(
        Group({"an": 1, "a": 1, "two": 2, "three": 3}[count], size, colour, _NOUNS[noun])
        for count, size, colour, noun in (words[:4], words[6:])
        if count
    )
    statement = Statement(groups, _PLACE_NAMES.get(words[4], ""), _JOINTS.get(words[5], ""))
    # What is not said as the grammar says it ("a red circles", "a orange ring") is not understood either.
    return statement if statement.words() == caption and _possible(statement) else None


def _possible(statement: Statement) -> bool:
    things = statement.things()
    alone = all(group.count == 1 for group in statement.groups)
    return len(things) <= 3 and (alone or not (statement.place or statement.relation))


# --- the generator ---------------------------------------------------------------------------------------------------


class _Dice:
    """Uniform numbers from Philox's raw stream, which NumPy keeps the same for ever (unlike Generator's methods)."""

    def __init__(self, seed: int, index: int) -> None:
        self._bits = np.random.Philox(key=np.array([seed, index], np.uint64))

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * ((int(self._bits.random_raw()) >> 11) * 2.0**-53)

    def choose(self, values: Sequence[Any]) -> Any:
        return values[int(self.uniform(0, len(values)))]


def scene_at(seed: int, index: int) -> Scene:
    """Scene number ``index`` of a seed; both from 0 to 2^64 - 1."""
    dice = _Dice(seed, index)
    while True:  # a statement whose shapes do not fit beside each other is thrown away
        statement = _state(dice)
        for _ in range(_TRIES):
            things = _arrange(statement, dice)
            if _fits(statement, things):
                return Scene(statement, things)


def _state(dice: _Dice) -> Statement:
    """A statement: a quarter each of groups alone, placed shapes, related shapes, and two groups."""
    form = dice.choose(("alone", "placed", "related", "together"))
    if form == "alone":
        return Statement((_group(dice, dice.choose((1, 2, 3))),))
    if form == "placed":
        return Statement((_group(dice, 1),), place=dice.choose(tuple(PLACES)))
    counts = (1, 1) if form == "related" else dice.choose(((1, 1), (1, 2), (2, 1)))
    first, second = _group(dice, counts[0]), _group(dice, counts[1])
    while (first.colour, first.shape) == (second.colour, second.shape):
        second = _group(dice, counts[1])
    return Statement((first, second), relation=dice.choose(tuple(RELATIONS)) if form == "related" else "")


def _group(dice: _Dice, count: int) -> Group:
    # Three large shapes do not fit beside each other, so no caption asks for them.
    sizes = ("", "", *SIZES) if count < 3 else ("", "small")
    return Group(count, dice.choose(sizes), dice.choose(tuple(COLOURS)), dice.choose(SHAPES))


def _arrange(statement: Statement, dice: _Dice) -> tuple[Thing, ...]:
    things = []
    for group in statement.things():
        radius = RADII[group.size] * dice.uniform(1 - _RADIUS_SPREAD, 1 + _RADIUS_SPREAD)
        edge = _REACH[group.shape] * radius + _GAP / 3
        x, y = dice.uniform(edge, 1 - edge), dice.uniform(edge, 1 - edge)
        things.append(Thing(group.colour, group.shape, group.size, x, y, radius))
    return tuple(things)


def _fits(statement: Statement, things: tuple[Thing, ...]) -> bool:
    """The shapes stand apart, and the statement is true of them by a clear margin."""
    for i, a in enumerate(things):
        for b in things[:i]:
            apart = _REACH[a.shape] * a.radius + _REACH[b.shape] * b.radius + _GAP
            if (a.x - b.x) ** 2 + (a.y - b.y) ** 2 < apart**2:
                return False
    if statement.place == "centre":
        return max(abs(things[0].x - 0.5), abs(things[0].y - 0.5)) < _CENTRE_SHARE / 2
    if statement.place:
        dx, dy = things[0].x - 0.5, things[0].y - 0.5
        clear = _is_clear(dx, dy) and max(abs(dx), abs(dy)) > _CENTRE_SHARE + 0.05
        return clear and place_of(things[0].x, things[0].y) == statement.place
    if statement.relation:
        dx, dy = things[0].x - things[1].x, things[0].y - things[1].y
        return _is_clear(dx, dy) and relation_of(dx, dy) == statement.relation
    return True


def _is_clear(dx: float, dy: float) -> bool:
    return min(abs(dx), abs(dy)) < 0.6 * max(abs(dx), abs(dy))


# --- drawing ---------------------------------------------------------------------------------------------------------


def coverage(shape: str, x: float, y: float, radius: float, px: int, box: tuple[int, int, int, int]) -> FloatArray:
    """Share of each pixel that a shape covers -> float64 [rows, columns] in [0, 1].

    ``x``, ``y`` (the centroid) and ``radius`` are in sides of the picture of ``px`` pixels; ``box`` is (top, left,
    bottom, right) in pixels. Each pixel is judged at 4 x 4 points.
    """
    top, left, bottom, right = box
    fine = _SUPERSAMPLING
    u = (np.arange(left * fine, right * fine, dtype=np.float64) + 0.5) / (fine * px * radius) - x / radius
    v = (np.arange(top * fine, bottom * fine, dtype=np.float64) + 0.5) / (fine * px * radius) - y / radius
    inside = _inside(shape, np.broadcast_to(u, (len(v), len(u))), v[:, None])
    share: FloatArray = inside.reshape(bottom - top, fine, right - left, fine).mean(axis=(1, 3))
    return share


def _inside(shape: str, u: FloatArray, v: FloatArray) -> npt.NDArray[np.bool_]:
    """Which points, in radii from the centroid, lie in the shape."""
    inside: npt.NDArray[np.bool_]
    if shape == "square":
        inside = np.maximum(abs(u), abs(v)) <= 0.9
    elif shape == "triangle":
        inside = (v <= 0.6) & (abs(u) * 1.8 <= (v + 1.2) * 1.05)
    elif shape == "cross":
        inside = (np.maximum(abs(u), abs(v)) <= 1) & (np.minimum(abs(u), abs(v)) <= 0.35)
    else:
        squared = u * u + v * v
        inside = (squared <= 1) & ((squared >= 0.25) | (shape == "circle"))
    return inside


def render(things: Sequence[Thing], px: int) -> UInt8Array:
    """Things on white -> uint8 [px, px, 3], edges softened over one pixel."""
    picture = np.full((px, px, 3), 255.0)
    for thing in things:
        share = coverage(thing.shape, thing.x, thing.y, thing.radius, px, (0, 0, px, px))[..., None]
        picture += share * (np.array(COLOURS[thing.colour], np.float64) - picture)
    rounded: UInt8Array = np.rint(picture).astype(np.uint8)
    return rounded
