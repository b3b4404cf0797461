"""Pairs back to files: a folder that other tools read, with every rejected row and its reason beside it."""

import csv
import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pyarrow.parquet as pq

from dalle_model.errors import DataError, UsageError
from tasks.artifacts import Manifest
from tasks.removals import removals_of, withdrawn_ids
from tasks.s3_client import StoreOptions
from tasks.settings import Settings
from tasks.spool import spool_folder
from tasks.store import Store

_JPEG = b"\xff\xd8"
_UPLOADS = 16  # at once
_CARRIED = ("id", "source", "key", "licence", "author")
_REJECTED = ("source", "key", "reason", "rule", "score", "detail")


def export_pairs(store: Store, manifest: Manifest, place: str, settings: Settings) -> dict[str, int]:
    """Write a pairs or curated artifact as an imagefolder; returns {"pairs", "rejected", "withdrawn"}.

    ``place``, a folder or ``s3://bucket/prefix``, gets ``images/``, ``metadata.jsonl`` (file_name, text, id, source, key, and
    split for curated ones) and ``rejected.csv``. Pairs that were withdrawn since are left out. Raises UsageError when
    the place holds something already or is no such place, DataError for another kind.
    """
    if manifest.kind not in ("pairs", "curated"):
        raise DataError(
            f"{manifest.step} {manifest.fingerprint[:12]} is of kind {manifest.kind}; pairs and curated ones are exported"
        )
    pairs = manifest if manifest.kind == "pairs" else _input(store, manifest, "pairs")
    withdrawn = set(withdrawn_ids(store, pairs, removals_of(store), settings))
    with _new_place(place, settings) as built, tempfile.TemporaryDirectory(dir=built.parent) as scratch:
        fetched = Path(scratch)
        (built / "images").mkdir(parents=True)
        chosen = None if manifest.kind == "pairs" else _chosen(store, manifest, fetched)
        written = left_out = 0
        with open(built / "metadata.jsonl", "w", encoding="utf-8") as lines:
            for number, obj in enumerate(pairs.objects_of("pairs")):
                for row, file_name in _rows_of(store.fetch(obj, fetched), number, chosen):
                    if row["id"] in withdrawn:
                        left_out += 1
                        continue
                    _write_pair(row, file_name, built, lines)
                    written += 1
        ledgers = [pairs, manifest] if manifest.kind == "curated" else [pairs]
        tables = (store.fetch(obj, fetched) for ledger in ledgers for obj in ledger.objects_of("ledger"))
        rejected = _export_rejected(tables, built / "rejected.csv")
    return {"pairs": written, "rejected": rejected, "withdrawn": left_out}


@contextmanager
def _new_place(place: str, settings: Settings) -> Iterator[Path]:
    """A folder to build in, which is at its place when the block ends well.

    Built beside its place and moved there whole, or uploaded with the metadata last: an export that was stopped leaves nothing
    that looks finished.
    """
    if place.startswith("s3://"):
        bucket = Store.open(place, options=StoreOptions(endpoint_url=settings.endpoint_url))
        if next(bucket.backend.walk(""), None) is not None:
            raise UsageError(f"{place} is not empty; name a new prefix, so that nothing is overwritten")
        with spool_folder(settings.spool, "x" * 64) as scratch:
            built = scratch / "export"
            yield built
            _upload(built, bucket)
        return
    if "://" in place:
        raise UsageError(f"{place}: give a folder or s3://bucket/prefix")
    folder = Path(place)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is a file or not empty; name a new folder, so that nothing is overwritten")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
        yield Path(beside) / "export"
        (Path(beside) / "export").rename(folder)  # onto an empty folder this works too


def _upload(folder: Path, bucket: Store) -> None:
    def put(path: Path) -> None:
        bucket.backend.put(path.relative_to(folder).as_posix(), path, hashlib.sha256(path.read_bytes()).hexdigest())

    with ThreadPoolExecutor(_UPLOADS) as uploads:
        for _ in uploads.map(put, (folder / "images").iterdir()):
            continue
    for name in ("rejected.csv", "metadata.jsonl"):
        put(folder / name)


def _input(store: Store, manifest: Manifest, name: str) -> Manifest:
    ref = next(i for i in manifest.inputs if i.name == name)
    found = store.find(ref.step, ref.fingerprint)
    if found is None:
        raise DataError(
            f"the {name} of {manifest.fingerprint[:12]} ({ref.step} {ref.fingerprint[:12]}) are not in {store.uri}; bring them back or export another artifact"
        )
    return found


def _chosen(store: Store, manifest: Manifest, scratch: Path) -> dict[tuple[int, int], tuple[str, str]]:
    """(split, caption) by (shard, row) of the kept pairs; the caption is the one that goes on, e.g. masked."""
    columns = ["shard", "row", "split", "caption"]
    table = pq.read_table(store.fetch(manifest.object_of("curated"), scratch), columns=columns)
    return {(row["shard"], row["row"]): (row["split"], row["caption"]) for row in table.to_pylist()}


def _rows_of(
    shard: Path, number: int, chosen: dict[tuple[int, int], tuple[str, str]] | None
) -> Iterator[tuple[dict[str, Any], str]]:
    """Rows of a shard as they go on, with the name of the picture's file."""
    index = 0
    with pq.ParquetFile(shard) as file:
        for batch in file.iter_batches(64):
            for row in batch.to_pylist():
                place, index = (number, index), index + 1
                if chosen is not None and place not in chosen:
                    continue
                # Named by shard and row, and not by id: a pair that stands twice in a source is two files.
                suffix = "jpg" if row["image"].startswith(_JPEG) else "png"
                if chosen is not None:
                    row["split"], row["caption"] = chosen[place]
                yield row, f"images/{number:06d}-{place[1]:06d}.{suffix}"


def _write_pair(row: dict[str, Any], file_name: str, folder: Path, lines: TextIO) -> None:
    (folder / file_name).write_bytes(row["image"])
    record = {"file_name": file_name, "text": row["caption"], **{key: row[key] for key in _CARRIED}}
    if "split" in row:
        record["split"] = row["split"]
    lines.write(json.dumps(record, ensure_ascii=False) + "\n")


def _export_rejected(ledgers: Iterable[Path], path: Path) -> int:
    count = 0
    with open(path, "w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(_REJECTED)
        for ledger in ledgers:
            for row in pq.read_table(ledger, columns=["kept", *_REJECTED]).to_pylist():
                if not row["kept"]:
                    rows.writerow(["" if row[name] is None else _plain(row[name]) for name in _REJECTED])
                    count += 1
    return count


def _plain(value: Any) -> Any:
    """A cell that no spreadsheet runs as a formula: keys come from strangers."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
