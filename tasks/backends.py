"""Where bytes lie: a local folder or an S3 bucket, behind one small protocol.

A backend promises three things and the store builds everything else on them: a key appears whole or not at all,
``create`` never replaces, and ``replace`` happens only if nothing changed since the tag was read. What a backend
cannot see is whether an S3 server really honours the conditions it is sent; ``Store.probe`` finds out.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple, Protocol

from dalle_model.errors import StoreError, StoreFull, StoreUnreachable
from tasks.faults import fault_point
from tasks.spool import is_full

CHUNK_BYTES = 4 * 2**20
TEMPORARY = ".tmp-"  # a name that starts so is nobody's key: a writer that was killed left it
_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


class Stat(NamedTuple):
    """Size in bytes and time of the last write (Unix seconds) of one key."""

    bytes: int
    modified: float


class Tagged(NamedTuple):
    """Content with the tag that ``replace`` wants back."""

    data: bytes
    tag: str


class Backend(Protocol):
    """What the store needs of a place that keeps bytes under keys. Errors are those of ``dalle_model.errors``."""

    uri: str
    workers: int  # requests that may run side by side
    second_looks_s: tuple[float, ...]  # pauses before a record that looks damaged is read again

    def get(self, key: str) -> bytes | None:
        """Content, or None when absent."""

    def get_tagged(self, key: str) -> Tagged | None:
        """Content and its tag, or None when absent."""

    def stat(self, key: str) -> Stat | None:
        """Size and age, or None when absent."""

    def blocks(self, key: str, size: int) -> Iterator[bytes] | None:
        """Content in pieces of a few MB, or None when absent; ``size`` is what is expected, not trusted."""

    def create(self, key: str, data: bytes) -> bytes | None:
        """Write unless the key exists. Returns None when written, else the content that is there."""

    def replace(self, key: str, data: bytes, tag: str | None) -> bool:
        """Write if the key still has ``tag`` (None: is still absent). False when somebody was faster."""

    def write(self, key: str, data: bytes) -> None:
        """Write without a condition."""

    def put(self, key: str, source: bytes | Path, sha256: str) -> None:
        """Store an immutable, content-addressed object. Heals a damaged one and makes an old one young again."""

    def delete(self, key: str) -> None:
        """Remove; no error when absent."""

    def walk(self, prefix: str) -> Iterator[tuple[str, Stat]]:
        """Keys below a folder. A hint: keys may come and go meanwhile."""

    def leftovers(self, older_than_s: float, now: float, dry_run: bool) -> list[str]:
        """Remove what killed writers left (temporary files, multipart uploads) and name it."""

    def path(self, key: str) -> Path | None:
        """The file of a key, when it is a file."""

    def conditional(self) -> tuple[bool, bool, str]:
        """Ask by trying: is ``create`` exclusive, is ``replace`` conditional; and the finding in words."""


def check_key(key: str) -> str:
    """The key itself; StoreError for one that could leave the store (``..``, absolute) or is not plain ASCII."""
    if not _KEY.fullmatch(key):
        raise StoreError(
            f"{key!r} is no key of the store: letters, digits and . _ - in parts joined by /, "
            "no part starting with a dot"
        )
    return key


def hash_file(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _blocks_of(source: bytes | Path) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as file:
        while block := file.read(CHUNK_BYTES):
            yield block


@contextlib.contextmanager
def local_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about ``path`` into one line with a remedy (StoreFull, StoreUnreachable)."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise StoreFull(
                f"no space left at {path} ({os.strerror(error.errno or 0)}); free some or choose another place with --store. "
                "What is finished is kept: run the same command again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StoreUnreachable(
                f"{path} may not be used by this user ({os.strerror(error.errno)}); "
                "change its permissions or choose another place with --store"
            ) from error
        if error.errno in (
            errno.ENOTDIR,
            errno.EISDIR,
            errno.EIO,
            errno.ESTALE,
            errno.ENOTCONN,
            errno.ELOOP,
            errno.ENAMETOOLONG,
        ):
            raise StoreUnreachable(
                f"{path} cannot be used as a store ({os.strerror(error.errno)}); choose a folder with --store"
            ) from error
        raise


def _unless_gone(error: OSError) -> None:
    """A folder that cannot be listed is no empty one: what nobody sees would be swept, or withdrawn pairs be used."""
    if not isinstance(error, FileNotFoundError):
        with local_errors(Path(error.filename)):
            raise error


class LocalBackend:
    """A folder. Content is written to a temporary file beside its name, made durable, and linked into place.

    ``system`` is the ``os`` module; tests pass one that records, fails or dies at a chosen call.
    """

    def __init__(self, root: Path, system: ModuleType | Any = os) -> None:
        self.root = Path(os.path.abspath(root))
        self.uri = self.root.as_uri()
        self.workers = 1
        self.second_looks_s: tuple[float, ...] = ()  # what is damaged here stays damaged
        self._os = system

    def path(self, key: str) -> Path:
        return self.root / check_key(key)

    def get(self, key: str) -> bytes | None:
        path = self.path(key)
        with local_errors(path), contextlib.suppress(FileNotFoundError):
            return path.read_bytes()
        return None

    def get_tagged(self, key: str) -> Tagged | None:
        data = self.get(key)
        return None if data is None else Tagged(data, hashlib.sha256(data).hexdigest())

    def stat(self, key: str) -> Stat | None:
        path = self.path(key)
        with local_errors(path), contextlib.suppress(FileNotFoundError):
            found = path.stat()
            return Stat(found.st_size, found.st_mtime)
        return None

    def blocks(self, key: str, size: int) -> Iterator[bytes] | None:
        path = self.path(key)
        return _blocks_of(path) if self.stat(key) else None

    def create(self, key: str, data: bytes) -> bytes | None:
        path = self.path(key)
        for _ in range(3):
            if (found := self.get(key)) is not None:
                return found
            with local_errors(path), self._temporary(path, data) as temporary:
                if self._link(temporary, path):
                    self._sync_folder(path.parent)
                    return None
        raise StoreError(f"{path} appears and disappears while it is created; another program changes this store")

    def replace(self, key: str, data: bytes, tag: str | None) -> bool:
        with self._lock():
            found = self.get_tagged(key)
            if (found.tag if found else None) != tag:
                return False
            self.write(key, data)
            return True

    def write(self, key: str, data: bytes) -> None:
        path = self.path(key)
        with local_errors(path), self._temporary(path, data) as temporary:
            self._os.replace(temporary, path)
            self._sync_folder(path.parent)

    def put(self, key: str, source: bytes | Path, sha256: str) -> None:
        path = self.path(key)
        with local_errors(path):
            if path.exists() and hash_file(path) == sha256:
                with contextlib.suppress(PermissionError):  # another user's file: as good
                    self._os.utime(path)  # young again, so that a sweep under way leaves it to us
                return
            with self._temporary(path, source) as temporary:
                if hash_file(temporary) != sha256:
                    raise StoreError(
                        f"{source if isinstance(source, Path) else key} changed while it was stored; run the step again"
                    )
                # A file of this name with other bytes is damaged: replacing it is the cure.
                self._os.replace(temporary, path) if path.exists() else self._link(temporary, path)
                self._sync_folder(path.parent)

    def delete(self, key: str) -> None:
        path = self.path(key)
        with local_errors(path), contextlib.suppress(FileNotFoundError):
            self._os.unlink(path)

    def walk(self, prefix: str) -> Iterator[tuple[str, Stat]]:
        start = self.root / prefix.rstrip("/") if prefix else self.root
        for folder, folders, names in os.walk(start, onerror=_unless_gone):
            folders.sort()
            for name in sorted(names):
                if not name.startswith("."):
                    key = (Path(folder) / name).relative_to(self.root).as_posix()
                    if found := self.stat(key):
                        yield key, found

    def leftovers(self, older_than_s: float, now: float, dry_run: bool) -> list[str]:
        found = []
        for folder, _, names in os.walk(self.root, onerror=_unless_gone):
            for name in sorted(n for n in names if n.startswith(TEMPORARY)):
                path = Path(folder) / name
                with local_errors(path), contextlib.suppress(FileNotFoundError):
                    if now - path.stat().st_mtime > older_than_s:
                        found.append(path.relative_to(self.root).as_posix())
                        if not dry_run:
                            self._os.unlink(path)
        return found

    def conditional(self) -> tuple[bool, bool, str]:
        key = f"probe/{secrets.token_hex(8)}"
        try:
            exclusive = self.create(key, b"1") is None and self.create(key, b"2") == b"1"
            guarded = not self.replace(key, b"3", "0") and self.get(key) == b"1"
        finally:
            self.delete(key)
        return exclusive, guarded, "a folder: files are linked into place, names are guarded by a file lock"

    @contextlib.contextmanager
    def _temporary(self, path: Path, source: bytes | Path) -> Iterator[Path]:
        """A durable copy of ``source`` beside ``path``, under a temporary name that is gone afterwards."""
        self._make_folder(path.parent)
        temporary = path.parent / f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}"
        # not mkstemp: its files are readable by their owner alone, and a store is often shared
        descriptor = self._os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                self._fill(file, source)
            yield temporary
        finally:
            with contextlib.suppress(FileNotFoundError):
                self._os.unlink(temporary)

    def _fill(self, file: BinaryIO, source: bytes | Path) -> None:
        for block in _blocks_of(source):
            file.write(block)
        fault_point("store.file_open")
        file.flush()
        self._os.fsync(file.fileno())

    def _link(self, temporary: Path, path: Path) -> bool:
        """Give a finished file its name. False when the name is taken."""
        try:
            self._os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            with self._lock():  # exFAT and some network folders know no links: then the lock makes it exclusive
                if path.exists():
                    return False
                self._os.replace(temporary, path)
        return True

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        path = self.root / ".lock"
        with local_errors(path):
            self._make_folder(self.root)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
        self._sync_folder(folder.parent)

    def _sync_folder(self, folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._os.fsync(descriptor)
        finally:
            os.close(descriptor)
