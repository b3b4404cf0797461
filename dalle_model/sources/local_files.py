"""Files of this machine, read with care: what stands at a path that others named may be anything."""

import os
import stat
from pathlib import Path

from dalle_model.decoding import Reason, Refused

_READ_BYTES = 1 << 20


def read_file(path: str | Path, max_bytes: int) -> bytes | Refused:
    """Bytes of a regular file of at most ``max_bytes``. Never blocks on a pipe or a device."""
    try:
        # O_NONBLOCK: opening a FIFO nobody writes to would wait for ever, before its type could be looked at.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return Refused(Reason.MISSING_FILE, "no such file")
    except (OSError, ValueError) as error:
        return Refused(Reason.UNREADABLE_FILE, words_of(error))
    try:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            return Refused(Reason.NOT_A_FILE, f"a {_type(info.st_mode)}, not a regular file")
        if info.st_size > max_bytes:
            return Refused(Reason.TOO_MANY_BYTES, f"{info.st_size} bytes, the limit is {max_bytes}", info.st_size)
        return _read_up_to(handle, info.st_size, max_bytes + 1)
    except OSError as error:
        return Refused(Reason.UNREADABLE_FILE, words_of(error))
    finally:
        os.close(handle)


def _read_up_to(handle: int, expected: int, limit: int) -> bytes:
    """At most ``limit`` bytes of a file that should have ``expected``: then one call reads it and sees its end."""
    data = os.read(handle, min(expected + 1, limit))
    if len(data) == expected:
        return data
    pieces, found = [data], len(data)
    while found < limit and (piece := os.read(handle, min(limit - found, _READ_BYTES))):
        pieces.append(piece)
        found += len(piece)
    return b"".join(pieces)


def words_of(error: BaseException) -> str:
    """What the system says of an error, in small letters."""
    return (error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__).lower()


def _type(mode: int) -> str:
    kinds = {
        stat.S_IFIFO: "named pipe",
        stat.S_IFDIR: "folder",
        stat.S_IFCHR: "device",
        stat.S_IFBLK: "device",
        stat.S_IFSOCK: "socket",
    }
    return kinds.get(stat.S_IFMT(mode), "special file")
