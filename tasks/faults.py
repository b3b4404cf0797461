"""Named places where a process can be made to die, so that fault tests hit the moments that matter."""

import os
import signal
from collections import Counter

_hits: Counter[str] = Counter()


def fault_point(name: str) -> None:
    """Die here as if the power failed when DALLE_FAULT is ``name`` or ``name:k`` (the k-th passage)."""
    wanted, _, count = os.environ.get("DALLE_FAULT", "").partition(":")
    if wanted != name:
        return
    _hits[name] += 1
    if _hits[name] >= int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)
