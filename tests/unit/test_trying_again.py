"""A step that is tried again says why and when."""

from typing import Any

import pytest

from dalle_model.errors import DataError, StepFailed, StepTimeout, StoreUnreachable
from tasks.prefect_tasks import fit, say_again


@pytest.mark.parametrize(
    ("error", "tries", "said"),
    [
        (StepFailed("killed"), 1, ["killed; trying again in 5 s"]),
        (StoreUnreachable("silent", again="; run it again"), 1, ["silent; trying again in 5 s"]),
        (OSError("unforeseen"), 2, ["unforeseen; trying again in 30 s"]),
        (StepFailed("killed"), 3, []),
        (StepTimeout("late"), 1, []),
        (DataError("wrong"), 1, []),
    ],
)
def test_why_and_when(error: Exception, tries: int, said: list[str]) -> None:
    events: list[dict[str, Any]] = []
    say_again(error, tries, events.append)
    assert [event["text"] for event in events] == said


def test_what_is_said_is_what_prefect_does() -> None:
    task: Any = fit
    assert (task.retries, task.retry_delay_seconds) == (2, [5, 30])
