"""A folder of pictures with captions in Hugging Face's convention.

``metadata.jsonl`` or ``metadata.csv`` in any folder names pictures beside or below it (``file_name``) with their
caption (``text``). A picture that no metadata names takes its caption from a text file of the same name, if any.
"""

from array import array
from collections.abc import Iterator
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
    named_below,
    read_picture,
    skip,
    trace_of,
    walk,
)
from dalle_model.sources.captions import each_caption, text_in
from dalle_model.sources.contents import content_digest
from dalle_model.sources.metadata import CAPTION_COLUMNS, caption_in, count_lines, extra_in, kind_of, read_lines
from dalle_model.sources.remote import AnyPath, Remote
from dalle_model.sources.telling import Tell, silent

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp"}
_MAX_TEXT_BYTES = 1_000_000
_USED = frozenset({"file_name", "licence", "license", "author"})  # columns that are not carried along in `extra`
_USED_BY_DEFAULT = _USED.union(CAPTION_COLUMNS)


class MetadataFile:
    """One .jsonl or .csv file in the same convention, of any name: its lines and no other picture beside it."""

    vector = False

    def __init__(self, kind: str, path: str | Remote, caption_column: str = "") -> None:
        self.name = kind
        self._file = existing(path, kind)
        if not self._file.is_file() or (kind_of(self._file.name) in ("csv", "tsv")) != (kind == "csv"):
            raise SourceError(f"source {kind}: {path} is no .{kind} file; give one, or imagefolder:FOLDER")
        self._root, self._column = self._file.parent, caption_column

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
                yield row_of(line.record, self._root, where, self._column, inside_root)


class ImageFolder:
    """Rows in the order of the sorted metadata files and their lines, then the pictures that none of them names."""

    name = "imagefolder"
    vector = False

    def __init__(self, path: str | Remote, caption_column: str = "") -> None:
        self._root = existing(path, "imagefolder")
        if not self._root.is_dir():
            raise SourceError(f"source imagefolder: {path} is a file; give the folder that holds it")
        self._column = caption_column
        self._metadata = named_below(self._root, METADATA_NAMES)
        if not self._metadata and not any(self._captioned(p) for p in walk(self._root, hidden=False)):
            raise SourceError(
                f"source imagefolder: {path} has no {' or '.join(METADATA_NAMES)} and no picture with a .txt beside it; "
                'write metadata.jsonl with lines like {"file_name": "1.png", "text": "a red heart"}'
            )

    def identity(self, tell: Tell = silent) -> dict[str, str]:
        return {"imagefolder": content_digest(self._root, files_below(self._root, hidden=True), tell)}

    def trace(self) -> str:
        return trace_of(files_below(self._root, hidden=True))

    def count(self) -> int:
        if not self._metadata:
            return sum(map(_is_picture, files_below(self._root, hidden=False)))
        return sum(count_lines(path) for path in self._metadata)

    def rows(self, start: int) -> Iterator[Row]:
        return skip((each for row in self._all_rows() for each in each_caption(row)), start)

    def _all_rows(self) -> Iterator[Row]:
        named, inside_root = array("q"), Inside(self._root)
        for metadata in self._metadata:
            where, folder = metadata.relative_to(self._root).as_posix(), metadata.parent
            for line in read_lines(metadata):
                if isinstance(line.record, Refused):
                    yield Row(f"{where}#{line.number}", "", line.record)
                    continue
                place = f"{where}#{line.number}"
                row, paths = row_of(line.record, folder, place, self._column, inside_root)
                named.extend(map(hash, map(str, paths)))
                yield row
        yield from self._unnamed(np.unique(np.frombuffer(named, np.int64)) if named else np.zeros(0, np.int64))

    def _unnamed(self, named: np.ndarray[Any, np.dtype[np.int64]]) -> Iterator[Row]:
        """Pictures that no metadata names. ``named`` holds a hash of each named path, sorted: memory stays small."""
        found = (path for path in files_below(self._root, hidden=False) if _is_picture(path))
        while some := list(islice(found, 1024)):
            numbers = np.fromiter(map(hash, map(str, some)), np.int64, len(some))
            at = np.minimum(np.searchsorted(named, numbers), max(len(named) - 1, 0))
            known = named[at] == numbers if len(named) else np.zeros(len(some), np.bool_)
            for found_path, is_named in zip(some, known.tolist(), strict=True):
                if not is_named:
                    path = _path(found_path)
                    key = path.relative_to(self._root).as_posix()
                    text = self._text_beside(path)
                    if isinstance(text, Refused):
                        refused = Refused(Reason.CAPTION_TOO_LONG, f"the text beside it: {text.detail}")
                        yield Row(key, "", refused)
                    else:
                        yield Row(key, text, inside(self._root, path.parent, path.name))

    def _captioned(self, path: AnyPath) -> bool:
        return path.suffix.lower() in _SUFFIXES and path.with_suffix(".txt").is_file()

    def _text_beside(self, path: AnyPath) -> str | Refused | None:
        text = path.with_suffix(".txt")
        if not text.is_file() or isinstance(inside(self._root, text.parent, text.name), Refused):
            return None
        data = read_picture(text, _MAX_TEXT_BYTES)
        if isinstance(data, Refused):
            return data if data.reason is Reason.TOO_MANY_BYTES else None
        return text_in(data)


def row_of(
    record: dict[str, Any], folder: AnyPath, where: str, column: str, inside_root: Inside
) -> tuple[Row, list[File]]:
    """The row of a metadata record, and the paths it names: as written and, where it differs, where that leads."""
    name = record.get("file_name")
    if not isinstance(name, str):
        return Row(where, "", Refused(Reason.BAD_METADATA, "file_name is missing or is not a text")), []
    image, written, key = inside_root(folder, name)
    licence, author = record.get("licence", record.get("license")), record.get("author")
    row = Row(
        key or where,  # what lies outside is named by its line: a key holds no path that is good on one machine only
        caption_in(record, column),
        image,
        licence if isinstance(licence, str) else "",
        author if isinstance(author, str) else "",
        extra_in(record, {*_USED, column} if column else _USED_BY_DEFAULT),
    )
    return row, [written] if image == written or isinstance(image, Refused) else [written, image]


def _path(path: str | Remote) -> AnyPath:
    return Path(path) if isinstance(path, str) else path


def _is_picture(path: str | Remote) -> bool:
    name = str(path)
    return name[name.rfind(".") :].lower() in _SUFFIXES
