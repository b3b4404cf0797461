"""Rates and memory of ingest and curation: ``python tests/benchmarks/bench_data.py``.

Prints one line per measurement: wall clock, and CPU seconds, which tell the truth on a machine that others use too.
"""

import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.bad_images import encoded, photo
from support.data_steps import Data, write_folder

from dalle_model.config import CurateConfig, IngestConfig
from dalle_model.curation.clusters import cluster
from dalle_model.decode_pool import DecodePool
from dalle_model.decoding import DecodeSettings


def _cpu_s() -> float:
    return sum(
        u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


@contextmanager
def measured(what: str, rows: int) -> Iterator[None]:
    """Print rates over the block."""
    wall, cpu = time.monotonic(), _cpu_s()
    yield
    wall, cpu = time.monotonic() - wall, max(_cpu_s() - cpu, 1e-9)
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what:48} {rows / wall:9.0f} rows/s  {rows / cpu:9.0f} rows/CPU-s  peak {rss:5.0f} MB", flush=True)


def main() -> None:
    """All measurements; minutes."""
    workers = len(os.sched_getaffinity(0))
    pictures = {f"{n}.jpg": encoded(photo(256, 256, seed=n), "JPEG", quality=90) for n in range(100)}
    with tempfile.TemporaryDirectory() as scratch:
        for count in (2_000, 8_000, 32_000):
            names = list(pictures)
            with (
                DecodePool[int](DecodeSettings(64), workers) as pool,
                measured(f"decode {count} JPEG 256 px -> 64 px", count),
            ):
                for _ in pool.map((n, pictures[names[n % 100]]) for n in range(count)):
                    continue
            home = Path(scratch) / str(count)
            write_folder(
                home / "set",
                pictures,
                ({"file_name": names[n % 100], "text": f"a picture of thing {n}"} for n in range(count)),
            )
            data = Data(home, workers)
            with measured(f"ingest step, {count} rows", count):
                pairs = data.ingest(IngestConfig(source=f"imagefolder:{home}/set"))
            with measured(f"curate step, {count} rows, nothing measured yet", count):
                data.curate(CurateConfig(max_captions_per_picture=0, near_duplicate_bits=4), pairs)
            with measured(f"curate step, {count} rows, other thresholds", count):
                data.curate(CurateConfig(max_captions_per_picture=0, near_duplicate_bits=4, min_caption_words=3), pairs)
    rng = np.random.default_rng(0)
    for count in (250_000, 1_000_000):
        hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
        with measured(f"near-duplicate clusters of {count} hashes, 4 bits", count):
            cluster(rng.permutation(count).astype(np.uint64), hashes, 4)


if __name__ == "__main__":
    main()
