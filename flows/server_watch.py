"""Say that Prefect's server has stopped answering while work goes on, and that it answers again; leave when it is asked to.

A server that hangs (a stopped process, a full disk, a machine that swaps) is no closed connection: Prefect's client waits a
minute for each answer and asks six times, so a command would stand still for seven minutes without a word.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil

from flows import prefect_home

SILENT_S = 60.0  # before it is said: an answer took as long on a crowded machine
_ASK_EVERY_S = 20.0
_WAIT_S = 10.0
_used: list[str] = []  # addresses that this process has watched


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
    _used.append(url)

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


def leave_if_unheard(
    leave: Callable[[], None],
    *,
    healthy: Callable[[str, float], bool] = prefect_home.is_healthy,
    working: Callable[[], bool] | None = None,
    every_s: float = 2.0,
) -> None:
    """After an interrupt: ``leave``, from a thread of its own, once no step is at work and the server has missed two answers.

    Prefect first reports the interrupt to its server, then its last events and log lines, and has the patience for each
    that a hanging server needs: the command would go on for a quarter of an hour. Does nothing without a server.
    """
    if not _used:
        return
    url, at_work = _used[-1], working or _steps_at_work

    def wait() -> None:
        missed = 0
        while missed < 2:
            time.sleep(every_s)
            missed = 0 if at_work() or healthy(url, _WAIT_S) else missed + 1
        leave()

    threading.Thread(target=wait, name="server-unheard", daemon=True).start()


def _steps_at_work() -> bool:
    """Whether a step's process is alive: it saves a checkpoint before it ends."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "tasks.worker" in child.cmdline():
                return True
    return False


def _say(line: str) -> None:
    # Not print: inside a flow Prefect takes what is printed for its own log alone, which goes to that server.
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
