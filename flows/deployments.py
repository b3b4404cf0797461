"""Put the deployments of ``infra/prefect.yaml`` on a Prefect API, with the work pool and the crash detectors they need."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from dalle_model.config import GenerateConfig
from dalle_model.errors import DalleError, ServerError
from flows import prefect_home, presets
from flows.crash_detection import TAG, create_detectors
from flows.temporary_server import QUIET, configured_api, in_words

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

POOL = "dalle"
EXAMPLE_PROMPTS = ("red heart", "clown face", "woman firefighter: medium skin tone", "a green apple")


def values() -> dict[str, Any]:
    """The build step of ``prefect.yaml``: what its ``{{ dalle.* }}`` stand for."""
    from tasks.settings import Settings

    return {
        "store": absolute(Settings().store),
        "quickstart": presets.quickstart().model_dump(mode="json"),
        "tiny": presets.tiny().model_dump(mode="json"),
        "prompts": GenerateConfig(prompts=EXAMPLE_PROMPTS).model_dump(mode="json"),
    }


def absolute(store: str) -> str:
    """A store that means the same from any folder: a worker runs each flow in a folder of its own."""
    return store if "://" in store else str(Path(store).expanduser().absolute())


def definition_file() -> Path:
    """``prefect.yaml``: inside the installed package, or in ``infra`` of a source tree."""
    here = Path(__file__).parent
    for path in (here / "prefect.yaml", here.parent / "infra" / "prefect.yaml"):
        if path.is_file():
            return path
    raise ServerError(f"prefect.yaml is neither in {here} nor in {here.parent / 'infra'}; install the package again")


def deploy(*, store: str, api_url: str = "") -> list[str]:
    """Create or update work pool, deployments and crash detectors on ``api_url`` or the configured API.

    Returns a line for each thing that is there afterwards. Raises ServerError when the API does not answer or refuses.
    """
    url = api_url or configured_api()
    if not url:
        raise ServerError(
            "no Prefect API is configured; start one on this machine with `dalle up`, or name yours with PREFECT_API_URL"
        )
    if not prefect_home.is_healthy(url, timeout_s=10.0):
        raise ServerError(
            f"the Prefect API {url} does not answer; start it with `dalle up`, or correct PREFECT_API_URL"
        )
    os.environ.update(QUIET | {"PREFECT_API_URL": url, "DALLE_STORE": absolute(store)})
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    try:
        with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
            _create_pool(client)
            before = switched_off(_deployed(client))
            _deploy_all()
            deployments = _deployed(client)
            refuse_unknown_parameters(client, deployments)
            switch_off_again(client, deployments, before)
            names = _names(client, deployments, before)
            detectors = create_detectors(client)
    except DalleError:
        raise
    except Exception as error:
        raise in_words(error, url) or error from error
    return [
        f"work pool {POOL}",
        *(f"deployment {name}" for name in names),
        *(f"automation {name!r}" for name in detectors),
        f"artifacts go to {absolute(store)}",
    ]


def _create_pool(client: "SyncPrefectClient") -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    try:
        pool = client.read_work_pool(POOL)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(
            WorkPoolCreate(
                name=POOL,
                type="process",
                base_job_template=template,
                description="Flows as processes on the worker's machine",
            )
        )
        return
    if pool.type != "process":
        raise ServerError(
            f"the work pool {POOL} is there already with type {pool.type}, but process is needed; rename or delete it with `prefect work-pool delete {POOL}`"
        )


def _deploy_all() -> None:
    command = [
        sys.executable,
        "-m",
        "prefect",
        "--no-prompt",
        "deploy",
        "--all",
        "--prefect-file",
        str(definition_file()),
    ]
    environment = os.environ | {"PYTHONSAFEPATH": "1", "COLUMNS": "200"}
    with tempfile.TemporaryDirectory() as folder:  # Prefect looks round in the current folder; it shall find nothing
        done = subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        told = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        error = ServerError(
            f"the deployments were refused: {told[-1] if told else f'exit code {done.returncode}'}; --debug shows the whole answer"
        )
        error.add_note(done.stdout + done.stderr)
        raise error


@dataclass(frozen=True)
class SwitchedOff:
    """What a person has switched off: deployments by id, and schedules by their deployment and what they say."""

    deployments: frozenset[UUID]
    schedules: frozenset[tuple[UUID, str]]


def switched_off(deployments: Sequence["DeploymentResponse"]) -> SwitchedOff:
    """Paused deployments and inactive schedules, as they are now."""
    return SwitchedOff(
        frozenset(d.id for d in deployments if d.paused),
        frozenset((d.id, s.schedule.model_dump_json()) for d in deployments for s in d.schedules if not s.active),
    )


def switch_off_again(
    client: "SyncPrefectClient", deployments: Sequence["DeploymentResponse"], before: SwitchedOff
) -> None:
    """Switch off what was off before a deployment switched all of it on: a restart is no reason to draw again."""
    for deployment in deployments:
        for schedule in deployment.schedules:
            if schedule.active and (deployment.id, schedule.schedule.model_dump_json()) in before.schedules:
                client.update_deployment_schedule(deployment.id, schedule.id, active=False)
        if deployment.id in before.deployments:
            client.pause_deployment(deployment.id)  # what the scheduler made meanwhile goes with it


def refuse_unknown_parameters(client: "SyncPrefectClient", deployments: Sequence["DeploymentResponse"]) -> None:
    """Have the server refuse a parameter that the flow lacks, e.g. ``steps`` for ``config.tokenizer.steps``.

    Prefect's own schema admits any beside those that it names, and such a run crashes at its start without a word.
    """
    from prefect.client.schemas.actions import DeploymentUpdate

    for deployment in deployments:
        schema = deployment.parameter_openapi_schema
        if TAG in deployment.tags and schema and "additionalProperties" not in schema:
            closed = DeploymentUpdate(parameter_openapi_schema={**schema, "additionalProperties": False})
            client.update_deployment(deployment.id, closed)


def _deployed(client: "SyncPrefectClient") -> list["DeploymentResponse"]:
    from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName

    return client.read_deployments(work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])))


def _names(client: "SyncPrefectClient", deployments: Sequence["DeploymentResponse"], before: SwitchedOff) -> list[str]:
    flows = {flow.id: flow.name for flow in client.read_flows()}
    still = {True: " (paused, as it was)", False: ""}
    return sorted(f"{flows.get(d.flow_id, '?')}/{d.name}{still[d.id in before.deployments]}" for d in deployments)
