"""Whether a tar archive that was read as a stream really ended where the reader stopped.

``tarfile`` stops without a word at a header that is cut, damaged or missing, and never looks behind the end mark (two
blocks of zeros, POSIX pax), where a checksum or a second archive may be.
"""

import bz2
import gzip
import lzma
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, BinaryIO, cast

from dalle_model.sources.unpacking import UnpacksTooMuch, too_much

_BLOCK = 512
PIECE_BYTES = 1 << 16  # that ``tarfile`` should ask for at once
_KEPT = PIECE_BYTES + 2 * _BLOCK  # it has asked for no more than this from the header on at which it stops
_MAX_BEHIND = 1 << 24  # bytes behind the end that are looked at: packed zeros may go on for ever

_MAX_DRY = 1000
MAX_FACTS_BYTES = 1 << 20
_MAX_LISTED_BYTES = 1 << 18
_MAX_DIGITS = 200
_MAX_IN_A_ROW = 16
_FACTS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


def unpacked_tar(stream: BinaryIO) -> AbstractContextManager[BinaryIO]:
    """What a stream that can seek unpacks to, by its first bytes: gzip, bzip2, xz, or itself.

    Unlike those of ``tarfile``, these readers check the checksum and the end of what they unpack.
    """
    start = stream.read(6)
    stream.seek(0)
    if start.startswith(b"\x1f\x8b"):
        return cast(AbstractContextManager[BinaryIO], gzip.GzipFile(fileobj=stream, mode="rb"))
    if start.startswith(b"BZh"):
        return cast(AbstractContextManager[BinaryIO], bz2.BZ2File(stream))
    if start.startswith(b"\xfd7zXZ\0"):
        return cast(AbstractContextManager[BinaryIO], lzma.LZMAFile(stream))
    return nullcontext(stream)


class BoundedInfo(tarfile.TarInfo):
    """Members of whose own facts little is believed, as all of them are held in memory.

    At most a megabyte of a long name or a PAX header, sixteen of those in a row (``tarfile`` calls itself for each), a
    quarter of a megabyte of what sparse files list, and of the facts that count for all members only those that
    ``tarfile`` uses.
    """

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        stream: Any = archive.fileobj  # the stream that `tarfile` puts around what it was given
        watched: WatchedTar = stream.fileobj
        facts = self.type in _FACTS
        if facts and self.size > MAX_FACTS_BYTES:
            raise tarfile.ReadError(f"a header of {self.size} bytes, the limit is {MAX_FACTS_BYTES}")
        with watched.reading_facts(self.size if facts else 0, _MAX_IN_A_ROW if facts else 0):
            found: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]  # not in typeshed
        if self.type == tarfile.XGLTYPE:
            archive.pax_headers = {k: v for k, v in archive.pax_headers.items() if k in tarfile.PAX_FIELDS}
        return found

    def _proc_pax(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        stream: Any = archive.fileobj
        facts = stream.read(self._block(self.size))  # type: ignore[attr-defined]  # not in typeshed
        if max(map(len, re.findall(rb"\d+", facts)), default=0) > _MAX_DIGITS:
            # Before 3.11.10, tarfile looks at what follows each digit of such a number: minutes (CVE-2024-6232).
            raise tarfile.ReadError(f"a PAX header with a number of more than {_MAX_DIGITS} digits")
        archive.fileobj = cast(Any, _Again(stream, facts))
        try:
            found: tarfile.TarInfo = super()._proc_pax(archive)  # type: ignore[misc]  # not in typeshed
        finally:
            archive.fileobj = stream
        return found


class _Again:
    """A stream that gives once more what was just read of it."""

    def __init__(self, stream: Any, piece: bytes) -> None:
        self.fileobj = stream.fileobj
        self.tell = stream.tell
        self._stream, self._piece = stream, piece

    def read(self, size: int) -> bytes:
        """As of a file; the piece was read with the same size."""
        piece, self._piece = self._piece, b""
        return piece or bytes(self._stream.read(size))


class WatchedTar:
    """A stream for ``tarfile`` that remembers the last it gave, a few blocks.

    most: bytes that the archive may unpack to, 0 for one that is not packed; behind them UnpacksTooMuch is raised.
    Behind its end it gives nothing a few times, then raises EOFError: to skip a member that claims 2^60 bytes, ``tarfile``
    would ask for each piece of them.
    """

    def __init__(self, stream: BinaryIO, most: int = 0) -> None:
        # Of what is unpacked before a damage none may be lost: `read` would drop it when it meets the damage.
        self._read: Callable[[int], bytes] = stream.read1  # type: ignore[attr-defined]
        self._most = most
        self._tail = b""
        self._given = 0
        self._dry = 0  # times that nothing came
        self._in_a_row = 0  # headers that are read one inside the other
        self._left: int | None = None  # bytes that they may still have

    @contextmanager
    def reading_facts(self, size: int, most: int) -> Iterator[None]:
        """While a header with facts of ``size`` is read, and others inside it; ReadError behind ``most`` (0 = any)."""
        self._in_a_row += 1
        if 0 < most < self._in_a_row:
            raise tarfile.ReadError(f"more than {most} headers for one member")
        self._left = size + _MAX_LISTED_BYTES
        try:
            yield
        finally:
            self._in_a_row -= 1
            if not self._in_a_row:
                self._left = None

    def read(self, size: int) -> bytes:
        """As of a file."""
        piece = self._read(size)
        if self._left is not None:
            self._left -= len(piece)
            if self._left < 0:
                raise tarfile.ReadError(f"a header that lists more than {_MAX_LISTED_BYTES} bytes")
        if piece:
            self._tail = (self._tail + piece)[-_KEPT:]
            self._given += len(piece)
            if 0 < self._most < self._given:
                raise UnpacksTooMuch(too_much(self._most))
        elif size:
            self._dry += 1
            if self._dry > _MAX_DRY:
                raise EOFError("a member claims more bytes than there are")
        return piece

    def trouble_at(self, offset: int) -> str:
        """Why the end is none, "" for a good one; ``offset`` in bytes is that of the header at which reading stopped.

        Reads what is left of the stream, so it may raise what unpacking raises.
        """
        rest = self._tail[offset - (self._given - len(self._tail)) :]
        mark = rest[:_BLOCK]
        if not mark:
            return "the archive has no end mark: it is cut off"
        if len(mark) < _BLOCK:
            return "the archive is cut off within a header"
        if any(mark):
            return "the archive has a damaged header"
        piece, behind = rest, 0
        while piece:
            behind += len(piece)
            if any(piece) or behind > _MAX_BEHIND:
                return "the archive goes on behind its end mark (several joined in one file? give each as a file)"
            piece = self._read(PIECE_BYTES)
        return ""
