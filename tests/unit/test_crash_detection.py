"""Who is marked Crashed: runs that fall silent and runs that never start, of ours and of no one else."""

import inspect
from typing import Any, cast
from uuid import uuid4

import prefect.states
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.events.related import tags_as_related_resources
from prefect.server.events.schemas.automations import EventTrigger
from prefect.server.events.schemas.events import ReceivedEvent

from flows.crash_detection import (
    NEVER_STARTED,
    SILENT,
    TAG,
    ask_for_life,
    close_dead_runs,
    create_detectors,
    detectors,
)


def names_of(kind: StateType) -> set[str]:
    """The names that Prefect itself gives to states of a type."""
    made = []
    for name, make in vars(prefect.states).items():
        if name[0].isupper() and inspect.isfunction(make):
            try:
                made.append(make())
            except TypeError:  # it wants to know more, e.g. until when
                continue
    return {state.name for state in made if isinstance(state, State) and state.type == kind and state.name}


PENDING = names_of(StateType.PENDING)
RUNNING = names_of(StateType.RUNNING)
OVER = names_of(StateType.COMPLETED) | {"Failed", "Cancelled", "Crashed", "Skipped", "Coalesced"}


def event(name: str, tag: str = TAG) -> ReceivedEvent:
    """A flow run's event as the server receives it."""
    return ReceivedEvent(
        occurred="2026-01-01T00:00:00Z",
        event=f"prefect.flow-run.{name}",
        resource={"prefect.resource.id": f"prefect.flow-run.{uuid4()}"},
        related=[related.model_dump() for related in tags_as_related_resources({tag})],
        id=uuid4(),
    )


@pytest.fixture(scope="module")
def rules() -> dict[str, EventTrigger]:
    """The detectors' triggers as the server understands them."""
    return {d.name: EventTrigger.model_validate(d.trigger.model_dump(mode="json")) for d in detectors()}


def asks(rules: dict[str, EventTrigger], name: str) -> set[str]:
    """The detectors that wait for a further sign of life after this one."""
    return {rule for rule, trigger in rules.items() if trigger.starts_after(f"prefect.flow-run.{name}")}


def satisfied(rules: dict[str, EventTrigger], name: str) -> set[str]:
    """The detectors to which this is a sign of life."""
    return {rule for rule, trigger in rules.items() if trigger.expects(f"prefect.flow-run.{name}")}


def test_each_state_that_needs_somebody_alive_is_waited_on_and_each_end_is_an_end(
    rules: dict[str, EventTrigger],
) -> None:
    assert {"Pending", "Submitting"} <= PENDING and "Running" in RUNNING  # what Prefect 3.8 has, and more in time
    assert {name: asks(rules, name) for name in PENDING} == {key: {NEVER_STARTED} for key in PENDING}
    begun = {*RUNNING, "heartbeat"}
    assert {name: asks(rules, name) for name in begun} == {key: {SILENT} for key in begun}
    assert {name: asks(rules, name) for name in OVER} == {key: set() for key in OVER}
    assert {name: satisfied(rules, name) for name in OVER} == {key: {SILENT, NEVER_STARTED} for key in OVER}
    # A start, a place in a queue and a further step towards the start are no silence.
    for name in ("Running", "AwaitingConcurrencySlot", "Scheduled", "Submitting"):
        assert NEVER_STARTED in satisfied(rules, name)
    # "It runs" is not "it still runs": only a heartbeat says so.
    assert SILENT not in satisfied(rules, "Running") and SILENT in satisfied(rules, "heartbeat")


def test_only_our_runs_are_looked_at_and_they_have_time_to_start(rules: dict[str, EventTrigger]) -> None:
    for name in ("Pending", "Running", "heartbeat"):
        assert [r for r in asks(rules, name) if not rules[r].covers(event(name))] == []
        assert [r for r in rules if rules[r].covers(event(name, "theirs"))] == []
    assert rules[NEVER_STARTED].within.total_seconds() == 600
    assert rules[SILENT].within.total_seconds() == 90
    for detector in detectors():
        (action,) = detector.actions
        assert (getattr(action, "state", None), "run it again" in getattr(action, "message", "")) == ("CRASHED", True)


class Server:
    """As much of Prefect's client as detectors need, with the runs that a server has."""

    def __init__(self, *runs: FlowRun) -> None:
        self.runs = runs
        self.events: list[dict[str, Any]] = []
        self.automations: dict[str, Any] = {}
        self.crashed: dict[str, str] = {}

    def read_flow_runs(self, *, flow_run_filter: FlowRunFilter, limit: int, offset: int) -> list[FlowRun]:
        assert limit <= 200, "the API gives no more"
        asked = flow_run_filter
        assert asked.state and asked.state.type and asked.state.type.any_ and asked.tags and asked.tags.all_
        of_commands = asked.deployment_id is not None and asked.deployment_id.is_null_
        found = [
            run
            for run in self.runs
            if run.state
            and run.state.type in asked.state.type.any_
            and set(asked.tags.all_) <= set(run.tags)
            and not (of_commands and run.deployment_id)
        ]
        return found[offset : offset + limit]

    def request(self, method: str, path: str, *, json: list[dict[str, Any]]) -> "Server":
        assert (method, path) == ("POST", "/events")
        self.events += json
        return self

    def raise_for_status(self) -> None:
        """It is well."""

    def set_flow_run_state(self, run_id: object, state: State[Any], *, force: bool) -> None:
        assert force, "without it a rule of the server may refuse"
        self.crashed[str(run_id)] = str(state.name)

    def read_automations_by_name(self, name: str) -> list[Any]:
        return [self.automations[name]] if name in self.automations else []

    def create_automation(self, wanted: Any) -> None:
        assert wanted.name not in self.automations
        self.automations[wanted.name] = FlowRun(flow_id=uuid4())  # all that is asked of it is its id

    def update_automation(self, automation_id: object, wanted: Any) -> None:
        assert self.automations[wanted.name].id == automation_id


def client_of(server: Server) -> SyncPrefectClient:
    return cast(SyncPrefectClient, server)


def run(kind: StateType, *, tag: str = TAG, deployed: bool = False) -> FlowRun:
    return FlowRun(
        flow_id=uuid4(), name="a run", tags=[tag], state=State(type=kind), deployment_id=uuid4() if deployed else None
    )


def test_each_unfinished_run_of_ours_is_asked_for_life_however_many_there_are() -> None:
    waiting, working = run(StateType.PENDING, deployed=True), [run(StateType.RUNNING) for _ in range(450)]
    over, theirs = run(StateType.COMPLETED), run(StateType.RUNNING, tag="theirs")
    server = Server(waiting, *working, over, theirs)
    ask_for_life(client_of(server))
    told = {sent["resource"]["prefect.resource.id"].removeprefix("prefect.flow-run."): sent for sent in server.events}
    assert {run_id: sent["event"] for run_id, sent in told.items()} == {
        str(waiting.id): "prefect.flow-run.Pending",
        **{str(one.id): "prefect.flow-run.heartbeat" for one in working},
    }
    assert all(sent["related"][0]["prefect.resource.id"] == f"prefect.tag.{TAG}" for sent in server.events)


def test_what_killed_commands_left_is_closed_and_what_workers_do_is_not() -> None:
    killed, never_ran = run(StateType.RUNNING), run(StateType.PENDING)
    elsewhere = [run(StateType.RUNNING, deployed=True), run(StateType.PENDING, deployed=True)]
    server = Server(killed, never_ran, *elsewhere, run(StateType.FAILED), run(StateType.RUNNING, tag="theirs"))
    close_dead_runs(client_of(server))
    assert server.crashed == {str(killed.id): "Crashed", str(never_ran.id): "Crashed"}


def test_detectors_are_made_once_and_brought_up_to_date_afterwards() -> None:
    server = Server(run(StateType.RUNNING))
    assert create_detectors(client_of(server)) == [SILENT, NEVER_STARTED]
    assert create_detectors(client_of(server)) == list(server.automations)
    assert len(server.events) == 2
