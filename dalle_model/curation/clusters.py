"""Which pictures are kin, and how kin is kept on one side of every split."""

import hashlib

import numpy as np
import numpy.typing as npt

from dalle_model.curation.hashes import UInt64Array, near_pairs

SPLITS = ("train", "valid", "test", "heldout")


def first_of_each(keys: list[npt.NDArray[np.uint64]], rank: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """True for the row with the smallest ``rank`` (then the smallest index) among rows that agree in all keys."""
    count = len(rank)
    order = np.lexsort((np.arange(count), rank, *reversed(keys)))
    new = np.ones(count, bool)
    if count > 1:
        new[1:] = np.any([key[order][1:] != key[order][:-1] for key in keys], axis=0)
    kept = np.zeros(count, bool)
    kept[order[new]] = True
    return kept


def captions_per_picture(pictures: UInt64Array, distinct: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """For each row the number of different captions of its picture; ``distinct`` marks one row per caption."""
    names, group = np.unique(pictures, return_inverse=True)
    return np.bincount(group, weights=distinct, minlength=len(names)).astype(np.int64)[group]


def cluster(pictures: UInt64Array, hashes: UInt64Array, near_bits: int) -> UInt64Array:
    """Cluster of each row: the smallest picture number among its kin.

    ``pictures`` are digests of the pixels, ``hashes`` perceptual hashes. Equal pictures are always kin; with
    ``near_bits`` >= 0 so are pictures whose hashes differ in at most that many bits, and the kin of kin.
    """
    if near_bits < 0 or not len(pictures):
        return pictures.copy()
    distinct, group = np.unique(hashes, return_inverse=True)
    parent = np.arange(len(distinct))
    for left, right in near_pairs(distinct, near_bits):
        _union(parent, left, right)
    # Equal pictures have equal hashes, so groups of hashes hold whole groups of pictures.
    root = _roots(parent)[group]
    smallest = np.full(len(distinct), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, root, pictures)
    return smallest[root]


def _roots(parent: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Root of every node; also flattens the trees."""
    while True:
        above = parent[parent]
        if np.array_equal(above, parent):
            return parent
        parent[:] = above


def _union(parent: npt.NDArray[np.int64], left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> None:
    """Join the trees of left[k] and right[k] for all k, roots hooked under smaller roots until nothing changes."""
    while True:
        roots = _roots(parent)
        a, b = roots[left], roots[right]
        apart = a != b
        if not apart.any():
            return
        a, b = a[apart], b[apart]
        left, right = left[apart], right[apart]
        np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))


def split_of(clusters: UInt64Array, valid_share: float, test_share: float, seed: int) -> npt.NDArray[np.uint8]:
    """Index into SPLITS for each row, by a hash of its cluster: rows that come later never move earlier ones.

    (A later row can only rename a cluster when it is a near-duplicate whose picture number is the smallest.)
    """
    distinct, group = np.unique(clusters, return_inverse=True)
    place = np.fromiter((_unit(f"{seed}:{int(name):016x}") for name in distinct), np.float64, len(distinct))
    split = np.zeros(len(distinct), np.uint8)
    split[place < test_share + valid_share] = SPLITS.index("valid")
    split[place < test_share] = SPLITS.index("test")
    return split[group]


def held_out(caption: str, every: int) -> bool:
    """Whether a caption is one of those held out of training: a fixed rule on its text alone."""
    return int.from_bytes(hashlib.sha256(f"heldout:{caption}".encode()).digest()[:8], "big") % every == 0


def _unit(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
