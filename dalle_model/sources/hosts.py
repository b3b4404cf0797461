"""How a host is treated: at which pace, how many requests at once, and when it is left alone.

A host that fails sixteen times in a row is given half a minute; one that goes on failing is left alone for a minute at
a time, and so is one that asks for a longer pause than a run waits for. What is due from it meanwhile fails at once and
costs the other hosts nothing.
"""

import asyncio
import math
from email.utils import parsedate_to_datetime
from time import time

from dalle_model.decoding import Reason
from dalle_model.sources.fetch_failures import DETAIL_CHARS, Failed

MAX_PAUSE_S = 30.0  # between two requests, that a site may ask for and a run waits for
LEFT_ALONE_S = 60.0  # after which a site that did not answer is asked again
_MAX_LEFT_ALONE_S = 86_400.0
_PATIENCE = 16  # failures in a row that earn a pause; twice as many, and the host is left alone
_PER_HOST = 8  # requests at once


class Pace:
    """A token bucket: ``rate`` requests a second, and as many at once after a rest."""

    def __init__(self, rate: float) -> None:
        self._interval_s = 1 / rate
        self._burst_s = max(0.0, 1.0 - self._interval_s)
        self._due = 0.0
        self._turn = asyncio.Lock()

    def ask(self, delay_s: float) -> None:
        """The site wants this much time between requests (Crawl-delay)."""
        if delay_s > self._interval_s:
            self._interval_s, self._burst_s = min(delay_s, MAX_PAUSE_S), 0.0

    def hold(self, pause_s: float) -> None:
        """Nothing for a while (Retry-After), not even for those who wait already."""
        self._due = max(self._due, _now() + min(pause_s, MAX_PAUSE_S))

    async def wait(self) -> None:
        """Until it is this request's turn."""
        async with self._turn:  # one after the other, so that a pause counts for all who wait
            while (wait_s := self._due - _now()) > 0:
                await asyncio.sleep(wait_s)
            self._due = max(self._due, _now() - self._burst_s) + self._interval_s


class Host:
    """What is remembered of one host."""

    def __init__(self, name: str, rate: float) -> None:
        self.pace = Pace(rate)
        self.slots = asyncio.Semaphore(_PER_HOST)
        self._name = name
        self._failures = 0  # in a row
        self._closed_until = 0.0
        self._why = (Reason.SERVER_BUSY, "")

    def worked(self) -> None:
        """It answered as a healthy server does."""
        self._failures = 0

    def failed(self, reason: Reason) -> None:
        """It was too slow, broke off, or said that it is busy."""
        self._failures += 1
        if self._failures == _PATIENCE:
            self.pace.hold(MAX_PAUSE_S)
        elif self._failures >= 2 * _PATIENCE:
            self._close(LEFT_ALONE_S, reason, f"it failed {self._failures} times in a row")

    def asks_for(self, pause_s: float) -> None:
        """Its Retry-After, in seconds."""
        self.pace.hold(pause_s)
        if pause_s > MAX_PAUSE_S:
            self._close(pause_s, Reason.SERVER_BUSY, f"it asks for a pause of {pause_s:.0f} s")

    def check(self) -> None:
        """Raise Failed while it is left alone: transient, as it may be asked in another run."""
        if _now() < self._closed_until:
            reason, why = self._why
            raise Failed(reason, f"{self._name[:DETAIL_CHARS]} is left alone for now: {why}", again=False)

    def _close(self, pause_s: float, reason: Reason, why: str) -> None:
        self._closed_until = max(self._closed_until, _now() + pause_s)
        self._why = (reason, why)


def retry_after_s(value: str) -> float:
    """Seconds of a Retry-After header: a number or a date (RFC 9110, section 10.2.3); 1 for what is neither, or past."""
    text = value.strip()
    if text.isascii() and text.isdigit():
        return min(max(float(text), 1.0), _MAX_LEFT_ALONE_S)  # float("9" * 400) is infinite
    try:
        pause_s = parsedate_to_datetime(text).timestamp() - time()
    except (ValueError, TypeError, OverflowError, OSError):
        return 1.0
    return min(max(pause_s, 1.0), _MAX_LEFT_ALONE_S) if math.isfinite(pause_s) else 1.0


def _now() -> float:
    return asyncio.get_running_loop().time()
