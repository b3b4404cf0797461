"""Pairs back to files: a folder that other tools read, with every rejected row and its reason beside it."""

import csv
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

import pyarrow.parquet as pq

from dalle_model.errors import DataError, UsageError
from tasks.artifacts import Manifest
from tasks.store import Store

_JPEG = b"\xff\xd8"
_CARRIED = ("id", "source", "key", "licence", "author")
_REJECTED = ("source", "key", "reason", "rule", "score", "detail")


def export_pairs(store: Store, manifest: Manifest, folder: Path) -> dict[str, int]:
    """Write a pairs or curated artifact as an imagefolder; returns {"pairs", "rejected"}.

    ``folder`` gets ``images/``, ``metadata.jsonl`` (file_name, text, id, source, key, and split for curated ones) and
    ``rejected.csv``. Raises UsageError when the folder holds something already, DataError for another kind.
    """
    if manifest.kind not in ("pairs", "curated"):
        raise DataError(
            f"{manifest.step} {manifest.fingerprint[:12]} is of kind {manifest.kind}; pairs and curated ones are exported"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is a file or not empty; name a new folder, so that nothing is overwritten")
    pairs = manifest if manifest.kind == "pairs" else _input(store, manifest, "pairs")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        # Built beside its place and moved there whole: an export that was stopped leaves nothing that looks finished.
        built, fetched = Path(scratch) / "export", Path(scratch) / "fetched"
        (built / "images").mkdir(parents=True)
        fetched.mkdir()
        chosen = None if manifest.kind == "pairs" else _chosen(store, manifest, fetched)
        written = 0
        with open(built / "metadata.jsonl", "w", encoding="utf-8") as lines:
            for number, obj in enumerate(pairs.objects_of("pairs")):
                written += _export_shard(store.fetch(obj, fetched), number, chosen, built, lines)
        ledgers = [pairs, manifest] if manifest.kind == "curated" else [pairs]
        tables = (store.fetch(obj, fetched) for ledger in ledgers for obj in ledger.objects_of("ledger"))
        rejected = _export_rejected(tables, built / "rejected.csv")
        built.rename(folder)  # onto an empty folder this works too
    return {"pairs": written, "rejected": rejected}


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


def _export_shard(
    shard: Path, number: int, chosen: dict[tuple[int, int], tuple[str, str]] | None, folder: Path, lines: TextIO
) -> int:
    written = index = 0
    with pq.ParquetFile(shard) as file:
        for batch in file.iter_batches(64):
            for row in batch.to_pylist():
                place, index = (number, index), index + 1
                if chosen is not None and place not in chosen:
                    continue
                # Named by shard and row, and not by id: a pair that stands twice in a source is two files.
                suffix = "jpg" if row["image"].startswith(_JPEG) else "png"
                name = f"images/{number:06d}-{place[1]:06d}.{suffix}"
                (folder / name).write_bytes(row["image"])
                record = {"file_name": name, "text": row["caption"], **{key: row[key] for key in _CARRIED}}
                if chosen is not None:
                    record["split"], record["text"] = chosen[place]
                lines.write(json.dumps(record, ensure_ascii=False) + "\n")
                written += 1
    return written


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
