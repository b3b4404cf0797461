"""Say that Prefect's server has stopped answering while work goes on, and that it answers again.

A server that hangs (a stopped process, a full disk, a machine that swaps) is no closed connection: Prefect's client waits a
minute for each answer and asks six times, so a command would stand still for seven minutes without a word.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flows import prefect_home

SILENT_S = 60.0  # before it is said: an answer took as long on a crowded machine
_ASK_EVERY_S = 20.0
_WAIT_S = 10.0


class Silence:
    """Since when a server gives no answer; what is to be said about it, once each way."""

    def __init__(self, url: str, advice: str) -> None:
        self._url, self._advice = url, advice
        self._since: float | None = None
        self._told = False

    def heard(self, answered: bool, now: float) -> str:
        """Take an attempt that ended at ``now`` (seconds, monotonic); the line to say, mostly none."""
        if answered:
            told, self._since, self._told = self._told, None, False
            return f"Prefect's server {self._url} answers again" if told else ""
        self._since = now if self._since is None else self._since
        if self._told or now - self._since < SILENT_S:
            return ""
        self._told = True
        return f"Prefect's server {self._url} has not answered for {now - self._since:.0f} s; {self._advice}"


@contextmanager
def watched(
    url: str,
    advice: str,
    *,
    say: Callable[[str], None] | None = None,
    healthy: Callable[[str, float], bool] = prefect_home.is_healthy,
    every_s: float = _ASK_EVERY_S,
) -> Iterator[None]:
    """Ask the API at ``url`` for its health, from a thread of its own, until the block ends."""
    silence, over = Silence(url, advice), threading.Event()

    def ask() -> None:
        while not over.wait(every_s):
            line = silence.heard(healthy(url, _WAIT_S), time.monotonic())
            if line and not over.is_set():
                (say or _say)(line)

    thread = threading.Thread(target=ask, name="server-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()  # not joined: it may wait for an answer


def _say(line: str) -> None:
    # Not print: inside a flow Prefect takes what is printed for its own log alone, which goes to that server.
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
