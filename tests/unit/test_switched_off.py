"""What a person switched off in the UI stays off when the deployments are made again, e.g. by the next ``dalle up``."""

from typing import Any, cast
from uuid import UUID, uuid4

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule

from flows.deployments import switch_off_again, switched_off


class Server:
    """Hears what is switched off."""

    def __init__(self) -> None:
        self.paused: list[UUID] = []
        self.inactive: list[tuple[UUID, UUID]] = []

    def pause_deployment(self, deployment_id: UUID) -> None:
        self.paused.append(deployment_id)

    def update_deployment_schedule(self, deployment_id: UUID, schedule_id: UUID, *, active: bool) -> None:
        assert not active
        self.inactive.append((deployment_id, schedule_id))


def deployment(deployment_id: UUID, *, paused: bool = False, **schedules: bool) -> DeploymentResponse:
    """A deployment with schedules for every hour and every day, by whether they are active; their ids are new each time."""
    cron = {"hourly": "0 * * * *", "daily": "0 0 * * *"}
    made: list[Any] = [
        DeploymentSchedule(id=uuid4(), schedule=CronSchedule(cron=cron[name], timezone="UTC"), active=active)
        for name, active in schedules.items()
    ]
    return DeploymentResponse(
        id=deployment_id, flow_id=uuid4(), name="scheduled", paused=paused, schedules=made, version=None, labels=None
    )


def test_what_was_paused_or_inactive_is_so_again_and_nothing_else() -> None:
    paused, partly, on = uuid4(), uuid4(), uuid4()
    before = switched_off(
        [
            deployment(paused, paused=True, hourly=True),
            deployment(partly, hourly=False, daily=True),
            deployment(on, hourly=True),
        ]
    )
    # Prefect has switched all of it on, and made the schedules anew.
    after = [
        deployment(paused, hourly=True),
        deployment(partly, hourly=True, daily=True),
        deployment(on, hourly=True),
        deployment(uuid4(), hourly=True),
    ]
    server = Server()
    switch_off_again(cast(SyncPrefectClient, server), after, before)
    assert server.paused == [paused]
    assert server.inactive == [(partly, after[1].schedules[0].id)]
