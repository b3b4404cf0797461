"""Whether a tar archive that was read as a stream really ended where the reader stopped.

``tarfile`` stops without a word at a header that is cut, damaged or missing, and never looks behind the end mark (two
blocks of zeros, POSIX pax), where a checksum or a second archive may be.
"""

import bz2
import gzip
import lzma
import tarfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import BinaryIO, cast

_BLOCK = 512
PIECE_BYTES = 1 << 16  # that ``tarfile`` should ask for at once
_KEPT = PIECE_BYTES + 2 * _BLOCK  # it has asked for no more than this from the header on at which it stops
_MAX_BEHIND = 1 << 24  # bytes behind the end that are looked at: packed zeros may go on for ever

_MAX_DRY = 1000
MAX_FACTS_BYTES = 1 << 20
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
    """Members of whose own facts (long names, PAX headers) no more than a megabyte is believed: they are held in memory."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _FACTS and self.size > MAX_FACTS_BYTES:
            raise tarfile.ReadError(f"a header of {self.size} bytes, the limit is {MAX_FACTS_BYTES}")
        found: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]  # not in typeshed
        return found


class WatchedTar:
    """A stream for ``tarfile`` that remembers the last it gave, a few blocks.

    Behind its end it gives nothing a few times, then raises EOFError: to skip a member that claims 2^60 bytes, ``tarfile``
    would ask for each piece of them.
    """

    def __init__(self, stream: BinaryIO) -> None:
        # Of what is unpacked before a damage none may be lost: `read` would drop it when it meets the damage.
        self._read: Callable[[int], bytes] = stream.read1  # type: ignore[attr-defined]
        self._tail = b""
        self._given = 0
        self._dry = 0  # times that nothing came

    def read(self, size: int) -> bytes:
        """As of a file."""
        piece = self._read(size)
        if piece:
            self._tail = (self._tail + piece)[-_KEPT:]
            self._given += len(piece)
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
