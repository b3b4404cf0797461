"""Publishing into a real Prefect run, on the server of all tests."""

import base64
import time
from collections.abc import Iterator
from uuid import UUID

import pytest
from prefect import flow, task
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_API_URL, temporary_settings
from support.prefect_server import ANSWER_S, Up
from support.sample_pages import picture

from tasks.artifacts import Manifest, ObjectRef
from tasks.store import Store
from tasks.ui import ProgressReporter, publish

pytestmark = [pytest.mark.server, pytest.mark.timeout(1500)]  # the first may wait for the server


@pytest.fixture(scope="module", autouse=True)
def server(machine: Up) -> Iterator[None]:
    """Prefect's own test harness would import all of the server into this process first."""
    with temporary_settings({PREFECT_API_URL: f"{machine.url}/api", PREFECT_API_REQUEST_TIMEOUT: ANSWER_S}):
        yield


def artifacts(run_id: str) -> dict[str, Artifact]:
    """What a run has shown so far, by key."""
    of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(run_id)]))
    with get_client(sync_client=True) as client:
        return {artifact.key: artifact for artifact in client.read_artifacts(artifact_filter=of_run)}


def own_id() -> str:
    """Of the run that this is called in."""
    return str(flow_run.get_id())


def manifest(*objects: ObjectRef, step: str) -> Manifest:
    return Manifest(
        kind="pairs", step=step, step_version=1, fingerprint="ab" * 32, config={}, inputs=(), objects=objects, rows=1,
        stats={"rows_in": 2, "kept": 1, "reasons": {"not_an_image": 1}},
    )  # fmt: skip


def test_a_step_is_shown_in_its_run_and_a_damaged_picture_fails_nothing(tmp_path):
    store = Store.open(str(tmp_path))
    good = store.put(picture("red", "ring"), ext="png", role="sheet.kept")
    gone = good.model_copy(update={"key": "data/00/gone.png", "sha256": "0" * 64, "role": "sheet.rejected"})

    @task
    def step() -> str:
        publish(
            manifest(gone, good, step="ingest"),
            store,
            decision="reused: an artifact with this fingerprint is committed",
        )
        return "finished"

    @flow
    def run() -> tuple[str, str]:
        return own_id(), step()

    run_id, said = run()
    assert said == "finished"
    shown = artifacts(run_id)
    assert {"ingest-summary", "ingest-funnel", "ingest-sheet-kept"} <= set(shown)
    assert "ingest-sheet-rejected" not in shown
    assert shown["ingest-summary"].task_run_id is not None
    assert "reused" in shown["ingest-summary"].description


def test_progress_is_one_artifact_that_ends_at_100_percent_and_is_not_sent_for_every_event():
    sent, took_s, run_ids = [], [], []

    @flow
    def run() -> None:
        run_ids.append(own_id())
        started = time.monotonic()
        reporter = ProgressReporter("fit_tokenizer", every_s=0.5)
        reporter({"event": "progress", "done": None, "total": 1, "unit": "steps"})  # odd: passed over
        for done in range(0, 1001, 10):
            reporter({"event": "progress", "done": done, "total": 1000, "unit": "steps", "figures": {"loss": 1.25}})
            time.sleep(0.01)
            sent.append(reporter.updates)
        took_s.append(time.monotonic() - started)

    run()
    deadline = time.monotonic() + ANSWER_S
    while (shown := artifacts(run_ids[0]).get("fit-tokenizer-progress")) is None or float(shown.data) < 100:
        assert time.monotonic() < deadline, f"progress never came to its end: {shown}"
        time.sleep(0.1)
    assert shown.description.startswith("fit_tokenizer: 1,000 of 1,000 steps")
    assert shown.description.endswith("loss 1.25")
    assert sent[-1] <= 2 + took_s[0] / 0.5  # half a second apart, the first and the last
    assert sent[-1] < 102  # fewer than events


def test_a_picture_made_while_training_is_shown_before_the_step_ends():
    red = base64.b64encode(picture("red", "ring")).decode()

    @flow
    def run() -> str:
        reporter = ProgressReporter("fit")
        reporter({"event": "picture", "title": "Samples", "png": "not base64 of a picture"})  # odd: passed over
        reporter({"event": "picture", "title": "Samples after 20 steps", "png": red})
        deadline = time.monotonic() + ANSWER_S
        while "fit-live" not in artifacts(own_id()):
            assert time.monotonic() < deadline, "no picture came"
            time.sleep(0.1)
        return own_id()

    shown = artifacts(run())["fit-live"]
    assert shown.description == "Samples after 20 steps" and "data:image/" in shown.data
