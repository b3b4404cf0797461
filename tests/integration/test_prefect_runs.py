"""Deployments on a real server with a real process worker: the chain, a schedule, cancel, kill, wrong parameters."""

import re
import signal
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_API_URL, temporary_settings
from support.prefect_server import ANSWER_S, Refused, Up
from support.processes import wait_for
from support.tiny import TinyRun, tiny_config

from dalle_model.config import PipelineConfig
from flows.crash_detection import NEVER_STARTED, SILENT, TAG, ask_for_life
from tasks.stages import STAGES
from tasks.store import Store

# The first test waits for server, worker and chain: a minute alone, many when all others run beside them.
pytestmark = [pytest.mark.server, pytest.mark.timeout(1500)]

GONE_S = 300.0  # seconds on a quiet machine; on a crowded one the server alone takes more than a minute to answer
SHOWN = (  # what a person looks at, by artifact key
    "ingest-funnel",
    "ingest-sheet-kept",
    "curate-funnel",
    "curate-sheet-kept",
    "curate-sheet-rejected",
    "fit-tokenizer-curve",
    "fit-tokenizer-sheet-reconstructions",
    "fit-curve",
    "evaluate-report",
    "generate-summary",
    "generate-sheet-samples",
)


@pytest.fixture(scope="module")
def chain_run(machine: Up) -> dict[str, Any]:
    """The tiny chain, run through its deployment."""
    return machine.finish("pipeline/tiny", {"config": dump(tiny_config())})


def dump(config: PipelineConfig) -> dict[str, Any]:
    """A configuration as the form sends it."""
    return config.model_dump(mode="json")


def test_a_deployment_of_the_chain_completes_and_commits_what_the_plain_chain_commits(
    machine: Up, chain_run: dict[str, Any], tiny_run: TinyRun
) -> None:
    store = Store.open(machine.store)
    for stage in STAGES:
        plain = tiny_run.manifest(stage)
        found = store.find(plain.step, plain.fingerprint)
        assert found is not None, f"{stage} is not in the store under the fingerprint of the plain run"
        assert found.sha256 == plain.sha256, stage


def test_a_run_shows_funnel_sheets_curves_and_report(machine: Up, chain_run: dict[str, Any]) -> None:
    shown = machine.artifacts(chain_run["id"])
    assert [key for key in SHOWN if key not in shown] == []
    for key in ("curate-sheet-kept", "fit-tokenizer-sheet-reconstructions", "evaluate-report", "fit-curve"):
        assert "data:image/" in shown[key], f"{key} has no picture"
    assert "Rows left" in shown["curate-funnel"]
    assert "report" in shown["evaluate-report"]


@pytest.mark.slow  # by default a second `dalle run` in test_cli and a killed one in test_killed_command say so
def test_a_second_run_makes_nothing_again(machine: Up, chain_run: dict[str, Any]) -> None:
    again = machine.finish("pipeline/tiny", {"config": dump(tiny_config())})
    # The last lines of a run's log arrive a moment after its end.
    said = "reused: an artifact with this fingerprint is committed"
    assert wait_for(lambda: machine.log_of(again["id"]).count(said) == len(STAGES), 300, every_s=0.5), machine.log_of(
        again["id"]
    )


def test_scheduled_runs_appear_by_themselves_draw_with_production_and_wait_for_a_model_without_a_name(
    machine: Up,
    chain_run: dict[str, Any],
    tiny_run: TinyRun,
) -> None:
    # With unsuitable releases of Prefect's own dependencies everything looks well and no scheduled run ever appears.
    dead = _run_that_died_before_the_detector_was_made(machine)
    config = dump(tiny_config('generate.prompts=["a scheduled heart"]'))["generate"]
    Store.open(machine.store).set_ref("production", tiny_run.manifest("fit"))
    added = []
    for name, model in (("generate/scheduled", "production"), ("generate/generate", "nobody")):
        deployment = machine.deployment(name)["id"]
        schedule = {
            "schedule": {"cron": "* * * * *", "timezone": "UTC"},
            "active": True,
            "parameters": {"model": model, "config": config},
        }
        made = machine.api(f"/deployments/{deployment}/schedules", [schedule])
        added.append((deployment, made[0]["id"]))
    ended: dict[str, dict[str, Any]] = {}
    try:
        assert wait_for(lambda: ended.update(_scheduled(machine, config)) or len(ended) == 2, 900, every_s=1), (
            f"of two schedules for every minute {len(ended)} had a run after 900 s: {ended}\n{machine.logs()}"
        )
    finally:
        for deployment, schedule_id in added:
            machine.api(f"/deployments/{deployment}/schedules/{schedule_id}", method="DELETE")
    drawn, skipped = ended["production"], ended["nobody"]
    assert drawn["state"]["name"] == "Completed", machine.log_of(drawn["id"])
    assert "generate-sheet-samples" in machine.artifacts(drawn["id"])
    assert skipped["state"]["name"] == "Skipped", machine.log_of(skipped["id"])
    assert "dalle promote" in skipped["state"]["message"]
    assert machine.wait_run(dead)["state_type"] == "CRASHED"


def _run_that_died_before_the_detector_was_made(machine: Up) -> str:
    """A run that is Running and will never send a heartbeat; then what a deployment does about such runs."""
    flow = machine.api("/flows/", {"name": "pipeline"})
    asked = {"flow_id": flow["id"], "name": "long dead", "tags": [TAG], "state": {"type": "RUNNING"}}
    dead = machine.api("/flow_runs/", asked)
    patient = {PREFECT_API_URL: f"{machine.url}/api", PREFECT_API_REQUEST_TIMEOUT: ANSWER_S}
    with temporary_settings(patient), get_client(sync_client=True) as client:
        ask_for_life(client)
    return str(dead["id"])


def _scheduled(machine: Up, config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Finished runs that the scheduler made from the test's own schedules, by model."""
    asked = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}}, "limit": 200}
    runs = machine.api("/flow_runs/filter", asked)
    return {
        r["parameters"]["model"]: r for r in runs if r["auto_scheduled"] and r["parameters"].get("config") == config
    }


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"config": {"tokenizer": {"downsampling": 1}}}, "downsampling"),
        ({"config": {"fit": {"train": {"optim": {"lr": 5}}}}}, "lr"),
        ({"config": {"ingest": {"sauce": "openmoji"}}}, "sauce"),
        ({"config": {"generate": {"n": "many"}}}, "many"),
        ({"steps": 5}, "steps"),
    ],
)
def test_wrong_parameters_are_refused_in_words_before_a_run_exists(
    machine: Up, parameters: dict[str, Any], told: str
) -> None:
    of_it = {"deployments": {"id": {"any_": [machine.deployment("pipeline/tiny")["id"]]}}}  # others have a schedule
    before = machine.api("/flow_runs/count", of_it)
    with pytest.raises(Refused, match=told):
        machine.submit("pipeline/tiny", parameters)
    assert machine.api("/flow_runs/count", of_it) == before


@pytest.fixture
def nothing_goes_on(machine: Up) -> Iterator[None]:
    """A run without an end that a failed test leaves would take a core from all tests after it."""
    yield
    for process in (*machine.flow_processes(), *machine.step_processes()):
        with suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.mark.usefixtures("nothing_goes_on")
def test_a_cancelled_and_a_killed_run_leave_no_process_and_the_cancelled_one_goes_on(
    machine: Up, chain_run: dict[str, Any], tiny_run: TinyRun
) -> None:
    config = tiny_config("tokenizer.steps=100000", "tokenizer.checkpoint_every=10").tokenizer
    parameters = {"curated": tiny_run.results["curate"].ref.fingerprint, "config": config.model_dump(mode="json")}
    manifests = sorted(machine.store.glob("manifests/fit-tokenizer/*"))

    cancelled = _start_and_reach(machine, parameters, r"(\d\d+) of 100,000 steps")
    machine.api(f"/flow_runs/{cancelled}/set_state", {"state": {"type": "CANCELLING"}})
    assert wait_for(lambda: not machine.step_processes(), GONE_S, every_s=0.1), f"alive: {machine.step_processes()}"
    assert wait_for(lambda: not machine.flow_processes(), GONE_S, every_s=0.1), f"alive: {machine.flow_processes()}"
    assert machine.wait_run(cancelled)["state_type"] == "CANCELLED"

    goes_on = r"goes on from the checkpoint at step (\d+) of 100000"
    # A run that was killed goes on from its checkpoint, too: test_killed_command, and test_kill_anywhere for each stage.
    killed = _start_and_reach(machine, parameters, goes_on)
    assert int(re.findall(goes_on, machine.log_of(killed))[0]) > 0
    for process in machine.flow_processes():
        process.send_signal(signal.SIGKILL)
    assert wait_for(lambda: not machine.step_processes(), GONE_S, every_s=0.1), "the step outlives its killed flow"
    assert machine.wait_run(killed)["state_type"] == "CRASHED"
    assert sorted(machine.store.glob("manifests/fit-tokenizer/*")) == manifests, (
        "a run that did not finish left an artifact"
    )


def _start_and_reach(machine: Up, parameters: dict[str, Any], line: str) -> str:
    """Start a run and wait until its log matches a pattern; its id."""
    run_id = machine.submit("fit-tokenizer/fit-tokenizer", parameters)

    def told(run: dict[str, Any]) -> bool:
        assert run["state_type"] not in ("COMPLETED", "FAILED", "CRASHED"), f"{run['state']}\n{machine.log_of(run_id)}"
        return re.search(line, machine.log_of(run_id)) is not None

    machine.wait_run(run_id, told)
    assert machine.step_processes(), "no process does the step's work"
    return run_id


def test_deploying_again_changes_nothing(machine: Up) -> None:
    automations = machine.api("/automations/filter", {})
    assert {a["name"]: a["trigger"]["within"] for a in automations} == {SILENT: 90, NEVER_STARTED: 600}
    assert psutil.pid_exists(machine.process.pid if machine.process else -1)
