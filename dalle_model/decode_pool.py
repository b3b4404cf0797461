"""Decoding in child processes: a picture that crashes, hangs or swells costs one row and never the run.

Each child is a fresh interpreter (no fork: nothing is inherited from threads or locks) with a limit on its address
space and, per picture, on CPU seconds. The parent keeps a wall-clock limit and replaces a child that died or grew old.
Pictures travel in batches over a pipe as JSON plus raw bytes; nothing is pickled, since the child reads bytes of
unknown origin. Answers are written one by one into a file in memory that outlives the child, and the parent is woken
once per batch: were it woken per picture, small pictures would cost as much to hand over as to decode. A child that dies
still leaves exactly one suspect, the first picture without an answer. A child whose parent was killed reads the end of
its input and goes. A picture that is a file is read and digested by the child: its bytes never pass through the parent.

Results come back in the order of the input whatever the number of children, and do not depend on it.
"""

import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Generic, Self, TypeVar

from dalle_model.decode_child import ANSWER, HEADER
from dalle_model.decoding import Decoded, DecodeSettings, Reason, Refused
from dalle_model.errors import StepFailed
from dalle_model.sources.local_files import read_file

_T = TypeVar("_T")
Picture = bytes | str  # encoded bytes, or the path of the file that holds them
Answer = tuple[bytes, Decoded | Refused]  # SHA-256 of the encoded bytes, b"" where nothing was read, and the result
_BATCH_FILES = 32
_BATCH_BYTES = 4_000_000
_READ_BYTES = 1 << 20
_START_S = 60.0
_STARTS = 3
_DEATHS = 3  # children that may die of one picture before it is refused


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Limits on one decoding child."""

    memory_bytes: int = 512 * 1024 * 1024  # address space over what the started child has
    cpu_s: float = 5.0  # per picture
    wall_s: float = 10.0  # per picture
    files_per_child: int = 4000  # then it is replaced, so that a leak in a decoder stays small


class _Died(Exception):
    """The child ended or was stopped before it answered.

    ``slow`` when a time limit stopped it, ``final`` when the picture is to blame for certain.
    """

    def __init__(self, words: str, *, slow: bool = False, final: bool = False) -> None:
        super().__init__(words)
        self.slow, self.final = slow, final


class _Child:
    """One decoding process and its pipes."""

    def __init__(self, settings: DecodeSettings, limits: PoolLimits) -> None:
        package_root = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join(p for p in (package_root, os.environ.get("PYTHONPATH", "")) if p)
        self._answers = _memory_file()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "dalle_model.decode_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[self._answers.fileno()],
            env={**os.environ, "PYTHONPATH": path, "MALLOC_ARENA_MAX": "2"},
        )
        self._limits = limits
        self._buffer = bytearray()  # what was read of the file of answers
        self._taken = 0  # bytes of it that were handed on
        self._used_s, self._answered_s = 0.0, time.monotonic()  # CPU seconds and the clock at its last answer
        self.files_left = limits.files_per_child
        start = {
            "settings": asdict(settings),
            "memory_bytes": limits.memory_bytes,
            "cpu_s": limits.cpu_s,
            "answers_fd": self._answers.fileno(),
        }
        try:
            self._send(json.dumps(start).encode() + b"\n")
            self._receive(_START_S)
        except _Died:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def send_batch(self, pictures: list[Picture]) -> None:
        """Give the child its next pictures. It has answered all earlier ones."""
        os.ftruncate(self._answers.fileno(), 0)
        self._buffer.clear()
        self._taken, self._answered_s = 0, time.monotonic()
        text = json.dumps({"pictures": [len(p) if isinstance(p, bytes) else p for p in pictures]}).encode()
        payload = [p for p in pictures if isinstance(p, bytes)]
        self._send(b"".join((HEADER.pack(len(text), sum(map(len, payload))), text, *payload)))

    def answer(self) -> Answer:
        """What became of the next picture. Raises _Died."""
        self.files_left -= 1
        return self._receive(self._limits.wall_s)

    def stop(self) -> None:
        """End the process whatever it is doing, and close the pipes."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue  # what was still buffered for a dead child
        self._answers.close()

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._death() from error

    def _receive(self, wall_s: float) -> Answer:
        wait: _Wait | None = None
        while (answer := self._next_answer()) is None:
            wait = wait or _Wait(self._process.pid, self._used_s, self._answered_s, wall_s, self._limits.cpu_s)
            self._await(wait)
        return answer

    def _next_answer(self) -> Answer | None:
        """The next answer, if all of it was read."""
        start = self._taken + ANSWER.size
        if len(self._buffer) < start:
            return None
        cpu_s, at_s, digest, read, *facts, text, payload = ANSWER.unpack_from(self._buffer, self._taken)
        end = start + text + payload
        if len(self._buffer) < end:
            return None
        self._taken, self._used_s, self._answered_s = end, cpu_s, at_s
        sha256 = digest if read else b""
        said = json.loads(self._buffer[start : start + text]) if text else ()
        if isinstance(said, dict):
            return sha256, Refused(Reason(said["reason"]), said["detail"], said["score"])
        width, height, source_width, source_height, kind = facts
        picture, name = bytes(self._buffer[start + text : end]), kind.rstrip(b"\0").decode()
        return sha256, Decoded(picture, width, height, source_width, source_height, name, tuple(said))

    def _await(self, wait: "_Wait") -> None:
        """Return when the file of answers had something new. Raises _Died."""
        assert self._process.stdout is not None
        bell = self._process.stdout.fileno()
        while True:
            rang = bool(select.select([bell], [], [], wait.left_s())[0])
            ended = rang and not os.read(bell, 64)
            # Looked at whatever woke us: a child that hangs or died may have answered before.
            if piece := os.pread(self._answers.fileno(), _READ_BYTES, len(self._buffer)):
                self._buffer += piece
                return
            if ended:
                raise self._death()
            if not rang and wait.is_over():
                raise _Died("passed the wall-clock limit", slow=True)

    def _death(self) -> _Died:
        code = self._process.wait()
        if code == -signal.SIGXCPU:
            return _Died("passed the CPU limit", slow=True, final=True)
        return _Died(f"ended by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}")


class _Wait:
    """The wall-clock limit of one answer. It is prolonged while the child had no chance to run: a verdict on a
    picture must not depend on how busy the machine is.
    """

    _PROLONGED = 5

    def __init__(self, pid: int, used_s: float, begun_s: float, wall_s: float, cpu_s: float) -> None:
        self._pid, self._used_s, self._wall_s, self._cpu_s = pid, used_s, wall_s, cpu_s
        self._deadline = begun_s + wall_s
        self._prolonged = 0

    def left_s(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def is_over(self) -> bool:
        if self.left_s() > 0:
            return False
        starved = self._cpu_used_s() - self._used_s < min(self._cpu_s, self._wall_s) / 2
        if not starved or self._prolonged == self._PROLONGED:
            return True
        self._prolonged += 1
        self._deadline = time.monotonic() + self._wall_s
        return False

    def _cpu_used_s(self) -> float:
        import psutil

        try:
            times = psutil.Process(self._pid).cpu_times()
        except psutil.Error:
            return 0.0
        return float(times.user + times.system)


def _memory_file() -> BinaryIO:
    """An empty file without a name, in memory where the system can."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("answers"), "w+b", buffering=0)
    import tempfile

    return tempfile.TemporaryFile(buffering=0)


class DecodePool(Generic[_T]):
    """Some decoding children behind one ordered ``map``. Use as a context manager; children start at first need."""

    def __init__(self, settings: DecodeSettings, workers: int, limits: PoolLimits = PoolLimits()) -> None:
        self._settings, self._limits, self._workers = settings, limits, max(1, workers)
        self._idle: list[_Child] = []
        self._all: set[_Child] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._threads = ThreadPoolExecutor(self._workers, "decode")
        self.children_lost = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            children = list(self._all)
        for child in children:
            child.stop()  # also wakes a thread that waits for an answer
        self._threads.shutdown(cancel_futures=True)

    def map(self, items: Iterable[tuple[_T, Picture | Refused]]) -> Iterator[tuple[_T, bytes, Decoded | Refused]]:
        """(tag, SHA-256 of the encoded bytes, result) for each (tag, bytes or file) in order.

        A Refused instead of a picture passes through; its digest is b"", as that of a file that cannot be read.

        Looks ahead by a few batches per child, so memory does not grow with the number of items.
        """
        waiting: deque[tuple[list[tuple[_T, Picture | Refused]], Future[list[Answer]]]] = deque()
        for batch in _batches(items):
            pictures = [p for _, p in batch if not isinstance(p, Refused)]
            waiting.append((batch, self._threads.submit(self._decode_batch, pictures)))
            if len(waiting) > 2 * self._workers:
                yield from _joined(*waiting.popleft())
        while waiting:
            yield from _joined(*waiting.popleft())

    def _decode_batch(self, pictures: list[Picture]) -> list[Answer]:
        results: list[Answer] = []
        suspected, deaths = -1, 0  # index of the picture at which children died, and how many
        while len(results) < len(pictures):
            child = self._child(fresh=deaths > 0)
            try:
                child.send_batch(pictures[len(results) :])
                while len(results) < len(pictures):
                    results.append(child.answer())
            except _Died as death:
                self._drop(child)
                at = len(results)
                # The CPU limit speaks of the picture. Any other death may be the machine's doing (the kernel short of
                # memory, an operator, a machine too busy to run us), so the picture gets another, fresh child.
                deaths = deaths + 1 if at == suspected else 1
                suspected = at
                if death.final or deaths == _DEATHS:
                    reason = Reason.TOO_SLOW if death.slow else Reason.DECODER_DIED
                    refused = Refused(reason, f"the decoding process {death}")
                    results.append((_digest(pictures[at], self._settings.max_bytes), refused))
            else:
                self._release(child)
        return results

    def _child(self, *, fresh: bool) -> _Child:
        """An idle child, or a new one; ``fresh`` for a picture that is suspected, as an idle child may be dead already."""
        with self._lock:
            if self._idle and not fresh:
                return self._idle.pop()
        child = self._started()
        with self._lock:
            self._all.add(child)
            closed = self._closed
        if closed:
            child.stop()
        return child

    def _started(self) -> _Child:
        """A child that is ready. One killed while it starts is started again: whoever kills, kills at any moment."""
        for attempt in range(_STARTS):
            try:
                return _Child(self._settings, self._limits)
            except _Died as error:
                if attempt + 1 == _STARTS:
                    command = f"{sys.executable} -m dalle_model.decode_child"
                    raise StepFailed(
                        f"a decoding process does not start ({error}); run `{command}` to see why"
                    ) from error
        raise AssertionError("unreachable")

    def _release(self, child: _Child) -> None:
        if child.files_left <= 0:
            self._forget(child)
            return
        with self._lock:
            self._idle.append(child)

    def _drop(self, child: _Child) -> None:
        with self._lock:
            if self._closed:
                raise StepFailed("decoding was stopped")
            self.children_lost += 1
        self._forget(child)

    def _forget(self, child: _Child) -> None:
        child.stop()
        with self._lock:
            self._all.discard(child)


def _digest(picture: Picture, max_bytes: int) -> bytes:
    """The digest that a child would have given."""
    data = picture if isinstance(picture, bytes) else read_file(picture, max_bytes)
    return b"" if isinstance(data, Refused) else hashlib.sha256(data).digest()


def _batches(items: Iterable[tuple[_T, Picture | Refused]]) -> Iterator[list[tuple[_T, Picture | Refused]]]:
    batch: list[tuple[_T, Picture | Refused]] = []
    size = 0
    for item in items:
        batch.append(item)
        size += len(item[1]) if isinstance(item[1], bytes) else 0
        if len(batch) >= _BATCH_FILES or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _joined(
    batch: list[tuple[_T, Picture | Refused]], future: Future[list[Answer]]
) -> Iterator[tuple[_T, bytes, Decoded | Refused]]:
    results = iter(future.result())
    for tag, picture in batch:
        yield (tag, b"", picture) if isinstance(picture, Refused) else (tag, *next(results))
