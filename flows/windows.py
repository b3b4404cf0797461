"""Time windows of a schedule: which one a scheduled run belongs to, and whether it is over.

A worker that was away for a day finds a day of late runs waiting. Each belongs to the window in which it was due; those
whose window is over have nothing to do, because the run of the present window draws the same prompt set.
"""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Window:
    """number: windows since 1970, UTC. behind: how many windows have begun since; 0 = it is the present one."""

    number: int
    behind: int


def window_of(due: datetime, now: datetime, minutes: int) -> Window:
    """The window of a run that was due at ``due``; both times with a time zone, ``minutes`` the length of a window."""
    length_s = 60 * minutes
    number = int(due.timestamp() // length_s)
    return Window(number, max(0, int(now.timestamp() // length_s) - number))
