"""Perceptual hashes of pictures, and all pairs of hashes that differ in few bits, without comparing all with all."""

import math
from collections.abc import Iterator
from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt

UInt64Array = npt.NDArray[np.uint64]

SIDE_PX = 32
_LOW = 8  # the lowest 8 x 8 frequencies, as usual for this hash
# Integers, so that the hash is the same on every machine: float sums depend on the processor's kernels.
_COSINES = np.round(
    4096 * np.cos(np.pi / SIDE_PX * (np.arange(SIDE_PX)[None, :] + 0.5) * np.arange(_LOW)[:, None])
).astype(np.int64)


def perceptual_hashes(grey: npt.NDArray[np.uint8]) -> UInt64Array:
    """uint8 [B, 32, 32] grey pictures -> uint64 [B]: one bit per low frequency, set where it is above the median.

    Two pictures that look alike differ in few bits; colour does not count.
    """
    spectrum = (_COSINES @ grey.astype(np.int64)) @ _COSINES.T
    flat = spectrum.reshape(len(grey), _LOW * _LOW)
    middle = np.sort(flat, axis=1)[:, _LOW * _LOW // 2]
    bits = flat > middle[:, None]
    return np.packbits(bits, axis=1).view(">u8").astype(np.uint64).reshape(len(grey))


def near_pairs(hashes: UInt64Array, bits: int) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Index arrays (i, j) of distinct hashes at a Hamming distance of at most ``bits``, every such pair at least once.

    ``hashes`` must hold no value twice. The 64 bits are cut into ``bits + m`` bands; two hashes within ``bits`` agree
    in at least m of them, so equal keys of m bands are the only candidates. m is chosen for the least work.
    """
    if bits < 0 or len(hashes) < 2:
        return
    matched = min(range(1, 5), key=lambda m: _cost(len(hashes), bits, m))
    edges = np.linspace(0, 64, bits + matched + 1).astype(int)
    masks = [sum(1 << bit for bit in range(low, high)) for low, high in pairwise(edges)]
    for chosen in combinations(masks, matched):
        keys = hashes & np.uint64(sum(chosen))
        order = np.argsort(keys, kind="stable")
        yield from _within_buckets(hashes[order], keys[order], order, bits)


def _cost(count: int, bits: int, matched: int) -> float:
    """Comparisons plus sorting, for hashes spread evenly."""
    tables = math.comb(bits + matched, matched)
    return tables * count * (count / 2 ** (64 * matched / (bits + matched)) / 2 + 20)


def _within_buckets(
    hashes: UInt64Array, keys: UInt64Array, order: npt.NDArray[np.int64], bits: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Compare each entry with the one 1, 2, 3 ... places on, as long as the keys are equal."""
    left = np.arange(len(keys) - 1)
    step = 1
    while len(left):
        left = left[left + step < len(keys)]
        left = left[keys[left] == keys[left + step]]
        near = left[np.bitwise_count(hashes[left] ^ hashes[left + step]) <= bits]
        if len(near):
            yield order[near], order[near + step]
        step += 1
