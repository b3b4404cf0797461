"""Progress lines of a step where there is no terminal."""

import pytest

from tasks.display import step_display


def test_a_second_set_under_the_same_unit_has_a_rate_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with step_display("fit") as show:
        for done in (100, 400, 900, 900, 10, 60, 60):
            show({"event": "progress", "done": done, "total": 900 if done > 60 else 60, "unit": "pictures"})
    said = capsys.readouterr()
    lines = [line for line in (said.out + said.err).splitlines() if "pictures/s" in line]
    assert lines and not any(" -" in line for line in lines)
