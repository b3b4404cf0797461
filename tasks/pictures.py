"""Reading curated pairs: the rows that curation kept, joined with the pictures in their `pairs` artifact."""

import io
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dalle_model.errors import DataError
from dalle_model.images import stack_squares
from tasks.artifacts import Manifest
from tasks.backends import CHUNK_BYTES
from tasks.job import Job, load_ancestor

UInt8 = npt.NDArray[np.uint8]


def curated_table(job: Job, curated: Manifest, splits: tuple[str, ...] | None = None) -> pa.Table:
    """Rows of ``records.CURATED`` in order, of the given splits or all."""
    tables = [pq.read_table(io.BytesIO(job.read(o))) for o in curated.objects_of("curated")]
    table = pa.concat_tables(tables)
    if splits is None:
        return table
    return table.filter(pa.compute.is_in(table["split"], pa.array(list(splits))))


def spread(count: int, wanted: int) -> npt.NDArray[np.int64]:
    """``wanted`` row numbers spread evenly over ``count`` rows, int64, ascending and distinct."""
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).round().astype(np.int64))


# Positions in the rows and encoded pictures -> uint8 [n, px, px, 3]; called in threads.
Squares = Callable[[npt.NDArray[np.int64], Sequence[bytes]], UInt8]


def read_pictures(
    job: Job, curated: Manifest, rows: pa.Table, px: int, squares_of: Squares | None = None
) -> Iterator[tuple[npt.NDArray[np.int64], UInt8]]:
    """Pictures of curated rows as squares, one group per source shard: (positions in ``rows``, uint8 [n, px, px, 3]).

    ``squares_of`` makes the squares, if not ``stack_squares``. Reads one shard at a time, so memory does not grow with the data. Raises DataError when a row points nowhere.
    """
    pairs = load_ancestor(job.store, curated, "pairs")
    shards = pairs.objects_of("pairs")
    shard_of = rows["shard"].to_numpy()
    row_of = rows["row"].to_numpy()
    with ThreadPoolExecutor(job.workers) as pool:
        for number in np.unique(shard_of):
            if not 0 <= number < len(shards):
                raise DataError(
                    f"a curated row points to shard {number}, but its pairs artifact has {len(shards)}; curate again"
                )
            positions = np.flatnonzero(shard_of == number)
            column = pq.read_table(job.fetch(shards[number]), columns=["image"])["image"]
            wanted = column.take(pa.array(row_of[positions])).to_pylist()
            starts = range(0, len(wanted), 64)
            make = squares_of or (lambda _, pictures: stack_squares(pictures, px))
            squares = list(
                pool.map(make, [positions[i : i + 64] for i in starts], [wanted[i : i + 64] for i in starts])
            )
            yield positions, np.concatenate(squares)


def read_facts(job: Job, curated: Manifest, rows: pa.Table) -> list[dict[str, Any]]:
    """What the source knew beside picture and caption, of each curated row in order: the pairs' ``extra``."""
    shards = load_ancestor(job.store, curated, "pairs").objects_of("pairs")
    shard_of, row_of = rows["shard"].to_numpy(), rows["row"].to_numpy()
    found: list[dict[str, Any]] = [{} for _ in range(rows.num_rows)]
    for number in np.unique(shard_of):
        column = pq.read_table(job.fetch(shards[number]), columns=["extra"])["extra"].to_pylist()
        for position in np.flatnonzero(shard_of == number):
            found[position] = json.loads(column[row_of[position]])
    return found


@dataclass(frozen=True)
class PictureSet:
    """Curated rows with their pictures in row order: ``images`` uint8 [R, px, px, 3], a memory map on local disk."""

    rows: pa.Table
    images: UInt8

    def chw(self) -> UInt8:
        """A view as uint8 [R, 3, px, px]."""
        return self.images.transpose(0, 3, 1, 2)


def load_pictures(job: Job, curated: Manifest, rows: pa.Table, px: int, name: str) -> PictureSet:
    """Decode rows once into a memory-mapped file in the spool folder."""
    path = job.spool / f"{name}.u8"
    images: UInt8 = _memmap(path, (rows.num_rows, px, px, 3)) if rows.num_rows else np.empty((0, px, px, 3), np.uint8)
    done = 0
    for positions, squares in read_pictures(job, curated, rows, px):
        images[positions] = squares
        done += len(positions)
        job.progress(done, rows.num_rows, "pictures read")
    return PictureSet(rows, images)


def _memmap(path: Path, shape: tuple[int, ...]) -> UInt8:
    """A new file as an array. Its space is taken now: a mapped page for which the disk has none kills the process."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, math.prod(shape))
        else:  # macOS
            for left in range(math.prod(shape), 0, -CHUNK_BYTES):
                file.write(bytes(min(left, CHUNK_BYTES)))
    return np.memmap(path, np.uint8, "r+", shape=shape)
