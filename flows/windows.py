"""Time windows of a schedule: which one a scheduled run belongs to, and whether it is over.

A worker that was away for a day finds a day of late runs waiting. The window of each begins when it was due; those whose
window is over have nothing to do, because the run of a later window draws the same prompt set. Windows do not begin at
full hours or days: a schedule at 59 minutes past would have its runs over after a minute, and one at half past eleven
in the evening would wait a day for its next.
"""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Window:
    """number: whole windows from 1970, UTC, to when the run was due. behind: windows that are over since; 0 = none."""

    number: int
    behind: int


def window_of(due: datetime, now: datetime, minutes: int) -> Window:
    """The window of a run that was due at ``due``; both times with a time zone, ``minutes`` the length of a window."""
    length_s = 60 * minutes
    late_s = (now - due).total_seconds()
    return Window(int(due.timestamp() // length_s), max(0, int(late_s // length_s)))
