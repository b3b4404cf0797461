"""How far a reading is that may take minutes before the first row: the listing of a bucket, the hashing of a source."""

import threading
import time
from typing import Protocol

_FIRST_S, _EVERY_S = 1.0, 0.25  # what is done within a second needs no words
_LARGE_BYTES = 2**26  # from here on bytes are told in MB


class Tell(Protocol):
    """Told how far something is; a ``total`` of 0 is not known beforehand. ``figures`` are told beside it."""

    def __call__(self, done: int, total: int, unit: str, **figures: float) -> None: ...


def silent(done: int, total: int, unit: str, **figures: float) -> None:
    """Tells nobody."""


class Tally:
    """Counts in any thread, and tells in that of who asks: listeners belong to the thread that began the step.

    total: of what is counted, 0 where it is not known. In bytes, told as kB or MB.
    """

    def __init__(self, tell: Tell, words: str, total: int = 0, *, in_bytes: bool = False) -> None:
        self._tell, self._total = tell, total
        self._scale, prefix = 1, ""
        if in_bytes:
            self._scale, prefix = (2**20, "MB ") if total >= _LARGE_BYTES or not total else (2**10, "kB ")
        self._unit = prefix + words
        self._lock = threading.Lock()
        self._done = self._files = 0
        self._told = False
        self._next = time.monotonic() + _FIRST_S

    def add(self, amount: int, *, files: int = 0) -> None:
        """So much more is done, and so many files are."""
        with self._lock:
            self._done += amount
            self._files += files

    @property
    def done(self) -> int:
        """How much is counted."""
        return self._done

    def show(self) -> None:
        """Tell, unless it was told a moment ago."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _EVERY_S
            self._told = True
            self._say(-(-self._total // self._scale))

    def end(self) -> None:
        """All is done: told only where something was told before."""
        if self._told:
            self._say(max(1, -(-self._done // self._scale)))

    def _say(self, total: int) -> None:
        done = -(-self._done // self._scale)
        figures = {"files": self._files} if self._files else {}
        self._tell(min(done, total) if total else done, total, self._unit, **figures)
