"""What the form of a deployment admits: Prefect's server checks a run's parameters against the schema before it exists."""

from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError, validate

from flows.crash_detection import TAG
from flows.deployments import refuse_unknown_parameters
from flows.pipeline import pipeline
from flows.update import update


@dataclass
class Server:
    """Keeps what deployments are updated to."""

    schemas: dict[UUID, dict[str, Any]] = field(default_factory=dict)

    def update_deployment(self, deployment_id: UUID, change: DeploymentUpdate) -> None:
        assert change.model_fields_set == {"parameter_openapi_schema"}, "anything else that is sent is overwritten"
        self.schemas[deployment_id] = cast(dict[str, Any], change.parameter_openapi_schema)


def deployment(tag: str, schema: dict[str, Any]) -> DeploymentResponse:
    return DeploymentResponse(
        id=uuid4(), flow_id=uuid4(), name="tiny", tags=[tag], version=None, parameter_openapi_schema=schema
    )


def test_a_parameter_that_the_flow_lacks_is_refused_by_name() -> None:
    schema = parameter_schema(pipeline.fn).model_dump()
    ours, theirs = deployment(TAG, schema), deployment("theirs", schema)
    server = Server()
    refuse_unknown_parameters(cast(SyncPrefectClient, server), [ours, theirs])
    closed = server.schemas.pop(ours.id)
    assert server.schemas == {}, "a deployment of somebody else was changed"
    validate({"steps": 5}, schema, raise_on_error=True)  # type: ignore[arg-type]  # what Prefect makes admits it
    with pytest.raises(ValidationError, match="'steps' was unexpected"):
        validate({"steps": 5}, closed, raise_on_error=True)  # type: ignore[arg-type]
    validate({"store": "", "config": {"generate": {"n": 2}}}, closed, raise_on_error=True)  # type: ignore[arg-type]
    server = Server()
    refuse_unknown_parameters(cast(SyncPrefectClient, server), [deployment(TAG, closed)])
    assert server.schemas == {}, "what is closed already was sent again"


def test_the_form_of_an_update_offers_the_presets_and_no_other() -> None:
    schema = parameter_schema(update.fn).model_dump()
    asked = {"source": "imagefolder:/data/new"}
    validate({**asked, "preset": "quickstart"}, schema, raise_on_error=True)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match=r"'quickstrat' is not one of.*quickstart.*tiny"):
        validate({**asked, "preset": "quickstrat"}, schema, raise_on_error=True)  # type: ignore[arg-type]
