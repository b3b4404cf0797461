"""Stopping really stops: no process of the step is left, the spool is clean, a checkpoint is saved, a later run goes on."""

import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.in_process import steps_in_this_process
from support.processes import DALLE, Driver, marked, marked_environment, wait_for
from support.tiny import TinyRun, command_sets, section_of, tiny_config

from dalle_model.errors import StepFailed, StepTimeout
from tasks.settings import Settings
from tasks.stages import STAGES
from tasks.step import plan, run_step
from tasks.store import Store

LONG = ("train.steps=100000", "train.checkpoint_every=100000", "train.log_every=1")


@pytest.fixture
def place(tiny_run: TinyRun, tmp_path: Path) -> Store:
    """A store that lacks only what ``fit`` and later stages make."""
    return Store.open(tiny_run.copy(tmp_path / "artifacts", before="fit"))


def _fit(store: Store, spool: Path, *sets: str, **settings: Any) -> tuple[Any, Settings]:
    config = section_of("fit", tiny_config(*sets))
    return config, Settings(store=store.uri, spool=spool, **settings)


def _checkpoints(tiny: TinyRun, store: Store, config: Any, settings: Settings) -> list[int]:
    planned = plan(STAGES["fit"], config, tiny.inputs("fit"), settings)
    return sorted(store.parts(planned.fingerprint))


def _nothing_left(spool: Path, mark: str) -> None:
    assert wait_for(lambda: not marked(mark), 30), f"still running: {marked(mark)}"
    assert list(spool.glob("*")) == []


def _when(event: str, act: Callable[[], None]) -> Callable[[dict[str, Any]], None]:
    acted = threading.Event()

    def listen(happened: dict[str, Any]) -> None:
        if happened["event"] == event and not acted.is_set():
            acted.set()
            act()

    return listen


def test_a_deadline_saves_a_checkpoint_and_leaves_no_process(
    tiny_run: TinyRun, place: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = uuid.uuid4().hex
    monkeypatch.setenv("DALLE_TEST_MARK", mark)
    spool = tmp_path / "spool"
    config, settings = _fit(place, spool, *LONG)
    started = threading.Event()
    # The deadline counts from the start of the child, whose imports take from one to thirty seconds here.
    for deadline_s in (6.0, 30.0, 120.0):
        with pytest.raises(
            StepTimeout, match=rf"passed its deadline of {deadline_s:.0f} s; finished pieces are kept"
        ) as late:
            listen = _when("progress", started.set)
            run_step(
                STAGES["fit"],
                config,
                tiny_run.inputs("fit"),
                settings.model_copy(update={"deadline_s": deadline_s}),
                listen,
            )
        assert [p for p in marked(mark) if p.pid != os.getpid()] == []
        assert list(spool.glob("*")) == []
        if started.is_set():
            break
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
    env = marked_environment(mark, DALLE_SPOOL=str(spool))
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
    assert process.wait(60) == 130, seen
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


def test_a_worker_that_ignores_the_request_is_killed_with_all_it_started(tmp_path: Path) -> None:
    """SIGTERM is ignored by a child and its own child in another session; both are gone after the grace."""
    from tasks.launch import stop_group

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
    stop_group(process, grace_s=0.3)
    process.stdout.close()
    assert wait_for(lambda: not marked(mark), 5), marked(mark)


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
    assert wait_for(lambda: len(driver.processes()) >= wanted and (stage == "fit" or parts.exists()), 120)
    driver.kill("parent")
    assert driver.gone(within_s=15) == []


def test_silence_is_noticed(tiny_run: TinyRun, place: Store, tmp_path: Path) -> None:
    """A worker that was stopped (as by a debugger or a dead network disk) is ended after ``silence_s``."""
    config, settings = _fit(place, tmp_path / "spool", *LONG, silence_s=60.0, grace_s=0.5)
    mark = uuid.uuid4().hex
    os.environ["DALLE_TEST_MARK"] = mark
    try:

        def freeze() -> None:
            for process in marked(mark):
                if process.pid != os.getpid() and "tasks.worker" in process.cmdline():
                    process.suspend()

        short = settings.model_copy(update={"silence_s": 3.0})
        with pytest.raises(StepFailed, match="gave no sign of life for 3 s") as silent:
            run_step(STAGES["fit"], config, tiny_run.inputs("fit"), short, _when("alive", freeze))
        assert "most recent call first" in silent.value.__notes__[0]
        assert [p for p in marked(mark) if p.pid != os.getpid()] == []
    finally:
        del os.environ["DALLE_TEST_MARK"]
