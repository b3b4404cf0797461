"""The chain on S3: the same artifacts as on a folder, on a strict server and on one that is killed in between."""

from pathlib import Path

import pytest
from support.fault_proxy import FaultProxy
from support.in_process import steps_in_this_process
from support.object_stores import Server, rclone, shared
from support.processes import LONG_S, Driver, wait_for
from support.tiny import ORDER, TinyRun, section_of

from tasks.settings import Settings
from tasks.stages import STAGES
from tasks.step import run_step
from tasks.store import Store

pytestmark = pytest.mark.server


def _run(tiny: TinyRun, stage: str, server: Server, uri: str, spool: Path) -> dict[str, object]:
    settings = {"store": uri, "spool": str(spool)}
    # The inputs name the folder they were made in; on S3 the same fingerprints are looked up in the store at hand.
    answer = Driver(stage, section_of(stage, tiny.config), tiny.inputs(stage), settings, server.env()).start().finish()
    assert answer["ref"]["uri"].startswith(uri)
    return answer


def _compare(tiny: TinyRun, store: Store, stages: tuple[str, ...]) -> None:
    assert sorted(k.step for k in store.artifacts()) == sorted(stages)
    for stage in stages:
        want = tiny.manifest(stage)
        found = store.find(want.step, want.fingerprint)
        assert found is not None and found.sha256 == want.sha256, stage
        assert store.verify(found) == []


def test_the_whole_chain_on_a_strict_server_makes_what_a_folder_has(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step and one with checkpoints in processes of their own, as in a run; the others in this one."""
    server = shared("moto")
    uri, spool = server.uri(), tmp_path / "spool"
    for name, value in server.env().items():
        monkeypatch.setenv(name, value)
    for stage in ORDER:
        if stage in ("ingest", "fit"):
            assert _run(tiny_run, stage, server, uri, spool)["reused"] is False
            continue
        with steps_in_this_process():
            section, settings = (
                section_of(stage, tiny_run.config),
                Settings(store=uri, spool=spool, endpoint_url=server.url),
            )
            assert run_step(STAGES[stage], section, tiny_run.inputs(stage), settings).reused is False
    _compare(tiny_run, server.store(uri), ORDER)
    assert _run(tiny_run, "fit", server, uri, spool)["reused"] is True
    assert list(spool.iterdir()) == []


def test_a_server_that_is_killed_and_started_again_keeps_what_is_finished(tiny_run: TinyRun, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    with rclone() as server:
        uri = server.uri()
        _run(tiny_run, "ingest", server, uri, spool)
        server.kill()
        server.start()
        said = _run(tiny_run, "ingest", server, uri, spool)
        assert said["reused"] is True
        log = _run(tiny_run, "curate", server, uri, spool)["log"]
        assert "ignores create-only writes: run one writer at a time" in "\n".join(log)  # type: ignore[arg-type]
        _compare(tiny_run, server.store(uri), ("ingest", "curate"))


def test_a_server_that_is_away_for_a_while_is_waited_for(tiny_run: TinyRun, tmp_path: Path) -> None:
    """Killed while a step works, back seconds later: the step ends as if nothing had been."""
    spool = tmp_path / "spool"
    with rclone() as server, FaultProxy(server.port) as proxy:
        store = server.store()
        proxy.add("503", method="PUT", key="/manifests/")  # it cannot end before the server was away
        env = server.env() | {"AWS_ENDPOINT_URL": proxy.url}
        settings = {"store": store.uri, "spool": str(spool)}
        driver = Driver("ingest", section_of("ingest", tiny_run.config), {}, settings, env).start()
        assert wait_for(lambda: store.keys("parts/") or not driver.running, LONG_S) and driver.running
        server.kill()
        proxy.clear()
        cut = len(proxy.seen)
        assert wait_for(lambda: any(seen.status == 0 for seen in proxy.seen[cut:]), LONG_S), "nobody missed the server"
        server.start()
        answer = driver.finish()
        assert answer["ref"]["manifest_sha256"] == tiny_run.results["ingest"].ref.manifest_sha256
