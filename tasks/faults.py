"""Named places where a process can be made to die, so that fault tests hit the moments that matter."""

import os
import signal
from collections import Counter

_hits: Counter[str] = Counter()


def fault_point(name: str) -> None:
    """Die here as if the power failed when DALLE_FAULT is ``name`` or ``name:k`` (the k-th passage).

    ``name:k:wait`` waits here for a signal instead, so that a test's own signal finds the process at this moment.
    """
    wanted, _, when = os.environ.get("DALLE_FAULT", "").partition(":")
    if wanted != name:
        return
    count, _, what = when.partition(":")
    _hits[name] += 1
    if _hits[name] < int(count or 1):
        return
    if what == "wait":
        signal.pause()
    else:
        os.kill(os.getpid(), signal.SIGKILL)
