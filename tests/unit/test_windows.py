"""Which time window a scheduled run belongs to."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

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
