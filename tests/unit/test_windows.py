"""Which time window a scheduled run belongs to."""

from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pytest

from flows import generation
from flows.windows import Window, window_of

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("late", "behind"),
    [(timedelta(0), 0), (timedelta(minutes=59, seconds=59), 0), (timedelta(hours=1), 1), (timedelta(hours=5), 5)],
)
def test_a_run_is_stale_once_the_next_window_has_begun(late: timedelta, behind: int) -> None:
    assert window_of(NOON, NOON + late, 60).behind == behind


def test_of_late_runs_exactly_the_one_of_the_present_window_draws() -> None:
    due = [NOON - timedelta(hours=h) for h in range(24)]
    assert [window_of(d, NOON + timedelta(minutes=10), 60).behind == 0 for d in due] == [True] + [False] * 23


def test_the_same_moment_is_the_same_window_in_every_time_zone() -> None:
    elsewhere = NOON.astimezone(timezone(timedelta(hours=-7)))
    assert window_of(elsewhere, NOON, 30) == window_of(NOON, NOON, 30)


def test_a_run_before_its_time_is_not_stale() -> None:
    assert window_of(NOON + timedelta(minutes=90), NOON, 60) == Window(int(NOON.timestamp()) // 3600 + 1, 0)


@pytest.mark.parametrize("minute", [0, 7, 59])
def test_a_run_that_is_a_little_late_draws_wherever_in_the_hour_it_was_due(minute: int) -> None:
    """A schedule at 59 minutes past never drew where its runs began a minute late."""
    due = NOON + timedelta(minutes=minute)
    assert window_of(due, due + timedelta(minutes=5), 60).behind == 0
    assert window_of(due, due + timedelta(minutes=60), 60).behind == 1


def test_a_daily_run_is_not_over_because_the_clocks_are_set_back() -> None:
    """At 01:30 in Berlin, 25 hours lie between two runs in October: the one before is over when the next is due."""
    due = datetime(2026, 10, 25, 1, 30, tzinfo=ZoneInfo("Europe/Berlin"))
    late = datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1)
    assert window_of(due.astimezone(UTC), late.astimezone(UTC), 24 * 60).behind == 0


def test_a_run_is_late_by_the_servers_clock_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """NOON is over: by the clock of this machine, as on a worker whose clock is ahead, the run is windows late."""
    state = SimpleNamespace(timestamp=NOON + timedelta(minutes=1))
    run = SimpleNamespace(expected_start_time=NOON, auto_scheduled=True, state=state)
    monkeypatch.setattr(generation, "get_run_context", lambda: SimpleNamespace(flow_run=run))
    monkeypatch.setattr(
        generation, "datetime", SimpleNamespace(now=lambda zone: (NOON + timedelta(hours=2)).astimezone(zone))
    )
    assert generation._window(60) == Window(int(NOON.timestamp()) // 3600, 0)
    state.timestamp += timedelta(hours=1)
    assert generation._window(60) == Window(int(NOON.timestamp()) // 3600, 1)
