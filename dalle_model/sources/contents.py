"""The digest of a source's content: what a source is, wherever it lies."""

import errno
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from dalle_model.decoding import Reason, Refused
from dalle_model.sources.base import inside, key_below, size_of
from dalle_model.sources.remote import AnyPath, Remote
from dalle_model.sources.telling import Tally, Tell, silent

_T = TypeVar("_T")
_READ_BYTES = 1 << 20
_WHOLE_BYTES = 1 << 24  # objects of a bucket up to this size are read in one request
_AT_HAND_S = 1e-4  # a small file in the page cache is read and digested in a quarter of that
_WAITING = 0.75  # share of the time of a chunk that is not computing, from which on its files are far away
_LARGE_BYTES = 1 << 16  # digesting these takes several times as long as Python's part, and lets other threads run
_LOOK_EVERY_S = 0.25


def content_digest(root: AnyPath, files: Iterable[AnyPath | str], tell: Tell = silent) -> str:
    """SHA-256 over (path below ``root``, content) of files: the same folder elsewhere has the same digest."""
    total = hashlib.sha256()
    if isinstance(root, Remote):
        files = list(files)  # the listing is in memory anyway, with the sizes
    sizes = sum(map(size_of, files)) if isinstance(files, list) else 0
    tally = Tally(tell, "hashed", sizes, in_bytes=True)

    def some(paths: list[Any]) -> bytes:
        lines = b"".join(json.dumps([key_below(root, p), _content(p, root, tally)]).encode() + b"\n" for p in paths)
        tally.add(0, files=len(paths))
        return lines

    paths = iter(files)
    workers = min(8, os.cpu_count() or 1)
    chunk, at_once = list(islice(paths, 16)), isinstance(root, Remote)
    with ThreadPoolExecutor(workers, "digest") as threads:
        while chunk:
            started, computed, before = time.monotonic(), time.process_time(), tally.done
            # Several go to a thread: each is digested sooner than a thread is told of it.
            size = 1 if isinstance(root, Remote) else max(1, min(32, len(chunk) // (4 * workers)))
            pieces = (chunk[at : at + size] for at in range(0, len(chunk), size))
            for lines in _in_threads(threads, some, pieces, tally) if at_once else map(some, pieces):
                total.update(lines)
                tally.show()
            # Threads help where files are large, or are waited for; over small ones at hand they only wait for each other.
            took, computed = time.monotonic() - started, time.process_time() - computed
            large = tally.done - before > _LARGE_BYTES * len(chunk)
            waited_for = took > _AT_HAND_S * len(chunk) and computed < (1 - _WAITING) * took
            at_once = isinstance(root, Remote) or large or waited_for
            chunk = list(islice(paths, 1024))
    tally.end()
    return total.hexdigest()


def _in_threads(
    threads: ThreadPoolExecutor, work: Callable[[_T], bytes], items: Iterable[_T], tally: Tally
) -> Iterator[bytes]:
    """Results in order. One of many gigabytes may take minutes: meanwhile it is told how far it is."""
    for future in [threads.submit(work, item) for item in items]:
        while not future.done():
            wait([future], _LOOK_EVERY_S)
            tally.show()
        yield future.result()


def _content(path: AnyPath | str, root: AnyPath, tally: Tally) -> str:
    """Digest of a regular file, the target of a link, or words for what else stands there."""
    if isinstance(path, Remote):
        return _remote_content(path, tally)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, UnicodeEncodeError):  # a name that cannot be written names nothing
        return Reason.MISSING_FILE
    except OSError as error:
        if error.errno == errno.ELOOP and os.path.islink(path):
            return _link_content(path, root)
        return Reason.NOT_A_FILE if error.errno == errno.ENXIO else Reason.UNREADABLE_FILE  # ENXIO: a socket
    try:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            return Reason.NOT_A_FILE
        piece = os.read(handle, min(max(info.st_size, 4095) + 1, _READ_BYTES))
        digest = hashlib.sha256(piece)
        tally.add(len(piece))
        if len(piece) != info.st_size:  # one call has read a small file and seen its end
            while piece := os.read(handle, _READ_BYTES):
                digest.update(piece)
                tally.add(len(piece))
        return digest.hexdigest()
    except OSError:
        return Reason.UNREADABLE_FILE
    finally:
        os.close(handle)


def _link_content(path: Path | str, root: AnyPath) -> str:
    folder, name = os.path.split(path)
    target = inside(root, Path(folder), name)
    if isinstance(target, Refused):
        return target.reason
    return f"link {Path(str(target)).relative_to(str(root)).as_posix()}"


def _remote_content(path: Remote, tally: Tally) -> str:
    digest = hashlib.sha256()
    try:
        if path.bucket.size(path.key) <= _WHOLE_BYTES:
            data = path.bucket.read(path.key)  # one request; opening a stream costs more
            digest.update(data)
            tally.add(len(data))
        else:
            with path.open() as stream:
                while piece := stream.read(_READ_BYTES):
                    digest.update(piece)
                    tally.add(len(piece))
        return digest.hexdigest()
    except FileNotFoundError:
        return Reason.MISSING_FILE
