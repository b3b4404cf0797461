"""Which nodes hang together, given links between them: whole arrays at a time."""

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]


def roots(parent: Int64Array) -> Int64Array:
    """Root of every node; also flattens the trees."""
    while True:
        above = parent[parent]
        if np.array_equal(above, parent):
            return parent
        parent[:] = above


def union(parent: Int64Array, left: Int64Array, right: Int64Array) -> None:
    """Join the trees of left[k] and right[k] for all k, roots hooked under smaller roots until nothing changes."""
    while True:
        tops = roots(parent)
        a, b = tops[left], tops[right]
        apart = a != b
        if not apart.any():
            return
        a, b = a[apart], b[apart]
        left, right = left[apart], right[apart]
        np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))
