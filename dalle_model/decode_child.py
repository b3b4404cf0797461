"""The child's side of ``decode_pool``: decodes what comes in under limits on memory and CPU, and leaves its answers in a file.

Imports little, so that a child starts in a few hundredths of a second.
"""

import hashlib
import json
import os
import resource
import signal
import struct
import sys
import time
from pathlib import Path
from typing import BinaryIO

from dalle_model.decoding import Decoded, DecodeSettings, Reason, Refused, decode
from dalle_model.sources.local_files import read_file

HEADER = struct.Struct("<II")  # of a batch: bytes of JSON, bytes of payload
ANSWER = struct.Struct("<dd32s?IIII8sII")
"""Of an answer: CPU seconds of this process, the clock, SHA-256 and whether there is one, width, height, those of the source,
format, bytes of JSON (a list of notes, or an object that says why not; none for most) and bytes of the picture. A header of JSON
would cost as much to read as all else about an answer."""


class _Answers:
    """Where a child leaves its answers: one record each, complete as soon as the file is that long."""

    def __init__(self, fd: int, bell: BinaryIO) -> None:
        self._fd, self._bell = fd, bell
        self.rewind()

    def rewind(self) -> None:
        """To the start of the file, which the parent has emptied."""
        self._at = 0

    def write(self, sha256: bytes, result: Decoded | Refused) -> None:
        text, payload, facts = b"", b"", (0, 0, 0, 0, b"")
        if isinstance(result, Refused):
            text = json.dumps({"reason": result.reason, "detail": result.detail, "score": result.score}).encode()
        else:
            text, payload = json.dumps(result.notes).encode() if result.notes else b"", result.image
            sizes = (result.width, result.height, result.source_width, result.source_height)
            facts = (*sizes, result.format.encode())
        head = ANSWER.pack(_cpu_s(), time.monotonic(), sha256, bool(sha256), *facts, len(text), len(payload))
        record = memoryview(head + text + payload)
        while record:
            written = os.pwrite(self._fd, record, self._at)
            self._at += written
            record = record[written:]

    def ring(self) -> None:
        """Wake the parent."""
        self._bell.write(b"!")
        self._bell.flush()


def _address_space() -> int:
    """Bytes of address space this process has now; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _cpu_s() -> float:
    """CPU seconds this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class _CpuLimit:
    """SIGXCPU after ``cpu_s`` more seconds of CPU, on top of what this process has used."""

    def __init__(self, cpu_s: float) -> None:
        self._cpu_s = cpu_s
        self._hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        self._soft = -1

    def renew(self) -> None:
        soft = int(_cpu_s() + self._cpu_s + 1)
        if soft != self._soft:  # the system counts whole seconds: most pictures find the limit as it must be
            resource.setrlimit(resource.RLIMIT_CPU, (soft, self._hard))
            self._soft = soft


def serve(inputs: BinaryIO, outputs: BinaryIO) -> None:
    """Decode batches until the input ends. One message in per batch, one record out per picture, one byte to ``outputs``
    when the batch is done.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole terminal group; the parent decides
    start = json.loads(inputs.readline())
    settings = DecodeSettings(**start["settings"])
    if settings.vector:
        import resvg_py  # noqa: F401  # before the limit on memory is set
    if space := _address_space():
        limit = space + start["memory_bytes"]
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    answers, limit_cpu = _Answers(start["answers_fd"], outputs), _CpuLimit(start["cpu_s"])
    answers.write(b"", Decoded(b"", 0, 0, 0, 0, ""))  # ready
    answers.ring()
    # libtiff and others print what they think of a file; a folder of rubbish must not bury the log.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    while head := inputs.read(HEADER.size):
        text, payload = HEADER.unpack(head)
        pictures: list[int | str] = json.loads(inputs.read(text))["pictures"]
        batch = memoryview(inputs.read(payload))
        answers.rewind()
        offset = 0
        for picture in pictures:
            limit_cpu.renew()
            if isinstance(picture, str):
                _answer(answers, read_file(picture, settings.max_bytes), settings)
            else:
                _answer(answers, bytes(batch[offset : offset + picture]), settings)
                offset += picture
        answers.ring()


def _answer(answers: _Answers, data: bytes | Refused, settings: DecodeSettings) -> None:
    sha256 = b"" if isinstance(data, Refused) else hashlib.sha256(data).digest()
    try:
        result = data if isinstance(data, Refused) else decode(data, settings)
    except MemoryError:
        result = Refused(Reason.TOO_MUCH_MEMORY, "decoding needs more memory than one picture may take")
    answers.write(sha256, result)


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
