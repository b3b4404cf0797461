"""How fast a stage gets on, from the counts it tells."""

from collections.abc import Mapping
from typing import Any


class Pace:
    """Rates by unit. A stage may count several sets under one unit, one after the other."""

    def __init__(self) -> None:
        self._sets: dict[str, tuple[float, int, int, bool]] = {}  # begun when and where, how far it is, whether whole

    def of(self, event: Mapping[str, Any], now: float) -> float:
        """Units per second of the set that a progress event counts, 0.0 when it has only begun; ``now`` in seconds."""
        unit, done, total = str(event.get("unit", "rows")), int(event["done"]), int(event["total"])
        started, offset, before, whole = self._sets.get(unit, (now, done, done, False))
        if done < before or (whole and done > before):
            started, offset = now, done
        self._sets[unit] = (started, offset, done, done >= total > 0)
        return (done - offset) / (now - started) if now > started else 0.0
