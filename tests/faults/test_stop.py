"""Stopping really stops: no process of the step is left, the spool is clean, a checkpoint is saved, a later run goes on."""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.in_process import steps_in_this_process
from support.processes import DALLE, LONG_S, Driver, marked, marked_environment, wait_for
from support.tiny import TinyRun, command_sets, section_of, tiny_config

from dalle_model.errors import StepFailed, StepTimeout
from tasks import launch
from tasks.settings import Settings
from tasks.stages import STAGES
from tasks.step import plan, run_step
from tasks.store import Store

GRACE_S = 200.0  # on a crowded machine an update, the samples after it and a checkpoint have taken half a minute
LONG = ("train.steps=100000", "train.checkpoint_every=100000", "train.log_every=1")


@pytest.fixture
def place(tiny_run: TinyRun, tmp_path: Path) -> Store:
    """A store that lacks only what ``fit`` and later stages make."""
    return Store.open(tiny_run.copy(tmp_path / "artifacts", before="fit"))


def _fit(store: Store, spool: Path, *sets: str, **settings: Any) -> tuple[Any, Settings]:
    config = section_of("fit", tiny_config(*sets))
    return config, Settings(**{"store": store.uri, "spool": spool, "grace_s": GRACE_S} | settings)


def _checkpoints(tiny: TinyRun, store: Store, config: Any, settings: Settings) -> list[int]:
    planned = plan(STAGES["fit"], config, tiny.inputs("fit"), settings)
    return sorted(store.parts(planned.fingerprint))


def _nothing_left(spool: Path, mark: str) -> None:
    assert wait_for(lambda: not marked(mark), 120), f"still running: {marked(mark)}"
    assert list(spool.glob("*")) == []


def _when(event: str, act: Callable[[], None]) -> Callable[[dict[str, Any]], None]:
    acted = threading.Event()

    def listen(happened: dict[str, Any]) -> None:
        if happened["event"] == event and not acted.is_set():
            acted.set()
            act()

    return listen


class Clock:
    """The clock of the launcher, which runs ten thousand times as fast from the moment that a test chooses.

    A limit of an hour then passes in less than a second, and not before: the start of a process takes from one second
    to a minute, depending on what else the machine does.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._gained = 0.0
        self.sleep = time.sleep

    def hurry(self) -> None:
        self._since = time.monotonic()

    def calm(self) -> None:
        self._gained, self._since = self.monotonic() - time.monotonic(), None

    def monotonic(self) -> float:
        now = time.monotonic()
        return now + self._gained + (0.0 if self._since is None else 10_000 * (now - self._since))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made, dump = Clock(), launch._dump_stacks

    def calmly(*words: Any) -> None:
        made.calm()
        dump(*words)

    monkeypatch.setattr(launch, "time", made)
    monkeypatch.setattr(launch, "_dump_stacks", calmly)  # the limit is passed; what follows has limits of its own
    return made


def test_a_deadline_saves_a_checkpoint_and_leaves_no_process(
    tiny_run: TinyRun, place: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    mark = uuid.uuid4().hex
    monkeypatch.setenv("DALLE_TEST_MARK", mark)
    spool = tmp_path / "spool"
    config, settings = _fit(place, spool, *LONG, deadline_s=3600.0, silence_s=1e9)
    with pytest.raises(StepTimeout, match=r"passed its deadline of 3600 s; finished pieces are kept") as late:
        run_step(STAGES["fit"], config, tiny_run.inputs("fit"), settings, _when("progress", clock.hurry))
    assert [p for p in marked(mark) if p.pid != os.getpid()] == []
    assert list(spool.glob("*")) == []
    assert "in train" in late.value.__notes__[0], "the error does not tell where the step was"
    saved = _checkpoints(tiny_run, place, config, settings)
    assert len(saved) >= 1, "SIGTERM came to a training that saved nothing"
    assert place.find("fit", plan(STAGES["fit"], config, tiny_run.inputs("fit"), settings).fingerprint) is None


# By default test_killed_command stops a whole run with SIGTERM.
@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT])
def test_a_stopped_command_saves_a_checkpoint_and_the_next_run_goes_on(
    tiny_run: TinyRun, place: Store, tmp_path: Path, number: signal.Signals
) -> None:
    spool, mark = tmp_path / "spool", uuid.uuid4().hex
    sets = LONG
    command = [
        *DALLE,
        "fit",
        tiny_run.results["encode"].ref.fingerprint,
        "--preset",
        "tiny",
        "--store",
        place.uri,
        *command_sets(*sets),
    ]
    env = marked_environment(mark, DALLE_SPOOL=str(spool), DALLE_GRACE_S=str(GRACE_S))
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if "/100,000 steps" in line or "/100000 steps" in line:
            process.send_signal(number)
            break
    seen += process.stderr.read()
    assert process.wait(LONG_S) == 130, seen
    assert seen.splitlines()[-1] == "interrupted; run the same command again to go on"
    assert "Traceback" not in seen
    _nothing_left(spool, mark)
    config, settings = _fit(place, spool, *sets)
    saved = _checkpoints(tiny_run, place, config, settings)
    assert len(saved) == 1 and 0 < saved[0] < 100000, saved

    def until_it_goes_on(event: dict[str, Any]) -> None:
        if f"goes on from the checkpoint at step {saved[0]} of 100000" in event.get("text", ""):
            raise KeyboardInterrupt
        assert event["event"] != "progress", "it began anew"

    with pytest.raises(KeyboardInterrupt), steps_in_this_process():
        run_step(STAGES["fit"], config, tiny_run.inputs("fit"), settings, until_it_goes_on)


def test_a_worker_that_ignores_the_request_is_killed_with_all_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM is ignored by a child and its own child in another session; both are gone after the grace."""
    mark = uuid.uuid4().hex
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    nested = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {stubborn!r}], start_new_session=True); exec({stubborn!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", nested],
        env=marked_environment(mark),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["up\n"] * 2
    lives, looks = launch.lives, []

    def lingers(process: psutil.Process) -> bool:  # as one does that the kernel has yet to take down
        looks.append(len(looks) < 3 or lives(process))
        return looks[-1]

    monkeypatch.setattr(launch, "lives", lingers)
    launch.stop_group(process, grace_s=0.3)
    assert looks[:3] == [True] * 3 and looks[-1] is False
    process.stdout.close()
    assert marked(mark) == []


@pytest.mark.parametrize("stage", ["ingest", "fit"])
def test_a_worker_ends_when_its_parent_is_killed(stage: str, tiny_run: TinyRun, tmp_path: Path) -> None:
    store = tiny_run.copy(tmp_path / "artifacts", before=stage)
    sets = LONG if stage == "fit" else ("ingest.limit=4000",)
    driver = Driver(
        stage,
        section_of(stage, tiny_config(*sets)),
        tiny_run.inputs(stage),
        {"store": str(store), "spool": str(tmp_path / "spool")},
    )
    driver.start()
    parts = store / "parts"
    wanted = 3 if stage == "ingest" else 2  # processes: the driver and the worker, and decoders of the worker
    assert wait_for(lambda: len(driver.processes()) >= wanted and (stage == "fit" or parts.exists()), LONG_S)
    assert driver.running
    driver.kill("parent")
    assert driver.gone() == []


def test_silence_is_noticed(
    tiny_run: TinyRun, place: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """A worker that was stopped (as by a debugger or a dead network disk) is ended after ``silence_s``."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv("DALLE_TEST_MARK", mark)
    config, settings = _fit(place, tmp_path / "spool", *LONG, silence_s=900.0, grace_s=0.5)

    def freeze() -> None:
        for process in marked(mark):
            if process.pid != os.getpid() and "tasks.worker" in process.cmdline():
                process.suspend()
        clock.hurry()

    with pytest.raises(StepFailed, match="gave no sign of life for 900 s") as silent:
        run_step(STAGES["fit"], config, tiny_run.inputs("fit"), settings, _when("alive", freeze))
    assert "most recent call first" in silent.value.__notes__[0]
    assert [p for p in marked(mark) if p.pid != os.getpid()] == []
