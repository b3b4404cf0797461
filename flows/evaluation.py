"""Evaluation of a trained model."""

from prefect import flow

from dalle_model.config import EvaluateConfig
from flows.settings import settings_for
from tasks import prefect_tasks
from tasks.step import StepResult, input_ref


@flow(name="evaluate")
def evaluate(model: str, config: EvaluateConfig = EvaluateConfig(), store: str = "") -> StepResult:  # noqa: B008 - frozen
    """Measure a model and write its report.

    Args:
        model: Reference of the model: fingerprint, unique prefix, manifest URI or name such as production.
        config: What is measured.
        store: Folder or s3://bucket/prefix that keeps the artifacts; empty = the worker's own default.
    """
    s = settings_for(store)
    return prefect_tasks.evaluate(config, s, model=input_ref(s, model, "model"))
