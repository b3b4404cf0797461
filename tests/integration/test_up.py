"""``dalle up`` and ``dalle deploy``: what they start, what they say when they cannot, and that nothing of them stays."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from support.prefect_server import Up
from support.processes import DALLE, LONG_S, closed_port, command_of, free_port, wait_for
from support.tiny import TinyRun, tiny_config

pytestmark = pytest.mark.server

DEPLOYMENTS = {
    "pipeline/quickstart",
    "pipeline/tiny",
    "ingest/ingest",
    "curate/curate",
    "fit-tokenizer/fit-tokenizer",
    "encode/encode",
    "fit/fit",
    "evaluate/evaluate",
    "generate/generate",
    "generate/scheduled",
    "update/update",
}


def dalle(*arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return subprocess.run(
        [*DALLE, *arguments], env=os.environ | env, capture_output=True, text=True, timeout=LONG_S, check=False
    )


@pytest.mark.timeout(1500)  # it may be alone, and then waits for server and worker
def test_up_serves_all_deployments_restarts_its_worker_and_leaves_no_process_on_ctrl_c(
    machine_to_stop: Up, tiny_run: TinyRun
) -> None:
    up = machine_to_stop
    assert up.url in up.output()
    assert all(name in up.output() for name in DEPLOYMENTS)
    assert up.get("/ui-settings")["api_url"] == "/api"
    schedule = up.deployment("generate/scheduled")
    assert [s["active"] for s in schedule["schedules"]] == [True]
    assert schedule["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    automation = up.api("/automations/filter", {})
    assert sorted((a["enabled"], a["trigger"]["within"]) for a in automation) == [(True, 90), (True, 600)]

    found = dalle("doctor", "--store", str(up.store), PREFECT_HOME=str(up.home))
    assert f"API {up.url}/api" in found.stdout, "other commands do not find the running server"

    (worker,) = _prefect(up, "worker")
    assert worker.environ()["PREFECT_WORKER_QUERY_SECONDS"] == "2", "a person waits for a submitted run"
    worker.kill()
    assert wait_for(lambda: _prefect(up, "worker") not in ([], [worker]), 300, every_s=0.2), up.output()
    assert "starting it again" in up.output()

    tiny_run.copy(up.store, before="fit-tokenizer")
    config = tiny_config("tokenizer.steps=100000").tokenizer.model_dump(mode="json")
    run = up.submit(
        "fit-tokenizer/fit-tokenizer", {"curated": tiny_run.results["curate"].ref.fingerprint, "config": config}
    )
    up.wait_run(run, lambda _: bool(up.step_processes()))

    again = dalle("up", "--port", str(free_port()), "--home", str(up.home))
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    assert f"already running: {up.url}" in again.stderr

    assert up.stop(signal.SIGINT) == 0, up.output()
    assert up.output().rstrip().endswith("stopped")
    assert up.left_behind == []


def test_up_killed_with_9_leaves_no_process(tmp_path: Path) -> None:
    up = Up(tmp_path / "up").start()
    try:
        assert wait_for(lambda: len(up.processes()) >= 2, 300, every_s=0.2)
        assert up.process is not None
        up.process.kill()
        assert wait_for(lambda: not up.processes(), 200, every_s=0.2), up.processes()
    finally:
        up.stop()


@pytest.mark.slow
def test_a_run_whose_processes_all_died_is_marked_crashed_and_can_go_on(tmp_path: Path, tiny_run: TinyRun) -> None:
    up = Up(tmp_path / "up")
    tiny_run.copy(up.store, before="fit-tokenizer")
    config = tiny_config("tokenizer.steps=100000").tokenizer.model_dump(mode="json")
    parameters = {"curated": tiny_run.results["curate"].ref.fingerprint, "config": config}
    up.start()
    try:
        up.wait_ready()
        run = up.submit("fit-tokenizer/fit-tokenizer", parameters)
        up.wait_run(run, lambda _: bool(up.step_processes()))
        time.sleep(35)  # the first heartbeat is sent after 30 s
        for process in [*_prefect(up, "worker"), *up.flow_processes()]:
            process.kill()
        assert up.run(run)["state_type"] == "RUNNING"
        assert up.wait_run(run, within_s=180)["state_type"] == "CRASHED"
        assert "no heartbeat for 90 s" in up.run(run)["state"]["message"]
        again = up.submit("fit-tokenizer/fit-tokenizer", parameters)
        up.wait_run(again, lambda _: "goes on from the checkpoint" in up.log_of(again))
    finally:
        up.stop()


@pytest.mark.parametrize("command", ["up", "deploy"])
def test_what_stands_in_the_way_is_named_in_one_line(tmp_path: Path, command: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        if command == "up":
            ended = dalle("up", "--port", port, "--home", str(tmp_path / "home"))
            told = (port, "--port")
        else:
            with closed_port() as closed:
                ended = dalle("deploy", PREFECT_API_URL=f"http://127.0.0.1:{closed}/api")
            told = ("does not answer", "dalle up")
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert all(words in ended.stderr for words in told), ended.stderr


def test_deploy_without_an_api_says_how_to_get_one(tmp_path: Path) -> None:
    ended = dalle("deploy", PREFECT_HOME=str(tmp_path))
    assert ended.returncode == 1
    assert "dalle up" in ended.stderr
    assert "PREFECT_API_URL" in ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr


def test_a_damaged_database_is_named_in_one_line_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "prefect.db").write_bytes(b"this is no database" * 100)
    ended = dalle(
        "run", "tiny", "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out"), PREFECT_HOME=str(tmp_path)
    )
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert "prefect.db is damaged" in ended.stderr


def _prefect(up: Up, what: str) -> list[psutil.Process]:
    """The processes of ``prefect WHAT start``."""
    return [p for p in up.processes() if {"flows.guarded", what} <= set(command_of(p))]
