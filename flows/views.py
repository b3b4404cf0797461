"""What a person opens after a run: pages and pictures copied out of the store into a plain folder."""

import fcntl
import io
import os
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dalle_model.errors import UsageError
from tasks.artifacts import Manifest, ObjectRef
from tasks.store import Store

_PAGES = {"gallery": "gallery.html", "report": "report.html"}


def prepare_folder(folder: Path) -> None:
    """Make the folder of ``--out`` before hours of work go by. Raises UsageError when it cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UsageError(
            f"nothing can be written to {folder} ({error.strerror}); give another folder with --out"
        ) from None


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """A block in which no other command writes its results into ``folder``: the pages and pictures there are of one.

    The lock ends with the process. Where the file system has none, nothing is waited for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def write_whole(path: Path, data: bytes) -> Path:
    """Write a file so that nobody ever sees half of it. UsageError when it cannot be written."""
    with _whole_file(path) as unnamed:
        unnamed.write_bytes(data)
    return path


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to be written in the block, which then becomes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    os.close(fd)
    try:
        yield Path(name)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException as error:
        os.unlink(name)
        if not isinstance(error, OSError):
            raise
        raise UsageError(
            f"{path} cannot be written ({error.strerror}); free some space or give another folder with --out"
        ) from error


def export_page(store: Store, manifest: Manifest, role: str, folder: Path) -> Path:
    """Copy one page of an artifact, verified, to its usual name in ``folder``."""
    return write_whole(folder / _PAGES[role], store.read(manifest.object_of(role)))


def export_curation(store: Store, manifest: Manifest, folder: Path) -> Path:
    """Copy the report of a curation as ``curation.html`` and its contact sheets as ``curation/*.png``."""
    for sheet in manifest.objects:
        if sheet.role.startswith("sheet."):
            name = sheet.role.removeprefix("sheet.").replace(".", "-")
            write_whole(folder / "curation" / f"{name}.png", store.read(sheet))
    return write_whole(folder / "curation.html", store.read(manifest.object_of("report")))


def export_sheet(store: Store, manifest: Manifest, folder: Path) -> Path | None:
    """Copy the contact sheet of generated pictures (role ``sheet.samples``) to ``folder``; None when there is none."""
    sheets: tuple[ObjectRef, ...] = manifest.objects_of("sheet.samples")
    return write_whole(folder / "contact_sheet.png", store.read(sheets[0])) if sheets else None


def slug(prompt: str, limit: int = 60, limit_bytes: int = 180) -> str:
    """A prompt as the stem of a file name: its letters and digits of any script, what is between them as a hyphen.

    Limits leave room for an index, a hash and an ending in the 255 bytes that file systems take.
    """
    kept = ""
    for c in prompt.lower():
        kind = unicodedata.category(c)[0]
        if kind in "LN" or (kind == "M" and kept[-1:] not in ("", "-")):  # a mark belongs to a letter
            kept += c
        elif not kept.endswith("-"):
            kept += "-"
    return kept.strip("-")[:limit].encode()[:limit_bytes].decode(errors="ignore").strip("-") or "prompt"


def export_generations(store: Store, manifest: Manifest, folder: Path) -> None:
    """Write ``<prompt-slug>-<index>.png`` (or ``.webp``) for every picture and ``generations.parquet`` with all rows.

    Shard by shard: a batch need not fit into memory.
    """
    stems: dict[tuple[str, int, str], str] = {}
    taken: set[str] = set()
    with ExitStack() as stack:
        table: pq.ParquetWriter | None = None
        for obj in manifest.objects_of("generations"):
            part = pq.read_table(io.BytesIO(store.read(obj)))
            if table is None:
                path = stack.enter_context(_whole_file(folder / "generations.parquet"))
                table = stack.enter_context(pq.ParquetWriter(path, part.schema, compression="zstd"))
            table.write_table(part)
            for row in part.select(_NAMED_BY).to_pylist():
                if row["status"] == "drawn":
                    name = f"{_stem(row, stems, taken)}-{row['index']}"
                    write_whole(folder / f"{name}.{'webp' if row['image'][:4] == b'RIFF' else 'png'}", row["image"])


_NAMED_BY = ["prompt", "prompt_sha256", "seed", "negative", "index", "status", "image"]


def _stem(row: Mapping[str, Any], stems: dict[tuple[str, int, str], str], taken: set[str]) -> str:
    """The name of a prompt's pictures; prompts that read alike as file names are told apart by their hash."""
    key = (row["prompt_sha256"], row["seed"], row["negative"])
    if key not in stems:
        stem = slug(row["prompt"])
        named = sha256("\0".join(map(str, key)).encode()).hexdigest()[:8]
        stems[key] = stem if stem not in taken else f"{stem}-{named}"
        taken.add(stems[key])
    return stems[key]
