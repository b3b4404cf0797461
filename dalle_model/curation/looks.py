"""Scores of pictures: plain measures of grey levels and colours, no network.

They are hints. What they can and cannot tell is measured in tests/benchmarks and told in infra/docs/curation.md: set
as cuts they should be looked at first (``dalle curate --what-if``, and the report's sheets).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

MAX_SIDE_PX = 256  # a larger picture is measured at this size: letters need it
FINE_SIDE_PX = 128  # blur and repetition are measured at this one: they cost the most
_EDGE = 48  # grey levels between neighbours that make an edge of a letter
_BLUR_TAPS = 9

UInt8 = npt.NDArray[np.uint8]
Int = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Look:
    """What the picture rules measure; see the functions."""

    entropy_bits: float
    blur: float
    text_share: float
    watermark: float
    aesthetic: float


def look(picture: Image.Image) -> Look:
    """Measure an RGB or grey picture."""
    # Entropy is that of the picture itself: means of neighbours would add levels.
    entropy = entropy_bits(np.array(picture.convert("L").histogram(), np.int64))
    shown = _at_most(picture.convert("RGB"), MAX_SIDE_PX)
    grey = shown.convert("L")
    fine = np.asarray(_at_most(grey, FINE_SIDE_PX))
    blurred = blur(fine)
    beauty = aesthetic(np.asarray(shown), entropy, blurred)
    return Look(entropy, blurred, text_share(np.asarray(grey)), watermark(fine), beauty)


def _at_most(picture: Image.Image, side_px: int) -> Image.Image:
    if max(picture.size) <= side_px:
        return picture
    scale = side_px / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BOX)


def entropy_bits(histogram: npt.NDArray[np.int64]) -> float:
    """Entropy of a grey histogram [256]: 0 for one flat colour, 8 at most."""
    counts = histogram[histogram > 0]
    total = int(counts.sum())
    # Rounded, so that the sum's order of additions cannot decide a verdict.
    return round(float(np.log2(total) - (counts * np.log2(counts)).sum() / total), 6) + 0.0


def blur(grey: UInt8) -> float:
    """How little a picture changes when it is blurred once more (Crété-Roffet et al. 2007): 0 sharp, 1 blurred.

    uint8 [H, W]. The measure compares differences of neighbours before and after a mean over 9 px, along rows and
    columns; the worse direction counts. Contrast does not matter. A picture without any edge is 1.
    """
    return max(_blur_along(grey), _blur_along(grey.T))


def _blur_along(grey: UInt8) -> float:
    levels = grey.astype(np.int32)
    padded = np.pad(levels, ((0, 0), (_BLUR_TAPS // 2 + 1, _BLUR_TAPS // 2)), mode="edge")
    sums = np.cumsum(padded, axis=1)
    mean = sums[:, _BLUR_TAPS:] - sums[:, :-_BLUR_TAPS]  # 9 times the mean: all in integers
    sharp = np.abs(np.diff(levels, axis=1)) * _BLUR_TAPS
    total = int(sharp.sum(dtype=np.int64))
    lost = int(np.maximum(sharp - np.abs(np.diff(mean, axis=1)), 0).sum(dtype=np.int64))
    return round((total - lost) / total, 6) if total else 1.0


def text_share(grey: UInt8) -> float:
    """Share of the picture in bands that look like lines of upright print, 0..1.

    A band is a run of rows with many strong edges across, at least 5 px high, between rows with few, and much wider
    than high. Text on a busy background, tilted or vertical, and letters smaller than that are not seen; fences,
    windows in a row and keyboards look like text.
    """
    height, width = grey.shape
    edges = np.abs(np.diff(grey.astype(np.int16), axis=1)) >= _EDGE
    counts = edges.sum(1)
    busy = counts >= max(8, width // 12)
    share = 0.0
    for top, end in _runs(busy):
        tall = end - top
        if not 5 <= tall <= height // 3 or not _quiet_beside(counts, top, end):
            continue
        columns = np.flatnonzero(edges[top:end].any(0))
        span = int(columns[-1] - columns[0])
        steady = np.mean(counts[top:end]) >= 2 * span / (tall * 2.2)  # at least one stroke per letter width
        if span >= 3 * tall and steady:
            share += tall * span / (height * width)
    return round(min(share, 1.0), 6)


def _runs(marks: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(first, end) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marks, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def _quiet_beside(counts: npt.NDArray[np.int64], top: int, end: int) -> bool:
    """Few edges right above and below, against those inside."""
    inside = float(np.median(counts[top:end]))
    above, below = counts[max(top - 3, 0) : top], counts[end : end + 3]
    return all(len(rows) == 0 or rows.min() <= 0.35 * inside for rows in (above, below))


def watermark(grey: UInt8) -> float:
    """How strongly fine detail repeats at a fixed distance, 0..1: a mark tiled over the picture does so.

    The highest autocorrelation of the picture's fine detail at a distance of an eighth to a half of its sides, against
    that at 0. Bricks, tiles and stripes repeat as well; a single mark in a corner is not seen.
    """
    if min(grey.shape) < 32:
        return 0.0
    levels = grey.astype(np.float32)
    detail = levels[1:-1, 1:-1] * 4 - levels[:-2, 1:-1] - levels[2:, 1:-1] - levels[1:-1, :-2] - levels[1:-1, 2:]
    limit = 3 * detail.std()
    if limit == 0:
        return 0.0
    detail = np.clip(detail, -limit, limit)  # the outline of one strong object must not decide
    detail -= detail.mean()
    # Padded: distances do not wrap around. Powers of two: other lengths cost several times as much.
    size = tuple(1 << int(2 * side - 1).bit_length() for side in detail.shape)
    power = np.abs(np.fft.rfft2(detail, s=size)) ** 2
    lags = np.fft.irfft2(power, s=size)
    rows, columns = detail.shape
    near_r, near_c = rows // 8, columns // 8
    half = lags[: rows // 2, :]
    half = np.concatenate([half[:, : columns // 2], half[:, -(columns // 2) :]], axis=1)
    # each lag is a sum over fewer pixels the longer it is
    across = np.concatenate([np.arange(columns // 2), np.arange(columns // 2, 0, -1)])
    overlap = (rows - np.arange(rows // 2))[:, None] * (columns - across)[None, :]
    value = half / overlap * detail.size / lags[0, 0]
    far = (np.arange(rows // 2)[:, None] >= near_r) | (across[None, :] >= near_c)
    return round(float(np.clip(value[far].max(), 0, 1)), 2)  # two digits: sums differ between processors


def aesthetic(picture: UInt8, entropy: float, blurred: float) -> float:
    """A rough guess at what people like, 0..1: the mean of colourfulness, contrast, tonal richness and sharpness.

    uint8 [H, W, 3]. Colourfulness is Hasler and Suesstrunk's (2003), full at 80; contrast is the standard deviation of
    luma, full at 64; richness is the entropy over 8 bits. It knows nothing of content or composition, so it is used as
    a sampling weight and not as a cut.
    """
    red, green, blue = (picture[..., c].astype(np.float64) for c in range(3))
    first, second = red - green, (red + green) / 2 - blue
    colourful = np.hypot(first.std(), second.std()) + 0.3 * np.hypot(first.mean(), second.mean())
    contrast = (0.299 * red + 0.587 * green + 0.114 * blue).std()
    parts = (min(colourful / 80, 1.0), min(contrast / 64, 1.0), min(entropy / 8, 1.0), 1.0 - blurred)
    return round(float(sum(parts) / 4), 3)
