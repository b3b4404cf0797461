"""A folder of pictures with captions in Hugging Face's convention.

``metadata.jsonl``, ``metadata.csv`` or ``metadata.parquet`` in any folder names pictures beside or below it
(``file_name``) with their caption (``text``). A picture that no metadata names takes its caption from a text file of the
same name, if any.
"""

import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from dalle_model.decoding import Reason, Refused
from dalle_model.errors import SourceError
from dalle_model.sources.base import (
    File,
    Inside,
    Row,
    existing,
    files_below,
    inside,
    key_below,
    read_picture,
    skip,
    trace_of,
    walk,
)
from dalle_model.sources.captions import each_caption, text_in, text_of
from dalle_model.sources.contents import content_digest
from dalle_model.sources.folder_metadata import count_records, metadata_in, read_records
from dalle_model.sources.metadata import CAPTION_COLUMNS, count_lines, extra_in, first_of, lowered, read_lines
from dalle_model.sources.remote import AnyPath, Remote
from dalle_model.sources.telling import Tell, silent
from dalle_model.sources.unpacking import kind_of

FILE_COLUMNS = ("file_name", "filename", "image", "image_path", "path", "file")
_UNREAD = {
    ".heic",
    ".heif",
    ".jxl",
    ".jp2",
    ".svg",
}  # whoever has them takes them for pictures: the ledger says why not
_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".gif", ".tif", ".tiff", ".bmp"} | _UNREAD
_TEXTS = (".txt", ".TXT", ".caption")  # beside a picture
_ARCHIVES = {".zip", ".7z", ".rar", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst"}
_MAX_TEXT_BYTES = 1_000_000
_LINKED_FOLDER = "a link to a folder elsewhere, which is not followed; give that folder as a source of its own"


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a record has its caption and its picture's file; "" = under one of the usual names, small or capital."""

    caption: str = ""
    image: str = ""

    def image_in(self, fields: dict[str, Any]) -> str:
        """The name of the column of the file, of ``lowered`` fields."""
        wanted = (self.image, self.image.lower()) if self.image else FILE_COLUMNS
        return next((name for name in wanted if name in fields), wanted[0])

    def used(self, image: str) -> frozenset[str]:
        """Columns that are not carried along in `extra`."""
        captions = (self.caption, self.caption.lower()) if self.caption else CAPTION_COLUMNS
        return frozenset({*captions, image, "licence", "license", "author"})


_USUAL = Columns()


class MetadataFile:
    """One .jsonl or .csv file in the same convention, of any name: its lines and no other picture beside it."""

    vector = False

    def __init__(self, kind: str, path: str | Remote, columns: Columns = _USUAL) -> None:
        self.name = kind
        self._file = existing(path, kind)
        if not self._file.is_file() or (kind_of(self._file.name) in ("csv", "tsv")) != (kind == "csv"):
            raise SourceError(f"source {kind}: {path} is no .{kind} file; give one, or imagefolder:FOLDER")
        self._root, self._columns = self._file.parent, columns

    def identity(self, tell: Tell = silent) -> dict[str, str]:
        return {self.name: content_digest(self._root, self._files(), tell)}

    def trace(self) -> str:
        return trace_of(self._files())

    def _files(self) -> Iterator[AnyPath | str]:
        """The file itself and the pictures that its lines name."""
        yield self._file
        yield from (path for _, paths in self._lines() for path in paths[-1:] if key_below(self._root, path))

    def count(self) -> int:
        return count_lines(self._file)

    def rows(self, start: int) -> Iterator[Row]:
        return skip((each for row, _ in self._lines() for each in each_caption(row)), start)

    def _lines(self) -> Iterator[tuple[Row, list[File]]]:
        inside_root = Inside(self._root)
        for line in read_lines(self._file):
            where = f"{self._file.name}#{line.number}"
            if isinstance(line.record, Refused):
                yield Row(where, "", line.record), []
            else:
                yield row_of(line.record, self._root, where, self._columns, inside_root)


class ImageFolder:
    """Rows in the order of the sorted metadata files and their lines, then the pictures that none of them names."""

    name = "imagefolder"
    vector = False

    def __init__(self, path: str | Remote, columns: Columns = _USUAL) -> None:
        self._root = existing(path, "imagefolder")
        if not self._root.is_dir():
            packed = self._root.suffix.lower() in _ARCHIVES
            remedy = "unpack it and give the folder" if packed else "give the folder that holds it"
            raise SourceError(f"source imagefolder: {path} is a file; {remedy}")
        self._columns = columns
        self._metadata = metadata_in(self._root)
        if not self._metadata and not any(self._captioned(p) for p in walk(self._root, hidden=False)):
            raise SourceError(
                f"source imagefolder: {path} has no metadata.jsonl, .csv or .parquet and no picture with a .txt beside it; "
                'write metadata.jsonl with lines like {"file_name": "1.png", "text": "a red heart"}, or give your list: jsonl:LIST, csv:LIST'
            )

    def identity(self, tell: Tell = silent) -> dict[str, str]:
        return {"imagefolder": content_digest(self._root, files_below(self._root, hidden=True), tell)}

    def trace(self) -> str:
        return trace_of(files_below(self._root, hidden=True))

    def count(self) -> int:
        if not self._metadata:
            return sum(map(_is_picture, files_below(self._root, hidden=False)))
        return sum(map(count_records, self._metadata))

    def rows(self, start: int) -> Iterator[Row]:
        return skip((each for row in self._all_rows() for each in each_caption(row)), start)

    def _all_rows(self) -> Iterator[Row]:
        named, inside_root = array("q"), Inside(self._root)
        for metadata in self._metadata:
            where, folder = metadata.relative_to(self._root).as_posix(), metadata.parent
            for line in read_records(metadata):
                if isinstance(line.record, Refused):
                    yield Row(f"{where}#{line.number}", "", line.record)
                    continue
                place = f"{where}#{line.number}"
                row, paths = row_of(line.record, folder, place, self._columns, inside_root)
                named.extend(map(hash, map(str, paths)))
                yield row
        yield from self._unnamed(np.unique(np.frombuffer(named, np.int64)) if named else np.zeros(0, np.int64))

    def _unnamed(self, named: np.ndarray[Any, np.dtype[np.int64]]) -> Iterator[Row]:
        """Pictures that no metadata names. ``named`` holds a hash of each named path, sorted: memory stays small."""
        found = (path for path in files_below(self._root, hidden=False) if _is_picture(path) or _is_folder(path))
        while some := list(islice(found, 1024)):
            numbers = np.fromiter(map(hash, map(str, some)), np.int64, len(some))
            at = np.minimum(np.searchsorted(named, numbers), max(len(named) - 1, 0))
            known = named[at] == numbers if len(named) else np.zeros(len(some), np.bool_)
            for found_path, is_named in zip(some, known.tolist(), strict=True):
                if not is_named:
                    path = _path(found_path)
                    key = path.relative_to(self._root).as_posix()
                    if not _is_picture(found_path):
                        if isinstance(inside(self._root, path.parent, path.name), Refused):
                            yield Row(key, "", Refused(Reason.NOT_A_FILE, _LINKED_FOLDER))
                        continue
                    text = self._text_beside(path)
                    if isinstance(text, Refused):
                        refused = Refused(Reason.CAPTION_TOO_LONG, f"the text beside it: {text.detail}")
                        yield Row(key, "", refused)
                    else:
                        yield Row(key, text, inside(self._root, path.parent, path.name))

    def _captioned(self, path: AnyPath) -> bool:
        return path.suffix.lower() in _SUFFIXES and _text_file(path) is not None

    def _text_beside(self, path: AnyPath) -> str | Refused | None:
        text = _text_file(path)
        if text is None or isinstance(inside(self._root, text.parent, text.name), Refused):
            return None
        data = read_picture(text, _MAX_TEXT_BYTES)
        if isinstance(data, Refused):
            return data if data.reason is Reason.TOO_MANY_BYTES else None
        return text_in(data)


def row_of(
    record: dict[str, Any], folder: AnyPath, where: str, columns: Columns, inside_root: Inside
) -> tuple[Row, list[File]]:
    """The row of a metadata record, and the paths it names: as written and, where it differs, where that leads."""
    fields = lowered(record)
    column = columns.image_in(fields)
    name = fields.get(column)
    if not isinstance(name, str):
        there = ", ".join(record)[:200]
        words = f"{column} is missing or is not a text; ingest.image_column names another column of: {there}"
        words += "; a list of URLs is read by urls:LIST" if "url" in fields or "image_url" in fields else ""
        return Row(where, "", Refused(Reason.BAD_METADATA, words)), []
    image, written, key = inside_root(folder, name)
    caption = text_of(first_of(fields, columns.caption, CAPTION_COLUMNS))
    licence, author = first_of(fields, "", ("licence", "license")), fields.get("author")
    row = Row(
        key or where,  # what lies outside is named by its line: a key holds no path that is good on one machine only
        caption,
        Refused(Reason.CAPTION_TOO_LONG, caption.detail) if isinstance(caption, Refused) else image,
        licence if isinstance(licence, str) else "",
        author if isinstance(author, str) else "",
        extra_in(record, columns.used(column)),
    )
    return row, [written] if image == written or isinstance(image, Refused) else [written, image]


def _path(path: str | Remote) -> AnyPath:
    return Path(path) if isinstance(path, str) else path


def _text_file(path: AnyPath) -> AnyPath | None:
    """The file beside a picture that has its caption."""
    return next((text for suffix in _TEXTS if (text := path.with_suffix(suffix)).is_file()), None)


def _is_folder(path: str | Remote) -> bool:
    """Whether it is a link to a folder: others are walked through."""
    return isinstance(path, str) and os.path.islink(path) and os.path.isdir(path)


def _is_picture(path: str | Remote) -> bool:
    name = str(path)
    return name[name.rfind(".") :].lower() in _SUFFIXES
