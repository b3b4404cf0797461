"""Batch generation: by hand, from the UI, or on a schedule."""

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.context import get_run_context
from prefect.states import Completed

from dalle_model.config import GenerateConfig
from dalle_model.errors import RefNotFound
from flows.settings import settings_for
from tasks import prefect_tasks
from tasks.step import StepResult, input_ref


@flow(name="generate")
def generate(
    model: str = "production",
    config: GenerateConfig = GenerateConfig(),  # noqa: B008 - frozen
    store: str = "",
) -> StepResult | State[None]:
    """Draw pictures for a list of prompts.

    Args:
        model: Reference of the model: fingerprint, unique prefix, manifest URI or name. A name is resolved once, when the run starts.
        config: Prompts, pictures per prompt, seed and sampler.
        store: Folder or s3://bucket/prefix that keeps the artifacts; empty = the worker's own default.
    """
    s = settings_for(store)
    try:
        ref = input_ref(s, model, "model")
    except RefNotFound:
        if not _is_scheduled():
            raise
        # A schedule that waits for its first model is well.
        return Completed(
            name="Skipped",
            message=f"nothing drawn: no model is called {model!r} yet; `dalle promote REF` gives it that name",
        )
    return prefect_tasks.generate(config, s, model=ref)


def _is_scheduled() -> bool:
    run = getattr(get_run_context(), "flow_run", None)
    return bool(run and run.auto_scheduled)
