"""Batch generation: by hand, from the UI, or on a schedule."""

from prefect import flow

from dalle_model.config import GenerateConfig
from flows.settings import settings_for
from tasks import prefect_tasks
from tasks.step import StepResult, input_ref


@flow(name="generate", log_prints=True)
def generate(model: str = "production", config: GenerateConfig = GenerateConfig(), store: str = "") -> StepResult:  # noqa: B008
    """Draw pictures for a list of prompts.

    Args:
        model: Reference of the model; the name is resolved once, when the run starts.
        config: Prompts, pictures per prompt, seed and sampler.
        store: Folder or s3://bucket/prefix that keeps the artifacts; empty = the worker's own default.
    """
    s = settings_for(store)
    return prefect_tasks.generate(config, s, model=input_ref(s, model, "model"))
