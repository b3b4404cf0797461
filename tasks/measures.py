"""Figures beyond recognisability: distances between sets of pictures, variety, copies, and truth of captions.

Each function returns flat figures and its entry for the protocol. The published measures keep their names, with the
features they stand on; ``variety``, ``copied`` and ``scene_*`` are this project's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dalle_model.distances import (
    corrected_distance,
    density_coverage,
    frechet,
    mean_distance,
    nearest_distances,
    precision_recall,
    share_interval,
    sliced_wasserstein,
    squared_distances,
)
from dalle_model.features import Features, RandomFeatures, ThumbnailFeatures
from dalle_model.images import to_float
from dalle_model.scene_checks import CHECKS_VERSION, shares
from dalle_model.scenes import parse_caption
from tasks.fit_tokenizer import spread

UInt8 = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]

_RESAMPLES = 100  # of distances; shares have 1000
_MOST = 2000  # pictures compared each with each; more are thinned out evenly
_PIECE = 512
_NEIGHBOURS = 5
_COPY_QUANTILE = 0.05


@dataclass(frozen=True)
class Measured:
    """Figures by name, ``x_low`` and ``x_high`` being the 95 % interval of ``x``, and what one must know of them."""

    figures: dict[str, float]
    protocol: dict[str, Any]


def distributions(made: UInt8, truth: UInt8, rebuilt: UInt8, own_features: Features) -> Measured:
    """How far the set of drawings lies from the set of true pictures of the same captions, all uint8 [n, H, W, 3].

    ``own_features``: the tokenizer's. Sets too small for a measure go without it.
    """
    n = len(made)
    random = RandomFeatures()
    protocol: dict[str, Any] = {
        "sets": "drawings, and true pictures of the same captions",
        "n": n,
        "features": {f.name: f.digest for f in (random, own_features)},
        "interval": f"95 % basic bootstrap over captions, {_RESAMPLES} resamples, Philox seed 0; the figure is less its bootstrap bias",
        "neighbours": _NEIGHBOURS,
    }
    out: dict[str, float] = {}
    if n < 2:
        return Measured(out, protocol)
    a, b, c = (random.of(to_float(x)) for x in (truth, made, rebuilt))
    _add(out, "frechet_random", *corrected_distance(frechet, a, b, paired=True, resamples=_RESAMPLES))
    out["frechet_random_of_reconstructions"] = frechet(a, c)
    _add(
        out,
        "sliced_wasserstein_random",
        *corrected_distance(sliced_wasserstein, a, b, paired=True, resamples=_RESAMPLES),
    )
    own_a, own_b = (own_features.of(to_float(x)) for x in (truth, made))
    _add(
        out,
        "sliced_wasserstein_tokenizer",
        *corrected_distance(sliced_wasserstein, own_a, own_b, paired=True, resamples=_RESAMPLES),
    )
    rows = spread(n, _MOST)
    if len(rows) > _NEIGHBOURS:
        parts = (
            *precision_recall(a[rows], b[rows], k=_NEIGHBOURS),
            *density_coverage(a[rows], b[rows], k=_NEIGHBOURS),
        )
        for name, values in zip(("precision", "recall", "density", "coverage"), parts, strict=True):
            _add(out, name, float(values.mean()), share_interval(values))
    return Measured(out, protocol)


def variety(repeats: UInt8, groups: npt.NDArray[np.int64], made: UInt8) -> Measured:
    """Distance between drawings of one caption over that between drawings of different ones; own measure.

    repeats uint8 [r, H, W, 3] with the number of their caption [r]; made uint8 [n, H, W, 3], one of each caption.
    """
    thumbnails = ThumbnailFeatures()
    protocol = {
        "drawings": len(repeats),
        "captions": len(np.unique(groups)),
        "features": {thumbnails.name: thumbnails.digest},
    }
    if len(repeats) < 2 or len(made) < 2:
        return Measured({}, protocol)
    across = mean_distance(thumbnails.of(to_float(made[spread(len(made), _MOST)])))
    within = mean_distance(thumbnails.of(to_float(repeats)), groups)
    return Measured({"variety": within / across} if across > 0 else {}, protocol)


class CopyDetector:
    """Finds drawings nearer to a training picture than training pictures usually are to each other; own measure."""

    def __init__(self, training: UInt8) -> None:
        """``training``: uint8 [m, H, W, 3]. Equal training pictures do not count as each other's neighbours."""
        self._features = ThumbnailFeatures()
        # In pieces: as floats at full size, all training pictures need four times their memory.
        pieces = [training[start : start + _PIECE] for start in range(0, len(training), _PIECE)]
        self._rows = np.concatenate([self._features.of(to_float(piece)) for piece in pieces])
        probes = spread(len(training), _MOST)
        squared = squared_distances(self._rows[probes], self._rows)
        squared[squared == 0] = np.inf  # itself, and its duplicates
        nearest = np.sqrt(squared.min(axis=1))
        known = nearest[np.isfinite(nearest)]
        self.threshold = float(np.quantile(known, _COPY_QUANTILE)) if len(known) else 0.0
        self.protocol = {
            "threshold": float(f"{self.threshold:.9g}"),
            "rule": f"{_COPY_QUANTILE:g} quantile of the distances from training pictures to their nearest different one",
            "probes": len(probes),
            "reference_pictures": len(training),
            "features": {self._features.name: self._features.digest},
        }

    def copied(self, made: UInt8) -> BoolArray:
        """Which drawings uint8 [n, H, W, 3] lie within the threshold of a training picture -> bool [n]."""
        return nearest_distances(self._features.of(to_float(made)), self._rows)[0] <= self.threshold


def scenes(captions: Sequence[str], made: UInt8, rebuilt: UInt8, suffix: str = "") -> Measured:
    """For captions of scenes, the share of drawings that meet each attribute; empty when there are none.

    ``scene_all_chance``: the same drawings beside the caption of the next one. ``suffix`` names the split.
    """
    rows = np.array([i for i, caption in enumerate(captions) if parse_caption(caption)], np.int64)
    if not len(rows):
        return Measured({}, {})
    said = [captions[i] for i in rows]
    met = shares(said, made[rows])
    out: dict[str, float] = {}
    for name, values in met.items():
        _add(out, f"scene_{name}{suffix}", float(np.mean(values)), share_interval(values))
    out[f"scene_all_of_reconstructions{suffix}"] = float(np.mean(shares(said, rebuilt[rows])["all"]))
    out[f"scene_all_chance{suffix}"] = float(np.mean(shares(said[1:] + said[:1], made[rows])["all"]))
    counts = {name: len(values) for name, values in met.items()}
    return Measured(out, {"checks_version": CHECKS_VERSION, "captions_that_say_it": counts})


def share(name: str, values: BoolArray) -> dict[str, float]:
    """A share of pictures with its interval."""
    out: dict[str, float] = {}
    _add(out, name, float(values.mean()), share_interval(values))
    return out


def _add(out: dict[str, float], name: str, value: float, interval: tuple[float, float]) -> None:
    out[name] = value
    out[f"{name}_low"], out[f"{name}_high"] = interval
