"""A server that hangs is named once, and once more when it answers again."""

import threading

import pytest

from flows import prefect_home, server_watch, temporary_server
from flows.server_watch import Silence, leave_if_unheard, watched


def test_a_silence_of_a_minute_is_told_once_and_its_end_once() -> None:
    silence = Silence("http://server/api", "wait")
    told = [silence.heard(answered, now) for now, answered in ((0, True), (20, False), (79, False))]
    assert told == ["", "", ""], "it may only be slow"
    assert silence.heard(False, 85) == "Prefect's server http://server/api has not answered for 65 s; wait"
    assert silence.heard(False, 300) == ""
    assert silence.heard(True, 320) == "Prefect's server http://server/api answers again"
    assert silence.heard(True, 340) == ""
    # The next silence counts from its own begin, and a short one between answers is never told.
    assert [silence.heard(False, 360), silence.heard(True, 380), silence.heard(False, 420)] == ["", "", ""]
    assert silence.heard(False, 479) == "" and "for 60 s" in silence.heard(False, 480)


def test_the_server_is_asked_while_the_block_lasts_and_not_after_it() -> None:
    asked = threading.Semaphore(0)
    said: list[str] = []

    def healthy(url: str, timeout_s: float) -> bool:
        asked.release()
        return False

    with watched("http://server/api", "wait", say=said.append, healthy=healthy, every_s=0.001):
        assert all(asked.acquire(timeout=30) for _ in range(3))
        (thread,) = [t for t in threading.enumerate() if t.name == "server-watch"]
    thread.join(30)
    assert not thread.is_alive() and said == []


def test_a_command_watches_the_api_that_its_flows_use(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://127.0.0.1:1/api"
    monkeypatch.setenv("PREFECT_API_URL", url)
    monkeypatch.setattr(temporary_server, "_planned", [])
    monkeypatch.setattr(prefect_home, "is_healthy", lambda url, timeout_s: True)
    with temporary_server.prefect_api() as used:
        assert used == url and "server-watch" in {t.name for t in threading.enumerate()}


def test_an_interrupted_command_leaves_a_server_that_hangs_once_its_step_has_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_watch, "_used", [])
    left = threading.Event()
    leave_if_unheard(left.set, healthy=lambda url, wait_s: False, working=lambda: False, every_s=0.0)
    assert "server-unheard" not in {t.name for t in threading.enumerate()}, "no server was used"

    monkeypatch.setattr(server_watch, "_used", ["http://server/api"])
    at_work, answers, asked = [True, True, False, False, False, False, False], [False, True, False, False], []

    def working() -> bool:
        assert not left.is_set()
        return at_work.pop(0)

    def healthy(url: str, wait_s: float) -> bool:
        asked.append(url)
        return answers.pop(0)

    leave_if_unheard(left.set, healthy=healthy, working=working, every_s=0.0)
    assert left.wait(30)
    # Twice the step was at work; then an answer was missed, one came, and two were missed in a row.
    assert (len(at_work), answers, asked) == (1, [], ["http://server/api"] * 4)
