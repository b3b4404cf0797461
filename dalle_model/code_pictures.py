"""The use of a codebook as a picture: which codes carry how much, which are dead, and how many differ at each place."""

import io
import math

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from dalle_model.errors import DataError

_SIDE_PX = 256  # of each of the three panels
_GAP_PX = 24
_HEAD_PX = 58
_FOOT_PX = 34
_INK, _PAPER, _DEAD = (32, 32, 32), (255, 255, 255), (214, 60, 52)
_LOW, _HIGH = np.array([222.0, 235.0, 247.0]), np.array([8.0, 48.0, 107.0])  # light to dark blue

UInt8 = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float64]


def code_usage_picture(ids: npt.NDArray[np.int64], vocab_size: int) -> bytes:
    """Ids [R, N] of R pictures with N = g x g places -> PNG of three panels.

    Heat map: one cell per code in the order of ids, dark = often, red = never. Ranks: codes from the most frequent on,
    both axes logarithmic, beside the line of equal use. Places: perplexity of the codes at each place of the grid.
    Equal input gives equal bytes. Raises DataError when there is nothing to count.
    """
    grid = math.isqrt(ids.shape[1]) if ids.ndim == 2 else 0
    if not ids.size or grid * grid != ids.shape[1]:
        raise DataError(f"ids of shape {ids.shape} are no pictures of a square grid; give int [pictures, places]")
    counts = np.bincount(ids.reshape(-1), minlength=vocab_size).astype(np.float64)
    perplexity, dead = _perplexity(counts), int((counts == 0).sum())
    sheet = Image.new("RGB", (3 * _SIDE_PX + 4 * _GAP_PX, _HEAD_PX + _SIDE_PX + _FOOT_PX), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font, large = ImageFont.load_default(size=12), ImageFont.load_default(size=15)
    title = f"{vocab_size - dead:,} of {vocab_size:,} codes used, {dead:,} dead; perplexity {perplexity:,.1f}"
    draw.text((_GAP_PX, 8), f"{title}; {len(ids):,} pictures", fill=_INK, font=large)
    places = np.array([_perplexity(np.bincount(column, minlength=vocab_size)) for column in ids.T])
    most = min(vocab_size, len(ids))
    panels = (
        ("codes by number: dark = often, red = never", _square(_heat_map(counts)), ""),
        ("codes by rank, both scales logarithmic", _ranks(counts), "grey: equal use of all codes"),
        (
            "codes in use at each place of the grid",
            _square(_shades(places.reshape(grid, grid) / max(places.max(), 1e-9))),
            f"perplexity {places.min():.1f} to {places.max():.1f}; at most {most:,}",
        ),
    )
    for i, (name, panel, note) in enumerate(panels):
        left = _GAP_PX + i * (_SIDE_PX + _GAP_PX)
        draw.text((left, _HEAD_PX - 20), name, fill=_INK, font=font)
        sheet.paste(Image.fromarray(panel), (left, _HEAD_PX))
        draw.rectangle((left - 1, _HEAD_PX - 1, left + _SIDE_PX, _HEAD_PX + _SIDE_PX), outline=(160, 160, 160))
        draw.text((left, _HEAD_PX + _SIDE_PX + 8), note, fill=_INK, font=font)
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=True)
    return out.getvalue()


def _perplexity(counts: npt.ArrayLike) -> float:
    p = np.asarray(counts, np.float64)
    p = p[p > 0] / p.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def _shades(values: FloatArray) -> UInt8:
    """Values in [0, 1], any shape -> colours with a last axis of 3."""
    shown: UInt8 = (_LOW + (_HIGH - _LOW) * np.clip(values, 0, 1)[..., None]).round().astype(np.uint8)
    return shown


def _heat_map(counts: FloatArray) -> UInt8:
    side = math.ceil(math.sqrt(len(counts)))
    cells = np.full((side * side, 3), 255, np.uint8)
    cells[: len(counts)] = _shades(np.log1p(counts) / math.log1p(max(counts.max(), 1)))
    cells[: len(counts)][counts == 0] = _DEAD
    return cells.reshape(side, side, 3)


def _ranks(counts: FloatArray) -> UInt8:
    """Counts from the largest to the smallest over their rank, and the level of equal use."""
    panel = Image.new("RGB", (_SIDE_PX, _SIDE_PX), _PAPER)
    draw = ImageDraw.Draw(panel)
    ordered = np.sort(counts[counts > 0])[::-1]
    wide, high = math.log(max(len(counts), 2)), math.log(max(ordered.max(), 2))
    edge = _SIDE_PX - 1

    def at(rank: float, count: float) -> tuple[float, float]:
        return edge * math.log(rank) / wide, edge * (1 - max(math.log(count), 0.0) / high)

    equal = max(counts.sum() / len(counts), 1.0)
    draw.line([at(1, equal), at(len(counts), equal)], fill=(160, 160, 160), width=1)
    points = [at(i + 1, c) for i, c in enumerate(ordered.tolist())]
    draw.line([*points, (points[-1][0], edge)], fill=(8, 48, 107), width=2)
    return np.asarray(panel)


def _square(cells: UInt8) -> UInt8:
    """Cells [a, a, 3] enlarged to a panel with hard borders, or reduced where there are more cells than pixels."""
    way = Image.Resampling.NEAREST if len(cells) <= _SIDE_PX else Image.Resampling.BOX
    return np.asarray(Image.fromarray(cells).resize((_SIDE_PX, _SIDE_PX), way))
