"""Runs of ours whose process or machine died do not stay Running or Pending for ever.

Prefect marks none of them: a worker tells of its own runs while it lives, and a run that was taken and never started is
Pending for good (PrefectHQ/prefect issues 20485 and 22664). Two automations of the server do it, for every machine.
Imports no Prefect at the top: the environment must be complete before Prefect is imported.
"""

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect.automations import AutomationCore
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect.events import Event

TAG = "dalle"  # on every run of ours: the detectors look at these only
HEARTBEAT_S = 30
SILENCE_S = 3 * HEARTBEAT_S
START_S = 600  # 8 s on a quiet machine, two minutes on a crowded one; a run that starts after all goes on from Crashed
SILENT = "Crash runs without a heartbeat"
NEVER_STARTED = "Crash runs that never start"

_EVENT = "prefect.flow-run."
_PAGE = 200  # what the API gives at most


def create_detectors(client: "SyncPrefectClient") -> list[str]:
    """Create or update the automations, and have them look at runs from before; their names."""
    wanted = detectors()
    for detector in wanted:
        there = client.read_automations_by_name(detector.name)
        if there:
            client.update_automation(there[0].id, detector)
        else:
            client.create_automation(detector)
    ask_for_life(client)
    return [detector.name for detector in wanted]


def detectors() -> list["AutomationCore"]:
    """One for runs that are Running and silent, one for runs that are Pending and never start.

    They look at runs with our tag only: others send heartbeats every 180 s and would be crashed while they are well.
    A run that lives in spite of it is not harmed: the server takes its next state, and its artifacts do not ask.
    """
    ended = {f"{_EVENT}{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed", "Skipped", "Coalesced")}
    began = {f"{_EVENT}{state}" for state in ("Running", "Retrying")}  # it may die before its first heartbeat
    return [
        _detector(
            SILENT,
            after={f"{_EVENT}heartbeat", *began},
            expect={f"{_EVENT}heartbeat", *ended},
            within_s=SILENCE_S,
            message=f"no heartbeat for {SILENCE_S} s: the process or its machine died; run it again to go on",
        ),
        _detector(
            NEVER_STARTED,
            after={f"{_EVENT}{state}" for state in ("Pending", "Submitting", "InfrastructurePending")},
            expect={f"{_EVENT}*"},
            within_s=START_S,
            message=f"pending for {START_S} s: the worker or its machine died before the run began; run it again",
        ),
    ]


def _detector(name: str, *, after: set[str], expect: set[str], within_s: float, message: str) -> "AutomationCore":
    from prefect.automations import AutomationCore
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

    return AutomationCore(
        name=name,
        description=f"{message[0].upper()}{message[1:]}. What is finished is kept.",
        trigger=EventTrigger(
            after=after,
            expect=expect,
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=ResourceSpecification(
                {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
            ),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=within_s),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=message)],
    )


def ask_for_life(client: "SyncPrefectClient") -> None:
    """An event in the name of each run of ours that is said to be Running or Pending.

    A detector waits for the event after the last one, so a run that died before it was made (a command on a server of
    its own) or while no server listened would stay as it is. The living send one of their own in time.
    """
    events = [_event_of(run) for run in unfinished(client)]
    for start in range(0, len(events), _PAGE):
        sent = [event.model_dump(mode="json") for event in events[start : start + _PAGE]]
        client.request("POST", "/events", json=sent).raise_for_status()


def _event_of(run: "FlowRun") -> "Event":
    from prefect.events import Event, Resource
    from prefect.events.related import tags_as_related_resources

    return Event(
        event=_EVENT + ("Pending" if run.state and run.state.is_pending() else "heartbeat"),
        resource=Resource.model_validate(
            {"prefect.resource.id": f"prefect.flow-run.{run.id}", "prefect.resource.name": run.name}
        ),
        related=tags_as_related_resources({TAG}),
    )


def close_dead_runs(client: "SyncPrefectClient") -> None:
    """Mark as Crashed what earlier commands left unfinished: the home is leased to one command, so they are gone.

    Runs of deployments are left alone: a worker elsewhere may be at work on them.
    """
    from prefect.client.schemas.objects import State
    from prefect.states import Crashed

    for run in list(unfinished(client, of_commands=True)):
        gone: State[None] = Crashed(message="the command was killed or its machine died; run it again to go on")
        client.set_flow_run_state(run.id, gone, force=True)


def unfinished(client: "SyncPrefectClient", *, of_commands: bool = False) -> Iterator["FlowRun"]:
    """Runs of ours that are said to be Running or Pending; ``of_commands`` leaves out those of deployments."""
    from prefect.client.schemas.filters import FlowRunFilter

    asked = {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}, "tags": {"all_": [TAG]}}
    which = FlowRunFilter.model_validate(asked | ({"deployment_id": {"is_null_": True}} if of_commands else {}))
    offset = 0
    while True:
        page = client.read_flow_runs(flow_run_filter=which, limit=_PAGE, offset=offset)
        yield from page
        if len(page) < _PAGE:
            return
        offset += _PAGE
