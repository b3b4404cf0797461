"""Which pictures are kin, who survives among them, and how kin is kept on one side of every split."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dalle_model.curation.components import Int64Array, roots, union
from dalle_model.curation.hashes import UInt64Array, near_pairs
from dalle_model.curation.vectors import near_vectors

SPLITS = ("train", "valid", "test", "heldout")
TIERS = ("", "bytes", "hash", "embedding")  # "" marks the head of a cluster, which joined nothing

Links = tuple[Int64Array, Int64Array, npt.NDArray[np.float64]]  # nodes, nodes, distances

_NOBODY = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Kinship:
    """Clusters of some rows, each in the row's order.

    cluster uint64 [n]: the smallest picture number among the kin. tier uint8 [n]: index into TIERS of the tier that
    joined the row to its cluster; just one row per cluster, the head, has tier 0. distance float64 [n]: how far its
    nearest kin was at that tier: 0, bits of 64, or the embedding's own distance; NaN for heads.
    """

    cluster: UInt64Array
    tier: npt.NDArray[np.uint8]
    distance: npt.NDArray[np.float64]


def survivor_rank(
    ids: UInt64Array, side_px: npt.NDArray[np.floating[Any]], caption_chars: npt.NDArray[np.floating[Any]]
) -> Int64Array:
    """Place of every row under the survivor rule, 0 = survives first; all different.

    The rule: of kin, the picture with the larger source survives (shorter side in px; a vector picture, NaN, has no
    limit), then the longer caption, then the smaller id. It knows no order of arrival.
    """
    size = np.where(np.isnan(side_px), np.inf, side_px)
    order = np.lexsort((np.arange(len(ids)), ids, -caption_chars, -size))
    rank = np.empty(len(ids), np.int64)
    rank[order] = np.arange(len(ids))
    return rank


def first_of_each(keys: list[npt.NDArray[np.uint64]], rank: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """True for the row with the smallest ``rank`` (then the smallest index) among rows that agree in all keys."""
    return best_of_each(keys, rank, 1)


def best_of_each(keys: list[npt.NDArray[np.uint64]], rank: npt.NDArray[Any], count: int) -> npt.NDArray[np.bool_]:
    """True for the ``count`` rows of smallest ``rank`` (then the smallest index) among rows that agree in all keys."""
    total = len(rank)
    order = np.lexsort((np.arange(total), rank, *reversed(keys)))
    new = np.ones(total, bool)
    if total > 1:
        new[1:] = np.any([key[order][1:] != key[order][:-1] for key in keys], axis=0)
    start = np.maximum.accumulate(np.where(new, np.arange(total), 0))
    kept = np.zeros(total, bool)
    kept[order[np.arange(total) - start < count]] = True
    return kept


def captions_per_picture(pictures: UInt64Array, distinct: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """For each row the number of different captions of its picture; ``distinct`` marks one row per caption."""
    names, group = np.unique(pictures, return_inverse=True)
    return np.bincount(group, weights=distinct, minlength=len(names)).astype(np.int64)[group]


def cluster(pictures: UInt64Array, hashes: UInt64Array, near_bits: int) -> UInt64Array:
    """Cluster of each row by equal pictures and near hashes alone; see ``kinship``."""
    return kinship(pictures, hashes, np.arange(len(pictures)), near_bits).cluster


def kinship(
    pictures: UInt64Array,
    hashes: UInt64Array,
    rank: Int64Array,
    near_bits: int,
    embeddings: npt.NDArray[Any] | None = None,
    near_distance: float = 0.0,
) -> Kinship:
    """Join rows in three tiers: equal pictures, near perceptual hashes, near embeddings; and the kin of kin.

    ``pictures`` are digests of the pixels; equal ones have equal hashes and embeddings. ``near_bits`` -1 leaves the
    second tier out, ``embeddings`` None (else [n, d]) the third. ``rank`` decides who is the head of a cluster, see
    ``survivor_rank``. Time and memory grow nearly linearly with the number of rows.
    """
    tier, distance = np.zeros(len(pictures), np.uint8), np.full(len(pictures), np.nan)
    names, picture = np.unique(pictures, return_inverse=True)
    # `group` maps a different picture to its component so far, `head` a component to its best row.
    head = _best_rows(picture, rank, len(names))
    joined = np.ones(len(pictures), bool)
    joined[head] = False
    tier[joined], distance[joined] = TIERS.index("bytes"), 0.0
    rows, group = head.copy(), np.arange(len(names))
    if near_bits >= 0 and len(names):
        nearest = np.full(len(names), np.inf)
        after = _join(group, _hash_links(hashes[rows], near_bits), nearest)
        group, head = _record(TIERS.index("hash"), group, after, head, nearest, rank, tier, distance)
    if embeddings is not None and len(names):
        nearest = np.full(len(names), np.inf)
        after = _join(group, near_vectors(embeddings[rows], near_distance), nearest)
        group, head = _record(TIERS.index("embedding"), group, after, head, nearest, rank, tier, distance)
    smallest = np.full(len(names), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, group, names)
    return Kinship(smallest[group][picture] if len(names) else pictures.copy(), tier, distance)


def _best_rows(group: Int64Array, rank: Int64Array, count: int) -> Int64Array:
    """Row of the smallest rank of each of ``count`` groups."""
    best = np.full(count, _NOBODY)
    np.minimum.at(best, group, rank)
    row_of = np.empty(len(rank), np.int64)
    row_of[rank] = np.arange(len(rank))
    found: Int64Array = row_of[best]
    return found


def _hash_links(hashes: UInt64Array, bits: int) -> Iterable[Links]:
    """Links among pictures: those of equal hashes, and those of near ones through one picture of each hash."""
    distinct, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    others = np.flatnonzero(first[which] != np.arange(len(hashes)))
    yield first[which[others]], others, np.zeros(len(others))
    for left, right in near_pairs(distinct, bits):
        yield first[left], first[right], np.bitwise_count(distinct[left] ^ distinct[right]).astype(np.float64)


def _join(group: Int64Array, links: Iterable[Links], nearest: npt.NDArray[np.float64]) -> Int64Array:
    """Components when the links are added to the components ``group``; ``nearest`` learns each component's best link.

    Links are taken in large bundles: one union costs a pass over all nodes.
    """
    parent = np.arange(len(group))
    held: list[tuple[Int64Array, Int64Array]] = []
    count = 0
    for left, right, distance in links:
        a, b = group[left], group[right]
        apart = a != b
        a, b, distance = a[apart], b[apart], distance[apart]
        np.minimum.at(nearest, a, distance)
        np.minimum.at(nearest, b, distance)
        held.append((a, b))
        count += len(a)
        if count >= max(len(group), 65_536):
            union(parent, *map(np.concatenate, zip(*held, strict=True)))
            held, count = [], 0
    if held:
        union(parent, *map(np.concatenate, zip(*held, strict=True)))
    return np.asarray(roots(parent)[group])


def _record(
    number: int,
    before: Int64Array,
    after: Int64Array,
    heads: Int64Array,
    nearest: npt.NDArray[np.float64],
    rank: Int64Array,
    tier: npt.NDArray[np.uint8],
    distance: npt.NDArray[np.float64],
) -> tuple[Int64Array, Int64Array]:
    """Write down which heads lost that place at this tier; returns the components and their heads by component."""
    components = np.unique(before)
    best = np.full(len(heads), _NOBODY)
    np.minimum.at(best, after, rank[heads[before]])
    row_of = np.empty(len(rank), np.int64)
    row_of[rank] = np.arange(len(rank))
    new_heads = heads.copy()
    standing = np.unique(after)
    new_heads[standing] = row_of[best[standing]]
    place = np.full(len(heads), -1)
    place[before] = after  # component before -> component after
    lost = components[heads[components] != new_heads[place[components]]]
    tier[heads[lost]] = number
    distance[heads[lost]] = nearest[lost]
    return after, new_heads


def split_of(clusters: UInt64Array, valid_share: float, test_share: float, seed: int) -> npt.NDArray[np.uint8]:
    """Index into SPLITS for each row, by a hash of its cluster: rows that come later never move earlier ones.

    (A later row can only rename a cluster when it is a near-duplicate whose picture number is the smallest.)
    """
    distinct, group = np.unique(clusters, return_inverse=True)
    place = _places(distinct, f"{seed}:")
    split = np.zeros(len(distinct), np.uint8)
    split[place < test_share + valid_share] = SPLITS.index("valid")
    split[place < test_share] = SPLITS.index("test")
    return split[group]


def fold_of(clusters: UInt64Array, folds: int, seed: int) -> npt.NDArray[np.int64]:
    """Fold of each row, 0 .. folds - 1, by a hash of its cluster: kin is in one fold, and every cluster is in one.

    The hash is another than that of ``split_of``, so that validation rows are spread over all folds.
    """
    distinct, group = np.unique(clusters, return_inverse=True)
    number = np.minimum((_places(distinct, f"fold:{seed}:") * folds).astype(np.int64), folds - 1)
    return np.asarray(number[group], np.int64)


def held_out(caption: str, every: int) -> bool:
    """Whether a caption is one of those held out of training: a fixed rule on its text alone."""
    return int.from_bytes(hashlib.sha256(f"heldout:{caption}".encode()).digest()[:8], "big") % every == 0


def _places(names: UInt64Array, salt: str) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each name."""
    return np.fromiter((_unit(f"{salt}{int(name):016x}") for name in names), np.float64, len(names))


def _unit(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
