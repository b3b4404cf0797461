"""Packed lists (.gz, .bz2, .xz, .zst), unpacked as they are read and never without limit."""

import bz2
import gzip
import io
import lzma
import re
import zlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any, BinaryIO, cast

import pyarrow as pa

from dalle_model.decoding import Reason, Refused

DAMAGED_GZ = (EOFError, zlib.error, gzip.BadGzipFile)
_PACKED = re.compile(r"\.(?:gz|bz2|xz|zst)$")
_PIECE = 1 << 16
# A few kilobytes may unpack to terabytes, which cost no memory here but days. Texts become 3 to 20 times as much.
MOST_TIMES = 100
MOST_BYTES = 2**30  # that are never too many, however small the file


class UnpacksTooMuch(EOFError):
    """More comes out of a packed file than is believed of it."""


def most_unpacked(stream: BinaryIO) -> int:
    """Bytes that a packed file may unpack to; the stream stands at its beginning again."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    return max(MOST_BYTES, MOST_TIMES * size)


def too_much(most: int) -> str:
    """What is said of a file that unpacks to more than ``most`` bytes."""
    return f"it unpacks to more than {most} bytes, over {MOST_TIMES} times its size; if you trust it, unpack it and give what comes out"


def damaged_gz(lines: int, error: BaseException) -> Refused:
    """The row that stands for what is lost of a packed file after some lines."""
    if isinstance(error, UnpacksTooMuch):
        return Refused(Reason.TOO_MANY_BYTES, f"after line {lines} {error}; what follows is lost")
    words = f"the file is cut off or damaged after line {lines} ({type(error).__name__})"
    return Refused(Reason.UNREADABLE_FILE, f"{words}: what follows is lost; fetch or write it again")


def kind_of(name: str) -> str:
    """The kind of a file by its name, small letters, without a .gz or the like behind it: "csv" of "list.CSV.gz"."""
    return _PACKED.sub("", name.lower()).rpartition(".")[2]


def is_packed(name: str) -> bool:
    """Whether a file is unpacked on the way, by its name."""
    return _PACKED.search(name.lower()) is not None


def unpacked(stream: BinaryIO, name: str) -> AbstractContextManager[BinaryIO]:
    """The stream itself, or what a .gz, .bz2, .xz or .zst unpacks to. Reading that raises one of DAMAGED_GZ."""
    kind = name.lower().rpartition(".")[2]
    most = most_unpacked(stream) if is_packed(name) else 0
    packed: Any
    if kind == "gz":
        packed = gzip.GzipFile(fileobj=stream, mode="rb")
    elif kind == "bz2":
        packed = bz2.BZ2File(stream)
    elif kind == "xz":
        packed = lzma.LZMAFile(stream)  # noqa: SIM115 - the caller closes the stream
    elif kind == "zst":
        packed = pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd")
    else:
        return nullcontext(stream)
    return cast(AbstractContextManager[BinaryIO], io.BufferedReader(_Unpacking(packed, most), _PIECE))


class _Unpacking(io.RawIOBase):
    """What a packed stream holds; every library's word for damage is an EOFError here, and so is what is too much."""

    def __init__(self, packed: Any, most: int) -> None:
        # Of what is unpacked before a damage none may be lost: `read` would drop it when it meets the damage.
        self._read = packed.read1 if hasattr(packed, "peek") else packed.read
        self._most, self._given = most, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._read(len(buffer))
        except (lzma.LZMAError, pa.ArrowException, OSError) as error:
            if isinstance(error, gzip.BadGzipFile) or (
                isinstance(error, OSError) and error.errno
            ):  # errno: the disk's or the network's
                raise
            raise EOFError(str(error)) from error
        self._given += len(data)
        if self._given > self._most:
            raise UnpacksTooMuch(too_much(self._most))
        buffer[: len(data)] = data
        return len(data)
