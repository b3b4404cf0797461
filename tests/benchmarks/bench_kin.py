"""Clusters of many pictures: ``python tests/benchmarks/bench_kin.py``. Each size in a process of its own, so that its
peak of memory is its own; CPU seconds, which other programs on the machine disturb least.

Half of the pictures are alone; the rest are copies with up to 3 flipped bits in clusters of 2 to 200.
"""

import resource
import subprocess
import sys
import time

import numpy as np

from dalle_model.curation.clusters import kinship

SIZES = (62_500, 250_000, 1_000_000)


def world(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hashes [n], embeddings uint8 [n, 32], and the planted cluster of each."""
    rng = np.random.default_rng(0)
    sizes = rng.choice([2, 3, 5, 10, 50, 200], count // 40, p=[0.4, 0.3, 0.15, 0.1, 0.04, 0.01])
    planted = np.repeat(np.arange(len(sizes)), sizes)[: count // 2]
    cluster = np.concatenate([planted, len(sizes) + np.arange(count - len(planted))])
    base = rng.integers(0, 2**64, cluster[-1] + 1, dtype=np.uint64)
    hashes = base[cluster]
    for _ in range(3):
        flips = np.uint64(1) << rng.integers(0, 64, len(planted), dtype=np.uint64)
        hashes[: len(planted)] ^= np.where(rng.random(len(planted)) < 0.4, flips, np.uint64(0))
    vectors = rng.integers(40, 215, (cluster[-1] + 1, 32), dtype=np.uint8)[cluster]
    vectors[: len(planted)] += rng.integers(0, 3, (len(planted), 32), dtype=np.uint8)
    return hashes, vectors, cluster


def purity(found: np.ndarray, planted: np.ndarray) -> tuple[float, float]:
    """Share of planted neighbours found together, and of strangers found together."""
    same, apart = planted[1:] == planted[:-1], planted[1:] != planted[:-1]
    together = found[1:] == found[:-1]
    return float(together[same].mean()), float(together[apart].mean())


def measure(count: int, tier: str) -> None:
    """One line."""
    hashes, vectors, planted = world(count)
    rng = np.random.default_rng(1)
    order = rng.permutation(count)
    rank, pictures = rng.permutation(count), rng.permutation(count).astype(np.uint64)
    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.monotonic()
    if tier == "hash":
        kin = kinship(pictures, hashes[order], rank, 4)
    else:
        kin = kinship(pictures, hashes[order], rank, -1, vectors[order], 20.0)
    after = resource.getrusage(resource.RUSAGE_SELF)
    found = np.empty(count, np.uint64)
    found[order] = kin.cluster
    together, strangers = purity(found, planted)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    grown = (after.ru_maxrss - before.ru_maxrss) / 1024
    print(
        f"{tier:10} {count:9,} pictures  {time.monotonic() - started:6.1f} s wall  {cpu_s:6.1f} CPU-s  "
        f"{cpu_s / count * 1e6:6.1f} us each  {grown:6.0f} MB over its inputs  {grown * 2**20 / count:5.0f} bytes each  "
        f"kin together {together:.4f}  strangers together {strangers:.6f}",
        flush=True,
    )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(int(sys.argv[1]), sys.argv[2])
    else:
        for tier in ("hash", "embedding"):
            for size in SIZES:
                subprocess.run([sys.executable, __file__, str(size), tier], check=True)
