"""Does one set of pictures touch another? Equal pictures, near perceptual hashes, near embeddings."""

from typing import Any

import numpy as np
import numpy.typing as npt

from dalle_model.curation.hashes import UInt64Array, near_pairs
from dalle_model.curation.products import near_across

# Digests of the pictures, their perceptual hashes, their embeddings or None.
PictureMarks = tuple[UInt64Array, UInt64Array, npt.NDArray[Any] | None]


def touching(ours: PictureMarks, theirs: PictureMarks, bits: int, distance: float) -> npt.NDArray[np.bool_]:
    """Which of our pictures equal one of theirs or are near one: at most ``bits`` of the hash, or ``distance`` apart.

    Embeddings count when both sets have them. Memory beside the marks grows linearly with the number of pictures of both.
    """
    touched = np.isin(ours[0], theirs[0])
    distinct = np.unique(np.concatenate([ours[1], theirs[1]]))
    foreign = np.isin(distinct, theirs[1])
    near = foreign.copy()
    for left, right in near_pairs(distinct, bits):
        near[right[foreign[left]]] = True
        near[left[foreign[right]]] = True
    touched |= np.isin(ours[1], distinct[near])
    if ours[2] is not None and theirs[2] is not None:
        touched |= near_across(ours[2], theirs[2], distance)
    return touched
