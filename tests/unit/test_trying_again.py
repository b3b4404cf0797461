"""A step that is tried again says why and when; a server that does not come back is named."""

import re
from typing import Any

import httpx
import pytest
from prefect.exceptions import ObjectNotFound

from dalle_model.errors import DataError, ServerLost, StepFailed, StepTimeout, StoreUnreachable
from flows.temporary_server import in_words
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


def failed(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "http://127.0.0.1:4200/api")
    return httpx.HTTPStatusError("", request=request, response=httpx.Response(status))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (httpx.ConnectError("All connection attempts failed"), r"stopped answering \(ConnectError\)"),
        (ObjectNotFound(httpx.ConnectError("")), "does not know this run any more"),
        (failed(503), r"fails \(503\)"),
        (failed(401), r"refuses us \(401\)"),
    ],
)
def test_a_server_that_fails_while_a_flow_runs_is_one_line_with_a_remedy(error: Exception, told: str) -> None:
    """A database that was replaced ended the run with "ObjectNotFound: None"."""
    said = in_words(error, "http://127.0.0.1:4200/api")
    assert said is not None and re.search(told, str(said))
    assert isinstance(said, ServerLost) == isinstance(error, httpx.ConnectError)
    assert in_words(ValueError("another"), "") is None
