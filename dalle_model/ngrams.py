"""Are whole pieces taken over? Runs of tokens that stand in the training set, of pictures and of captions.

A model that draws a training picture is found by the nearest picture; one that patches drawings together from pieces of
several is found by the runs that they share. For text this is the n-gram novelty of McCoy et al. 2023 (arXiv 2111.09509).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dalle_model.errors import DataError

FloatArray = npt.NDArray[np.float64]

_PIECE = 512


def grid_runs_known(rows: npt.ArrayLike, training: npt.ArrayLike, n: int) -> FloatArray:
    """Share of each row's runs of n tokens that some training row has at the same place: ints [r, N], [m, N] -> [r].

    Only at the same place: image tokens stand for pieces of a picture, and a run of background is known everywhere.
    DataError when n is not within 1 and N.
    """
    a, b = np.asarray(rows), np.asarray(training)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not 1 <= n <= a.shape[1]:
        raise DataError(f"tokens of shapes {list(a.shape)} and {list(b.shape)} have no runs of {n} in common places")
    known = np.zeros((len(a), a.shape[1] - n + 1), np.bool_)
    for start in range(0, len(b), _PIECE):
        part = b[start : start + _PIECE]
        length = np.zeros((len(a), len(part)), np.int32)  # of the run that ends here
        for place in range(a.shape[1]):
            length = np.where(a[:, place, None] == part[None, :, place], length + 1, 0)
            if place >= n - 1:
                known[:, place - n + 1] |= (length >= n).any(1)
    return np.asarray(known.mean(1), np.float64)


def word_runs_known(texts: Sequence[str], training: Sequence[str], n: int) -> list[float | None]:
    """Share of each text's runs of n words that some training caption has, anywhere; None for fewer than n words.

    Words are what white space parts, in lower case.
    """
    known = {run for text in training for run in _runs(text, n)}
    shares: list[float | None] = []
    for text in texts:
        runs = _runs(text, n)
        shares.append(sum(run in known for run in runs) / len(runs) if runs else None)
    return shares


def _runs(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
