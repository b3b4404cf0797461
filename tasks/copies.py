"""Is it copying? The nearest training picture of each drawing, in tokens and in features, and when that is a copy.

Both thresholds are set on the training pictures themselves: how near do different ones come to each other? A drawing
nearer than all but 2 in 1,000 of them do is a copy. Near-duplicates among the training pictures say nothing of that,
however many there are, and are left out. By features a copy is also nearer than a
quarter of their usual distance: of few pictures all are far from each other, and a blur is nearer to one of them without
being a copy. Own measure, after Carlini et al. 2023 (arXiv 2301.13188), who look at the distance to the nearest training
picture against that to others.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dalle_model.distances import squared_distances
from dalle_model.errors import DataError
from dalle_model.features import ThumbnailFeatures
from dalle_model.images import to_float
from tasks.pictures import spread

UInt8 = npt.NDArray[np.uint8]
UInt16 = npt.NDArray[np.uint16]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

_QUANTILE = 0.002  # for each of the two spaces
_SAME = 0.01  # root mean squared error of thumbnails, colours from 0 to 1: two and a half of 255 levels, nobody sees it
_CLOSE = 0.25  # of the root mean squared distance between training pictures, by features
_MOST_PROBES = 2000
_MOST_COMPARED = 2_000_000_000  # tokens compared to find the threshold
_PIECE = 512


@dataclass(frozen=True)
class Nearest:
    """For each of n drawings: rows of the nearest training picture by features and by tokens, and how far they are.

    feature_distance: root mean squared error of thumbnails. token_distance: share of the tokens that differ.
    copied: whether either is within its threshold. source: the row that it is a copy of, or that it is nearest to.
    times: how often the source stands in the training set, near-duplicates counted.
    """

    by_features: IntArray
    feature_distance: FloatArray
    by_tokens: IntArray
    token_distance: FloatArray
    copied: BoolArray
    source: IntArray
    times: IntArray


class CopyDetector:
    """Finds drawings nearer to a training picture than different training pictures come to each other."""

    def __init__(self, training: UInt8, tokens: UInt16) -> None:
        """``training`` uint8 [m, H, W, 3] and their image tokens uint16 [m, N]; N = 0 where there are none."""
        if len(training) != len(tokens):
            raise DataError(f"{len(training)} training pictures and {len(tokens)} rows of tokens do not pair up")
        self._features = ThumbnailFeatures()
        self._rows = self._thumbnails(training)
        self._tokens = tokens
        probes = spread(len(training), min(_MOST_PROBES, max(8, _MOST_COMPARED // max(tokens.size, 1))))
        squared = squared_distances(self._rows[probes], self._rows)
        same = squared <= _SAME**2  # itself, and its near-duplicates
        by_features = np.sqrt(np.where(same, np.inf, squared).min(axis=1))
        by_tokens = np.where(same, np.inf, token_distances(tokens[probes], tokens)).min(axis=1)
        # A picture that is there a hundred times is one picture: else it would be all that the quantile sees.
        different = np.unique(same.argmax(axis=1), return_index=True)[1]
        different = different[np.isfinite(by_features[different])]
        close = _CLOSE * float(squared.mean()) ** 0.5
        self.feature_threshold = max(_SAME, min(close, _low_quantile(by_features[different], 0.0)))
        # Strictly below: where different pictures share all tokens, tokens tell nothing. Equal ones only, of one picture.
        self.token_threshold = _low_quantile(by_tokens[different], 0.5 / tokens.shape[1] if tokens.shape[1] else 0.0)
        self.protocol: dict[str, Any] = {
            "feature_threshold": float(f"{self.feature_threshold:.9g}"),
            "token_threshold": float(f"{self.token_threshold:.9g}"),
            "rule": f"{_QUANTILE:g} quantile of the distances from training pictures to their nearest different one; nearer than {_SAME:g} is the same one; by features at most {_CLOSE:g} of the root mean squared distance",
            "probes": len(different),
            "reference_pictures": len(training),
            "features": {self._features.name: self._features.digest},
        }

    @property
    def features(self) -> ThumbnailFeatures:
        """What pictures are compared on."""
        return self._features

    def look(self, made: UInt8, tokens: UInt16) -> Nearest:
        """Drawings uint8 [n, H, W, 3] and their tokens uint16 [n, N]."""
        squared = squared_distances(self._thumbnails(made), self._rows)
        by_features = squared.argmin(axis=1)
        feature_distance = np.sqrt(squared[np.arange(len(squared)), by_features])
        away = token_distances(tokens, self._tokens)
        by_tokens = away.argmin(axis=1)
        token_distance = away[np.arange(len(away)), by_tokens]
        close = token_distance < self.token_threshold
        source = np.where(close, by_tokens, by_features)
        near = squared_distances(self._rows[source], self._rows) <= _SAME**2
        return Nearest(
            by_features,
            feature_distance,
            by_tokens,
            token_distance,
            copied=close | (feature_distance < self.feature_threshold),
            source=source,
            times=near.sum(axis=1),
        )

    def _thumbnails(self, pictures: UInt8) -> FloatArray:
        # In pieces: as floats at full size, all training pictures need four times their memory.
        pieces = [pictures[start : start + _PIECE] for start in range(0, len(pictures), _PIECE)]
        return np.concatenate([self._features.of(to_float(np.asarray(piece))) for piece in pieces])


def token_distances(a: UInt16, b: UInt16) -> FloatArray:
    """Share of the tokens that differ between rows [n, N] and [m, N] -> [n, m]."""
    differ = np.zeros((len(a), len(b)), np.int32)
    for left, right in zip(a.T, np.ascontiguousarray(b.T), strict=True):  # place by place: no n x m x N array
        differ += left[:, None] != right[None, :]
    share: FloatArray = differ / max(a.shape[1], 1)
    return share


def _low_quantile(distances: FloatArray, otherwise: float) -> float:
    """The lowest known distance counts as the quantile where there are too few for it; without any, ``otherwise``."""
    return float(np.quantile(distances, _QUANTILE, method="lower")) if len(distances) else otherwise
