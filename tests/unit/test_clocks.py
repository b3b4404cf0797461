"""Clocks that are set while something runs, and clocks of two machines that differ."""

import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from support.object_stores import artifact

from tasks import launch, sweep
from tasks.store import Store


@pytest.mark.skipif(not psutil.LINUX, reason="only there is the start of a process told by the wall clock")
def test_a_step_outlives_a_wall_clock_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its child took the parent for another process and killed itself: "killed by signal 9 (out of memory?)"."""
    parent = psutil.Process()
    born = parent.create_time()
    boot_time = psutil.boot_time()
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: boot_time + 3600)
    assert psutil.Process().create_time() > born + 3000, "the clock was not set"
    assert launch.lives(parent)


def test_a_sweep_asks_the_store_what_time_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine whose clock was two days ahead it removed the objects of steps that were at work."""
    store = Store.open(tmp_path)
    artifact(store)
    monkeypatch.setattr(sweep, "time", SimpleNamespace(time=lambda: time.time() + 2 * 86_400))
    assert store.sweep().removed == ()
    assert store.keys("probe/") == []
