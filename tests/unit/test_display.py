"""Progress lines of a step where there is no terminal."""

import pytest

from tasks.display import step_display
from tasks.pace import Pace


def test_what_nobody_knows_the_end_of_is_told_without_one_and_does_not_flood(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with step_display("ingest") as show:
        for done in (1000, 2000, 3000):
            show({"event": "progress", "done": done, "total": 0, "unit": "objects listed"})
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("ingest: 1,000 objects listed") and "left" not in said[0]


def rates(*counts: tuple[float, int, int]) -> list[float]:
    """Of (seconds, done, total)."""
    pace = Pace()
    return [pace.of({"done": done, "total": total, "unit": "pictures"}, now) for now, done, total in counts]


def test_a_rate_is_known_from_the_second_count_on() -> None:
    assert rates((5, 100, 900), (7, 400, 900), (9, 900, 900), (10, 900, 900)) == [0, 150, 200, 160]


@pytest.mark.parametrize("first", [10, 34])  # of fewer, and of more pictures than the set before had
def test_a_second_set_under_the_same_unit_has_a_rate_of_its_own(first: int) -> None:
    assert rates((0, 0, 32), (1, 32, 32), (1000, first, 256), (1001, 256, 256))[2:] == [0, 256 - first]


def test_no_speed_is_told_before_there_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    with step_display("fit") as show:
        show({"event": "progress", "done": 1, "total": 900, "unit": "pictures"})
    assert capsys.readouterr().err == "fit: 1/900 pictures\n"
