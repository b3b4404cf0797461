"""Two processes make one artifact at the same time: one commit, no error, equal content."""

from pathlib import Path

import pytest
from support.object_stores import shared
from support.processes import Driver
from support.tiny import TinyRun, section_of

from tasks.store import Store


def _race(tiny: TinyRun, stage: str, store: Store, spool: Path, env: dict[str, str], racers: int = 2) -> None:
    settings = {"store": store.uri, "spool": str(spool)}
    drivers = [
        Driver(stage, section_of(stage, tiny.config), tiny.inputs(stage), settings, env).start() for _ in range(racers)
    ]
    answers = [driver.finish() for driver in drivers]
    want = tiny.results[stage].ref
    assert [a["ref"]["manifest_sha256"] for a in answers] == [want.manifest_sha256] * racers
    found = store.find(want.step, want.fingerprint)
    assert found is not None and found.sha256 == want.manifest_sha256
    assert store.verify(found) == []
    assert len([k for k in store.artifacts() if k.step == want.step]) == 1
    assert list(spool.glob("*")) == []


@pytest.mark.parametrize(
    "stage", ["ingest", *(pytest.param(stage, marks=pytest.mark.slow) for stage in ("fit", "generate"))]
)
def test_two_processes_race_for_one_artifact(stage: str, tiny_run: TinyRun, tmp_path: Path) -> None:
    store = Store.open(tiny_run.copy(tmp_path / "artifacts", before=stage))
    _race(tiny_run, stage, store, tmp_path / "spool", {})


@pytest.mark.server
def test_two_processes_race_on_s3(tiny_run: TinyRun, tmp_path: Path) -> None:
    server = shared("moto")
    _race(tiny_run, "ingest", server.store(), tmp_path / "spool", server.env())


@pytest.mark.slow
def test_two_processes_race_twenty_times(tiny_run: TinyRun, tmp_path: Path) -> None:
    for n in range(20):
        store = Store.open(tiny_run.copy(tmp_path / f"artifacts-{n}", before="curate"))
        _race(tiny_run, "curate", store, tmp_path / "spool", {})
