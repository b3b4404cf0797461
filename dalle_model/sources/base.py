"""What every source of pairs offers: rows in a fixed order, and the identity of its content."""

import errno
import hashlib
import os
import stat
import struct
import time
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import unquote

from dalle_model.decoding import Reason, Refused
from dalle_model.errors import SourceError
from dalle_model.sources.local_files import read_file, words_of
from dalle_model.sources.remote import AnyPath, Remote
from dalle_model.sources.telling import Tell, silent

_T = TypeVar("_T")
_NAME_CHARS = 300  # of a path in an error
_PATH_CHARS = 4096  # of a path at all
_COARSEST_NS = 2_000_000_000  # the clock of a file system may be as coarse as that
_TRACE = struct.Struct("<QQqqq")
_FOLDERS = 4096  # resolved folders that are remembered
File = str | Remote
"""A picture to read. On this machine a plain text: a path object costs more than all else about a row."""
_OUTSIDE = (
    "the path or a symbolic link leads out of the source's folder; give a source whose folder holds the pictures, too"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One row as the source has it, nothing checked yet.

    ``caption`` is whatever stood there. ``image`` is encoded bytes, a file to read, or the reason why there is none.
    ``key`` names the row inside the source and holds no absolute path.
    """

    key: str
    caption: Any
    image: bytes | File | Refused
    licence: str = ""
    author: str = ""
    extra: Mapping[str, Any] | None = None
    note: str = ""  # what was decided about a row on its way here, e.g. that its owner allows its use
    rule: str = "ingest"  # who refused it, where `image` is a Refused


class Source(Protocol):
    """A set of pairs. Opening one reads little; nothing holds all rows in memory."""

    name: str  # what the `source` column says
    vector: bool  # pictures are SVG of trusted origin

    def identity(self, tell: Tell = silent) -> dict[str, str]:
        """Names and digests that change whenever a row could: they become inputs of the fingerprint. All may have to be read."""
        ...

    def trace(self) -> str:
        """Changes whenever a file of the source is written, and is had without reading any; "" where only the identity tells."""
        ...

    def rows(self, start: int) -> Iterator[Row]:
        """Rows from number ``start`` on, always in the same order."""
        ...

    def count(self) -> int:
        """Number of rows, 0 when only reading would tell. For progress bars."""
        ...


def skip(rows: Iterator[_T], start: int) -> Iterator[_T]:
    """The rows from ``start`` on, for sources in which a row costs little as long as its picture is not read."""
    return islice(rows, start, None)


def size_of(path: AnyPath) -> int:
    """Bytes of a file or an object, 0 where it is gone."""
    try:
        return path.bucket.size(path.key) if isinstance(path, Remote) else path.stat().st_size
    except OSError:
        return 0


def read_picture(path: AnyPath | str, max_bytes: int) -> bytes | Refused:
    """Bytes of a regular file or an object of at most ``max_bytes``.

    SourceError when a bucket fails: its trouble would pass, and is not to be remembered against a row.
    """
    if not isinstance(path, Remote):
        return read_file(path, max_bytes)
    try:
        size = path.bucket.size(path.key)
        if size > max_bytes:
            return Refused(Reason.TOO_MANY_BYTES, f"{size} bytes, the limit is {max_bytes}", size)
        return path.bucket.read(path.key)
    except FileNotFoundError:
        return Refused(Reason.MISSING_FILE, "no such file")


def key_below(root: AnyPath, path: AnyPath | str) -> str:
    """The path of ``path`` below ``root`` with /, "" when it lies elsewhere."""
    if isinstance(path, Remote):
        return path.relative_to(root).as_posix() if path.is_relative_to(root) and path != root else ""
    return _below(str(root), str(path))


def _below(root: str, path: str) -> str:
    start = root if root.endswith(os.sep) else root + os.sep
    return path[len(start) :].replace(os.sep, "/") if path.startswith(start) else ""


class Named(NamedTuple):
    """What a metadata file means by a name: the file to read or why it may not be, the path as it is written, and the key."""

    file: File | Refused
    written: File
    key: str  # below the source's folder, "" where the path leads out of it


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder that pictures are named in: as written and without links, each with a slash at its end."""

    written: str
    key: str | None  # of the folder, None where it lies outside
    real: str
    links: frozenset[str] | None  # names in it that are links, None where it may not be listed


class Inside:
    """Files beside metadata files, which must stay under ``root`` (a resolved path).

    A folder is looked at once, not for each of its files: a source whose links change while it is read is noticed by its
    digest. One listing says of all files what a system call for each would: those make the threads of a process wait.
    """

    def __init__(self, root: AnyPath) -> None:
        self._root = root
        self._folders: dict[tuple[str, str], _Folder] = {}

    def __call__(self, folder: AnyPath, name: str) -> Named:
        """The file ``name`` beside a metadata file in ``folder``."""
        if "\\" in name or "%" in name or not name.isascii() or name != name.strip():
            name = _as_it_is_there(folder, name)
        if isinstance(folder, Path) and name[:1] != "/" and _unusable(name) is None:
            above, _, last = name.rpartition("/")
            place = self._folder(str(folder), above)
            if place.links is not None and last not in place.links and last not in ("", ".", ".."):
                key = "" if place.key is None else place.key + last
                return Named(place.real + last, place.written + last, key)
        if isinstance(folder, Remote):
            written: File = folder / name
        else:
            written = os.path.normpath(os.path.join(folder, name)) if "\0" not in name else str(folder)
        return Named(inside(self._root, folder, name), written, key_below(self._root, written))

    def _folder(self, folder: str, above: str) -> _Folder:
        if (found := self._folders.get((folder, above))) is None:
            if len(self._folders) >= _FOLDERS:
                self._folders.clear()
            path = os.path.join(folder, above) if above else folder
            real, links = os.path.realpath(path), None
            if not isinstance(_within(self._root, real), Refused):
                with suppress(OSError), os.scandir(real) as entries:
                    links = frozenset(entry.name for entry in entries if entry.is_symlink())
            written, root = _slashed(os.path.normpath(path)), _slashed(str(self._root))
            key = written[len(root) :] if written.startswith(root) else None
            found = self._folders[folder, above] = _Folder(written, key, _slashed(real), links)
        return found


def _as_it_is_there(folder: AnyPath, name: str) -> str:
    """A name in the spelling under which a file is there, where that is another than the written one.

    Windows writes back slashes, tools that label pictures write "%20", and a Mac takes letters and their accents apart.
    """
    if not _is_there(folder, name):
        plain = name.replace("\\", "/")
        accents = (unicodedata.normalize(form, plain.strip()) for form in ("NFC", "NFD"))
        spellings = (plain, plain.strip(), unquote(plain), *accents)
        return next((other for other in spellings if _is_there(folder, other)), plain)
    return name


def _is_there(folder: AnyPath, name: str) -> bool:
    return (folder / name).is_file() if isinstance(folder, Remote) else os.path.lexists(os.path.join(folder, name))


def _slashed(folder: str) -> str:
    return folder if folder.endswith("/") else folder + "/"


def inside(root: AnyPath, folder: AnyPath, name: str) -> File | Refused:
    """The file ``name`` in ``folder``, or why it may not be read. Asks the system about each part of the path."""
    if refused := _unusable(name):
        return refused
    if isinstance(folder, Remote):
        found = folder / name
        return found if found.is_relative_to(root) else Refused(Reason.OUTSIDE_SOURCE, _OUTSIDE)
    # A loop of links or a name that is too long stays in the path, and reading it says so.
    return _within(root, os.path.realpath(os.path.join(folder, name)))


def _within(root: AnyPath, path: str) -> str | Refused:
    within = _below(str(root), path) or path == str(root)
    return path if within else Refused(Reason.OUTSIDE_SOURCE, _OUTSIDE)


def _unusable(name: str) -> Refused | None:
    if not name or "\0" in name:
        return Refused(Reason.BAD_METADATA, "file_name is empty or holds a NUL")
    if len(name) > _PATH_CHARS:
        words = f"file_name has {len(name)} characters, a path at most {_PATH_CHARS}; pictures in base64 are not read"
        return Refused(Reason.BAD_METADATA, words)
    if name.startswith(("http://", "https://", "file://")):
        return Refused(Reason.BAD_METADATA, "file_name is a URL; give a path; a list of URLs is read by urls:LIST")
    try:
        name.isascii() or os.fsencode(name)
    except UnicodeEncodeError:  # "\\ud800" in JSON: half a character, which no file is named by
        return Refused(Reason.BAD_METADATA, "file_name holds a lone surrogate, as no name of a file does")
    return None


def walk(root: AnyPath, *, hidden: bool) -> Iterator[Any]:
    """Every entry below ``root`` that is not a folder, in sorted order, links not followed. Of the kind of ``root``."""
    return (Path(path) if isinstance(path, str) else path for path in files_below(root, hidden=hidden))


def files_below(root: AnyPath, *, hidden: bool) -> Iterator[str | Remote]:
    """As ``walk``, but a local file as plain text: a path object costs more than the file's turn otherwise would."""
    if isinstance(root, Remote):
        yield from root.walk(hidden=hidden)
        return
    waiting = [_entries(str(root))]  # a stack, not a recursion: folders may be nested deeper than Python may call
    while waiting:
        for entry in waiting[-1]:
            if hidden or not entry.name.startswith("."):
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(_entries(entry.path))
                    break
                yield entry.path
        else:
            waiting.pop()


def named_below(root: AnyPath, names: Collection[str]) -> list[AnyPath]:
    """The files of some names, small or capital, below ``root`` in the order of ``files_below``, hidden folders left out.

    A walk that sorts only those. Links are among them, wherever they lead.
    """
    if isinstance(root, Remote):
        return [path for path in root.walk(hidden=False) if path.name.lower() in names]
    found: list[Path] = []
    waiting = [str(root)]
    while waiting:
        for entry in _listed(waiting.pop()):
            if entry.name.lower() in names:
                if entry.is_symlink() or entry.is_file(follow_symlinks=False):
                    found.append(Path(entry.path))
            elif entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                waiting.append(entry.path)
    found.sort(key=lambda path: path.parts)
    return [*found]


def _entries(folder: str) -> "Iterator[os.DirEntry[str]]":
    return iter(sorted(_listed(folder), key=attrgetter("name")))


def _listed(folder: str) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError as error:
        raise SourceError(
            f"folder {folder[:_NAME_CHARS]} cannot be read ({words_of(error)}); give this user access to it, or move it up"
        ) from error


def trace_of(files: Iterable[AnyPath | str]) -> str:
    """Digest over the paths, sizes, inodes and times of files, and the tags of objects: while it is the same, so is their content.

    The time of the last change of an inode is what no program can set back. "" when a file was changed so lately that a
    further change could leave the same time, and for a bucket that tags nothing.
    """
    total, fresh_ns = hashlib.sha256(), time.time_ns() - _COARSEST_NS
    for path in files:
        total.update(str(path).encode(errors="surrogatepass"))
        try:
            if isinstance(path, Remote):
                if not (tag := path.bucket.tag(path.key)):
                    return ""
                total.update(tag.encode() + b"\n")
                continue
            info = os.lstat(path)
            link = stat.S_ISLNK(info.st_mode)
            for found in (info, os.stat(path)) if link else (info,):
                if found.st_ctime_ns >= fresh_ns:
                    return ""
                total.update(
                    _TRACE.pack(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
                )
        except (OSError, ValueError) as error:
            total.update(words_of(error).encode())
        total.update(b"\n")
    return total.hexdigest()


def existing(path: str | Remote, source: str) -> Any:
    """A local path with links resolved, or a place in a bucket. SourceError when nothing is there."""
    if isinstance(path, Remote):
        if path.is_file() or path.is_dir():
            return path
        raise SourceError(f"source {source}: {path} does not exist; give a key of an object, or a prefix that has some")
    found = Path(path).expanduser()
    if not path or not found.exists():
        raise SourceError(
            f"source {source}: {path or 'no path'} does not exist; give a path that does, relative to {Path.cwd()} or absolute"
        )
    if not (found.is_file() or found.is_dir()):
        raise SourceError(f"source {source}: {path} is a pipe, a socket or a device; give a file or a folder")
    return found.resolve()


def regular(path: AnyPath) -> AnyPath:
    """The path itself. OSError where a pipe, a socket or a device stands: opening one may wait for ever."""
    if isinstance(path, Path) and path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path
