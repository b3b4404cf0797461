"""Progress lines of a step where there is no terminal."""

import pytest

from tasks.display import step_display


def test_what_nobody_knows_the_end_of_is_told_without_one_and_does_not_flood(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with step_display("ingest") as show:
        for done in (1000, 2000, 3000):
            show({"event": "progress", "done": done, "total": 0, "unit": "objects listed"})
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("ingest: 1,000 objects listed") and "left" not in said[0]


def test_a_second_set_under_the_same_unit_has_a_rate_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with step_display("fit") as show:
        for done in (100, 400, 900, 900, 10, 60, 60):
            show({"event": "progress", "done": done, "total": 900 if done > 60 else 60, "unit": "pictures"})
    said = capsys.readouterr()
    lines = [line for line in (said.out + said.err).splitlines() if "pictures/s" in line]
    assert lines and not any(" -" in line for line in lines)
