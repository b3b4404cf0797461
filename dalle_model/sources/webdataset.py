"""WebDataset archives: tar files in which the members of one name but different suffixes are one sample.

Archives come from strangers. They are read as a stream and nothing is ever extracted, so that no name in them can lead
anywhere: names are keys. Links, devices and folders in the place of a file are refused. An archive that is damaged, cut
off, or goes on behind its end keeps the rows before that and has one refused row more, and the next archive goes on.
"""

import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from lzma import LZMAError
from pathlib import Path
from typing import Any

from dalle_model.decoding import Reason, Refused
from dalle_model.errors import SourceError, UsageError
from dalle_model.sources.base import Row, existing, regular, size_of, skip, trace_of, walk
from dalle_model.sources.captions import each_caption, text_in
from dalle_model.sources.contents import content_digest
from dalle_model.sources.json_records import json_record
from dalle_model.sources.metadata import MAX_LINE_BYTES, caption_in, extra_in
from dalle_model.sources.parquet_large import Opens
from dalle_model.sources.remote import Remote
from dalle_model.sources.tar_ends import PIECE_BYTES, BoundedInfo, WatchedTar, unpacked_tar
from dalle_model.sources.telling import Tell, silent
from dalle_model.sources.unpacking import UnpacksTooMuch, most_unpacked

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jfif")
_RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
_MOST_PLACES = 1_000_000
_MAX_MEMBERS = 64  # of one sample; more is no sample but an attack on memory


class WebDataset:
    """A tar file, a range of some, or all of a folder in sorted order. Captions from ``.txt``, or a caption column of ``.json``."""

    name = "webdataset"
    vector = False

    def __init__(self, path: str | Remote, caption_column: str, max_image_bytes: int) -> None:
        named = [existing(each, "webdataset") for each in expanded(path)]
        found = named[0]
        self._root = found if found.is_dir() else found.parent
        files = walk(found, hidden=False) if found.is_dir() else iter(named)
        self._files = [p for p in files if p.name.lower().endswith(SUFFIXES)]
        if not self._files:
            raise SourceError(
                f"source webdataset: {path} has no {', '.join(SUFFIXES)} file; give one or a folder that has some"
            )
        places: list[tuple[str, Opens]] = [(p.relative_to(self._root).as_posix(), p) for p in self._files]
        self._archives = Archives(places, caption_column, max_image_bytes)

    def identity(self, tell: Tell = silent) -> dict[str, str]:
        return {"webdataset": content_digest(self._root, self._files, tell)}

    def trace(self) -> str:
        return trace_of(self._files)

    def count(self) -> int:
        return 0

    def bytes_read(self) -> tuple[int, int]:
        """Bytes of the archives, as they lie there, that were read so far; and of all. Only reading tells the rows."""
        return self._archives.bytes_read()

    def rows(self, start: int) -> Iterator[Row]:
        return self._archives.rows(start)


class Archives:
    """The samples of some archives, each with its name in keys, in order.

    picture: suffix of the pictures where a sample has several, "" = the first of the usual ones.
    """

    def __init__(
        self, files: Sequence[tuple[str, Opens]], caption_column: str, max_image_bytes: int, picture: str = ""
    ) -> None:
        self._files, self._column, self._max_bytes = files, caption_column, max_image_bytes
        self._pictures = (picture,) if picture else IMAGE_SUFFIXES
        self._before = 0  # bytes of the archives that were read to their end
        self._passed = 0  # bytes read so far, of all

    @cached_property
    def _bytes(self) -> int:
        return sum(_size_of(path) for _, path in self._files)

    def bytes_read(self) -> tuple[int, int]:
        """Bytes that were read so far, and of all; (0, 0) where the archives lie behind addresses."""
        return min(self._passed, self._bytes), self._bytes

    def rows(self, start: int) -> Iterator[Row]:
        """Samples as rows, from row ``start`` on."""
        self._before = self._passed = 0
        rows = (row for where, path in self._files for row in self._archive(where, path))
        return skip((each for row in rows for each in each_caption(row)), start)

    def _archive(self, where: str, path: Opens) -> Iterator[Row]:
        sample = _Sample("")
        members, within = 0, False
        try:
            with _regular(path).open("rb") as stream, unpacked_tar(stream) as plain:
                watched = WatchedTar(plain, most_unpacked(stream) if plain is not stream else 0)
                with tarfile.open(fileobj=watched, mode="r|", bufsize=PIECE_BYTES, tarinfo=BoundedInfo) as archive:  # type: ignore[call-overload]  # needs `read` only
                    for member in archive:
                        members += 1
                        archive.members.clear()  # it would keep each of them to its end
                        self._passed = self._before + stream.tell()
                        if member.isdir() or member.name.rpartition("/")[2].startswith("._"):
                            continue  # a Mac's notes on the member that follows: no part of any sample
                        if not member.isreg():
                            words = "a link" if member.issym() or member.islnk() else "a device or pipe"
                            refused = Refused(Reason.NOT_A_FILE, f"the member is {words}")
                            yield Row(f"{where}/{member.name}", "", refused)
                            continue
                        stem, suffix = _split(member.name)
                        if stem != sample.stem:
                            if sample.members:
                                yield sample.row(where, self._column, self._pictures)
                            sample = _Sample(stem)
                        within = True
                        sample.add(suffix, self._content(archive, member, suffix))
                        within = False
                    if sample.members:
                        yield sample.row(where, self._column, self._pictures)
                        sample = _Sample("")
                    if words := watched.trouble_at(archive.offset):
                        yield _cut(where, members, words)
        except (tarfile.TarError, OSError, EOFError, zlib.error, LZMAError, ValueError, OverflowError) as error:
            # A sample is used when all of it that came is whole, and not when it broke off within a file.
            if sample.members and not within:
                yield sample.row(where, self._column, self._pictures)
            if isinstance(error, UnpacksTooMuch):
                words = f"after {members} members {error}; what follows is lost"
                yield Row(where, "", Refused(Reason.TOO_MANY_BYTES, words))
            else:
                yield _cut(where, members, f"the archive is damaged or cut off ({type(error).__name__})")
        finally:
            self._before += _size_of(path)
            self._passed = self._before

    def _content(self, archive: tarfile.TarFile, member: tarfile.TarInfo, suffix: str) -> bytes | Refused | None:
        limit = self._max_bytes if suffix in IMAGE_SUFFIXES else MAX_LINE_BYTES
        if suffix not in (*IMAGE_SUFFIXES, "txt", "json"):
            return None
        if member.size > limit or member.sparse is not None:
            return Refused(
                Reason.TOO_MANY_BYTES, f"{member.name} has {member.size} bytes, the limit is {limit}", member.size
            )
        stream = archive.extractfile(member)
        data = stream.read(limit + 1) if stream else b""
        if len(data) != member.size:
            raise tarfile.ReadError("a member is cut off")
        return data


def _regular(path: Opens) -> Opens:
    return regular(path) if isinstance(path, Path) else path


def _size_of(path: Opens) -> int:
    return size_of(path) if isinstance(path, Path | Remote) else 0


def expanded(path: str | Remote) -> list[str | Remote]:
    """The places that "shard-{000000..000012}.tar" means, in order; one with no such range is itself.

    Raises UsageError for a range in a folder's name, one that falls or has more than a million places.
    """
    words = path.key if isinstance(path, Remote) else path
    found = _RANGE.search(words)
    if found is None:
        return [path]
    first, last = int(found[1]), int(found[2])
    if not first <= last < first + _MOST_PLACES or "/" in words[found.end() :] or _RANGE.search(words, found.end()):
        raise UsageError(
            f"source webdataset: {path}: one range {{0..N}} of at most {_MOST_PLACES} archives in the last part of a path is read; "
            "give that, or the folder of the archives"
        )
    names = [
        f"{words[: found.start()]}{number:0{len(found[1])}}{words[found.end() :]}" for number in range(first, last + 1)
    ]
    if not isinstance(path, Remote):
        return [*names]
    path.parent.is_dir()  # lists it: else each would be a request
    return [Remote(path.bucket, name) for name in names]


def _cut(where: str, members: int, words: str) -> Row:
    remedy = "what follows is lost; fetch or write the archive again"
    return Row(where, "", Refused(Reason.UNREADABLE_FILE, f"{words} after {members} members: {remedy}"))


class _Sample:
    """Members of one name, gathered until the next name."""

    def __init__(self, stem: str) -> None:
        self.stem = stem
        self.members: dict[str, bytes | Refused] = {}
        self._bad: Refused | None = None

    def add(self, suffix: str, content: bytes | Refused | None) -> None:
        if suffix in self.members or len(self.members) >= _MAX_MEMBERS:
            self._bad = Refused(
                Reason.BAD_METADATA, f"the sample has two members .{suffix}, or more than {_MAX_MEMBERS}"
            )
        elif content is not None:
            self.members[suffix] = content
        else:
            self.members.setdefault(suffix, b"")

    def row(self, where: str, column: str, pictures: Sequence[str]) -> Row:
        record, refused = self._record()
        kinds = [suffix for suffix in pictures if suffix in self.members]
        image: bytes | Refused = self.members[kinds[0]] if kinds else self._no_picture()
        caption: Any = caption_in(record, column)
        text = self.members.get("txt")
        if caption is None and isinstance(text, bytes):
            caption = text_in(text)
        licence, author = record.get("licence", record.get("license")), record.get("author")
        return Row(
            f"{where}/{self.stem}",
            caption,
            self._bad or refused or image,
            licence if isinstance(licence, str) else "",
            author if isinstance(author, str) else "",
            extra_in(record, {"text", "caption", "licence", "license", "author", column}),
        )

    def _no_picture(self) -> Refused:
        members = ", ".join(f".{suffix[:20]}" for suffix in [*self.members][:5])
        return Refused(Reason.NO_IMAGE, f"the sample has no picture, but {members}: its name ends at its first dot")

    def _record(self) -> tuple[dict[str, Any], Refused | None]:
        data = self.members.get("json")
        if data is None:
            return {}, None
        parsed = data if isinstance(data, Refused) else json_record(data)
        return ({}, parsed) if isinstance(parsed, Refused) else (parsed, None)


def _split(name: str) -> tuple[str, str]:
    """("a/b", "jpg") of "a/b.jpg": WebDataset cuts at the first dot of the last part."""
    folder, slash, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return folder + slash + stem, suffix.lower()
