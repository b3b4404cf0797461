"""Batch generation: by hand, from the UI, or on a schedule."""

from datetime import UTC, datetime
from typing import Annotated

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.context import get_run_context
from prefect.logging import get_run_logger
from prefect.states import Completed
from pydantic import Field

from dalle_model.config import GenerateConfig
from dalle_model.errors import RefNotFound
from flows.settings import settings_for
from flows.windows import Window, window_of
from tasks import prefect_tasks
from tasks.references import is_free_name
from tasks.step import StepResult, input_ref, open_store


@flow(name="generate")
def generate(
    model: str = "production",
    config: GenerateConfig = GenerateConfig(),  # noqa: B008 - frozen
    store: str = "",
    window_minutes: Annotated[int, Field(ge=0, le=44_640)] = 0,
    fresh: bool = False,
) -> StepResult | State[None]:
    """Draw pictures for a list of prompts.

    Args:
        model: Reference of the model: fingerprint, unique prefix, manifest URI or name. A name is resolved once, when the run starts.
        config: Prompts, pictures per prompt, seed and sampler.
        store: Folder or s3://bucket/prefix that keeps the artifacts; empty = the worker's own default.
        window_minutes: Length of a schedule's time window, minutes, 0 = none. A scheduled run that starts so much later than it was due is skipped: the next run does its work. Runs by hand are not affected.
        fresh: Scheduled runs draw new pictures in every window (seed = root seed + number of the window); off = a prompt that was drawn is not drawn again. Needs window_minutes.
    """
    window = _window(window_minutes)
    if window and window.behind:
        return Completed(
            name="Coalesced",
            message=f"nothing drawn: this run is {window.behind} windows of {window_minutes} minutes late; the run of a later one draws the same prompts",
        )
    if window and fresh:
        config = config.model_copy(update={"seed": config.seed + window.number})
    s = settings_for(store)
    try:
        ref = input_ref(s, model, "model")
    except RefNotFound:
        if not (_is_scheduled() and is_free_name(open_store(s), model)):  # a name whose model is gone is no such thing
            raise
        # A schedule that waits for its first model is well.
        return Completed(
            name="Skipped",
            message=f"nothing drawn: no model is called {model!r} yet; `dalle promote REF` gives it that name",
        )
    get_run_logger().info(f"{model} is model {ref.fingerprint}")
    return prefect_tasks.generate(config, s, model=ref)


def _is_scheduled() -> bool:
    run = getattr(get_run_context(), "flow_run", None)
    return bool(run and run.auto_scheduled)


def _window(minutes: int) -> Window | None:
    """The window of this run; None without windows, and for a run that somebody asked for."""
    run = getattr(get_run_context(), "flow_run", None)
    due = getattr(run, "expected_start_time", None)
    if not minutes or due is None or not _is_scheduled():
        return None
    # When it began by the server's clock, which made the schedule: on a worker whose clock is ahead every run was late.
    return window_of(due, run.state.timestamp if run and run.state else datetime.now(UTC), minutes)
