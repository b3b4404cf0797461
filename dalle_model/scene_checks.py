"""Does a picture show what its caption says? Measured in the pixels, for the captions of ``scenes``; no network.

Each pixel is seen as white mixed with one of the palette's colours: of the colours, the one whose direction from
white is nearest, in the share that the projection on it gives. Pixels of one colour and a share of at least a half
that touch each other are a shape, if they are enough. Its name is that of the shape which, drawn with the same
centroid and area, overlaps best; its size follows from the area. Blur moves neither centroid nor area, and paling
keeps the colour's direction, so what a tokenizer does to a picture hardly changes the verdict.

The verdicts are like GenEval's (Ghosh et al. 2023, arXiv 2310.11513), the measurement is our own.
"""

from collections.abc import Mapping, Sequence
from itertools import permutations

import numpy as np
import numpy.typing as npt

from dalle_model.scenes import (
    AREAS,
    COLOURS,
    RADII,
    FloatArray,
    Group,
    Statement,
    Thing,
    UInt8Array,
    coverage,
    parse_caption,
    place_of,
    relation_of,
)

_Pixels = npt.NDArray[np.int64]
ATTRIBUTES = ("count", "colour", "shape", "size", "place", "relation", "binding", "all")
CHECKS_VERSION = 1
"""Rises whenever a verdict could change; part of the protocol of every figure."""

_MIN_SHARE = 0.5  # of colour over white in a pixel of a shape
_MIN_AREA = 0.005  # of the picture: a third of the smallest shape that is ever drawn
_MIN_FIT = 0.6  # overlap with the best shape; below, it is none of them ("")
_MIN_TRACE = 0.1  # below, a pixel's share of a colour is noise
_BLURS = (0, 1, 2)  # further passes of the blur, one after the other
_MAX_THINGS = 6  # the largest are compared with the caption; more than that is wrong in any case
_NAMES = tuple(COLOURS)
_FROM_WHITE = 255.0 - np.array(list(COLOURS.values()), np.float64)  # [colours, 3]
_LENGTHS = np.linalg.norm(_FROM_WHITE, axis=1)


def verdicts(caption: str, picture: UInt8Array) -> dict[str, bool] | None:
    """Which attributes of a caption a picture uint8 [H, H, 3] meets; None when the caption is no scene's.

    ``count``: as many shapes as said. The shapes found are given to those said in the way that agrees best; then
    ``colour``, ``shape``, ``size``: each said one has its own; ``binding``: colour and shape together (colours that are
    swapped between two shapes fail here only or in one of the two); ``place`` and ``relation`` of their centroids;
    ``all``: everything said. What the caption does not say is not in the answer.
    """
    statement = parse_caption(caption)
    return None if statement is None else agreement(statement, measure(picture))


def agreement(statement: Statement, things: Sequence[Thing]) -> dict[str, bool]:
    """``verdicts`` on shapes that are known already: measured ones, or the truth of a scene."""
    said = statement.things()
    largest = sorted(things, key=lambda thing: -AREAS.get(thing.shape, 1.0) * thing.radius**2)[:_MAX_THINGS]
    padded = [*largest, *[None] * max(0, len(said) - len(largest))]
    best = max((_of_pairs(statement, said, chosen) for chosen in permutations(padded, len(said))), key=_merit)
    out = {"count": len(things) == len(said), **best}
    return out | {"all": all(out.values())}


def shares(captions: Sequence[str], pictures: UInt8Array) -> dict[str, list[bool]]:
    """Verdicts by attribute, in the order of the captions that say something of it; pictures uint8 [n, H, H, 3]."""
    out: dict[str, list[bool]] = {}
    for caption, picture in zip(captions, pictures, strict=True):
        for name, met in (verdicts(caption, picture) or {}).items():
            out.setdefault(name, []).append(met)
    return {name: out[name] for name in ATTRIBUTES if name in out}


def _merit(verdict: Mapping[str, bool]) -> tuple[bool, int]:
    return verdict["binding"], sum(verdict.values())


def _of_pairs(statement: Statement, said: Sequence[Group], found: Sequence[Thing | None]) -> dict[str, bool]:
    """Verdicts for one way of giving the shapes found to the shapes said; None = nothing was left to give."""
    pairs = list(zip(said, found, strict=True))
    out = {
        "colour": all(b is not None and a.colour == b.colour for a, b in pairs),
        "shape": all(b is not None and a.shape == b.shape for a, b in pairs),
        "binding": all(b is not None and (a.colour, a.shape) == (b.colour, b.shape) for a, b in pairs),
    }
    sized = [(a, b) for a, b in pairs if a.size]
    if sized:
        out["size"] = all(b is not None and a.size == b.size for a, b in sized)
    first, second = found[0], found[-1]
    if statement.place:
        out["place"] = first is not None and place_of(first.x, first.y) == statement.place
    if statement.relation:
        out["relation"] = (
            first is not None
            and second is not None
            and relation_of(first.x - second.x, first.y - second.y) == statement.relation
        )
    return out


# --- measuring -------------------------------------------------------------------------------------------------------


def measure(picture: UInt8Array) -> list[Thing]:
    """The shapes in a picture uint8 [H, H, 3], largest first. ``shape`` is "" when it resembles none."""
    px = picture.shape[0]
    missing = 255.0 - picture.astype(np.float64)
    length = np.maximum(np.linalg.norm(missing, axis=-1), 1e-9)
    nearest = (missing @ (_FROM_WHITE / _LENGTHS[:, None]).T / length[..., None]).argmax(-1)
    share = (missing * _FROM_WHITE[nearest]).sum(-1) / _LENGTHS[nearest] ** 2
    labels = np.where(share >= _MIN_SHARE, nearest, -1)
    regions = [region for region in _regions(labels) if len(region) >= _MIN_AREA * px**2]
    taken = np.zeros((px, px), np.int64)
    for number, region in enumerate(regions, start=1):
        taken[region[:, 0], region[:, 1]] = number
    found = [_thing(missing, taken, number, region) for number, region in enumerate(regions, start=1)]
    return sorted(found, key=lambda thing: -AREAS.get(thing.shape, 1.0) * thing.radius**2)


def _regions(labels: _Pixels) -> list[_Pixels]:
    """Pixels [n, 2] of each region of equal labels that touch, corners included; label -1 is background."""
    open_pixels = {(int(y), int(x)): int(labels[y, x]) for y, x in np.argwhere(labels >= 0)}
    regions = []
    while open_pixels:
        start, label = open_pixels.popitem()
        stack, region = [start], [start]
        while stack:
            y, x = stack.pop()
            for pixel in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if open_pixels.get(pixel) == label:
                    del open_pixels[pixel]
                    stack.append(pixel)
                    region.append(pixel)
        regions.append(np.array(region))
    return regions


def _thing(missing: FloatArray, taken: _Pixels, number: int, region: _Pixels) -> Thing:
    """What one region is. ``missing``: white minus the picture; ``taken``: number of the region at each pixel, or 0."""
    px = len(taken)
    colour = int((missing[region[:, 0], region[:, 1]].mean(0) @ (_FROM_WHITE / _LENGTHS[:, None]).T).argmax())
    # The soft edge of the shape lies outside the region, but not in the next one.
    edge = max(2, px // 32)
    top, left = np.maximum(region.min(0) - edge, 0)
    bottom, right = np.minimum(region.max(0) + edge + 1, px)
    window = np.s_[top:bottom, left:right]
    share = np.clip(missing[window] @ _FROM_WHITE[colour] / _LENGTHS[colour] ** 2, 0, 1)
    share[(taken[window] != number) & (taken[window] != 0)] = 0
    share[share < _MIN_TRACE] = 0
    area = share.sum()
    y = ((np.arange(top, bottom) + 0.5) * share.sum(1)).sum() / area / px
    x = ((np.arange(left, right) + 0.5) * share.sum(0)).sum() / area / px
    best, fit, radius = "", _MIN_FIT, float(np.sqrt(area)) / px
    for shape, unit in AREAS.items():
        size = float(np.sqrt(area / unit)) / px
        drawn = coverage(shape, x, y, size, px, (top, left, bottom, right))
        for passes in _BLURS:  # the picture may be softened; each shape is compared as soft as suits it best
            drawn = _soften(drawn, passes)
            overlap = float(np.minimum(drawn, share).sum() / np.maximum(drawn, share).sum())
            if overlap > fit:
                best, fit, radius = shape, overlap, size
    return Thing(_NAMES[colour], best, _size(radius), float(x), float(y), radius)


def _soften(share: FloatArray, passes: int) -> FloatArray:
    """Blurred ``passes`` times by the kernel 1/4, 1/2, 1/4 along both axes; beyond the border is nothing."""
    for _ in range(passes):
        for axis in (0, 1):
            wide = np.pad(share, [(1, 1) if axis == a else (0, 0) for a in (0, 1)])
            ahead, behind = (wide[2:], wide[:-2]) if axis == 0 else (wide[:, 2:], wide[:, :-2])
            share = (ahead + behind) / 4 + share / 2
    return share


def _size(radius: float) -> str:
    """The name of the size whose radius is nearest, "" for the one that has none."""
    return min(RADII, key=lambda name: abs(RADII[name] - radius))
