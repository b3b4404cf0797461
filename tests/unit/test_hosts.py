"""How a host is treated that asks for pauses, or fails again and again."""

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from dalle_model.decoding import Reason
from dalle_model.sources.fetch_failures import Failed
from dalle_model.sources.hosts import Host, Pace, retry_after_s


@pytest.mark.parametrize(
    ("value", "least_s", "most_s"),
    [
        ("", 1, 1), ("soon", 1, 1), ("-5", 1, 1), ("0", 1, 1), ("1.5", 1, 1), ("nan", 1, 1), ("\u00b2", 1, 1),
        ("7", 7, 7), (" 7 ", 7, 7), ("1000000000", 86_400, 86_400), ("9" * 5000, 86_400, 86_400),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 1, 1), ("Wed, 21 Oct 2099 07:28:00 GMT", 86_400, 86_400),
        ("Wed, 99 Oct 2099 07:28:00 GMT", 1, 1), ("Sunday, 06-Nov-94 08:49:37 GMT", 1, 1),
    ],
)  # fmt: skip
def test_pauses_are_read_as_they_are_meant_and_never_longer_than_a_day(
    value: str, least_s: float, most_s: float
) -> None:
    assert least_s <= retry_after_s(value) <= most_s


def test_a_date_is_a_pause_until_then() -> None:
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 1 <= retry_after_s(in_a_minute) <= 60


def test_a_host_that_goes_on_failing_is_left_alone_and_one_that_works_again_is_not() -> None:
    async def play() -> None:
        host = Host("x.example", 1000)
        for _ in range(31):
            host.failed(Reason.FETCH_TIMEOUT)
        host.check()
        host.worked()
        host.failed(Reason.FETCH_TIMEOUT)
        host.check()
        for _ in range(31):
            host.failed(Reason.FETCH_TIMEOUT)
        with pytest.raises(Failed, match=r"x\.example is left alone for now: it failed 32 times in a row") as raised:
            host.check()
        assert raised.value.refused.reason == Reason.FETCH_TIMEOUT
        assert not raised.value.again
        other = Host("y.example", 1000)
        other.asks_for(30)
        other.check()
        other.asks_for(31)
        with pytest.raises(Failed, match="it asks for a pause of 31 s"):
            other.check()

    asyncio.run(play())


class Instant(asyncio.SelectorEventLoop):
    """A loop on whose clock nothing takes time but waiting, and on which waiting takes none."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        select = self._selector.select  # type: ignore[attr-defined]

        def at_once(timeout: float | None) -> Any:
            self._now += timeout or 0.0
            return select(0)

        self._selector.select = at_once  # type: ignore[attr-defined]

    def time(self) -> float:
        return self._now


def test_a_pause_counts_for_those_who_wait_already() -> None:
    async def play() -> list[float]:
        pace, now = Pace(10), asyncio.get_running_loop().time
        pace.ask(0.05)  # no interval longer than the own: nothing changes
        for _ in range(10):
            await pace.wait()  # the burst of a rest

        async def waited() -> float:
            await pace.wait()
            return now() - started

        waiting, started = [asyncio.create_task(waited()) for _ in range(3)], now()
        await asyncio.sleep(0)
        pace.hold(0.4)
        return await asyncio.gather(*waiting)

    with asyncio.Runner(loop_factory=Instant) as runner:
        assert runner.run(play()) == pytest.approx([0.4, 0.5, 0.6]), "a pause, and then the intervals of a tenth"
