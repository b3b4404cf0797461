"""Evaluation of a trained model."""

from prefect import flow

from dalle_model.config import EvaluateConfig
from flows.comparison import baseline_of
from flows.settings import settings_for
from tasks import prefect_tasks
from tasks.step import StepResult, input_ref


@flow(name="evaluate")
def evaluate(
    model: str,
    config: EvaluateConfig = EvaluateConfig(),  # noqa: B008 - frozen
    against: str = "",
    store: str = "",
    curated: str = "",
) -> StepResult:
    """Measure a model and write its report.

    Args:
        model: Reference of the model: fingerprint, unique prefix, manifest URI or name such as production.
        config: What is measured.
        against: Model that the report compares with, such as production; empty = none. It is evaluated, too.
        store: Folder or s3://bucket/prefix that keeps the artifacts; empty = the worker's own default.
        curated: A foreign evaluation set, drawn in place of held-out captions; refused where training touches it. No
            comparison then.
    """
    s = settings_for(store)
    if curated:
        foreign = {"curated": input_ref(s, curated, "curated")}
        return prefect_tasks.evaluate(config, s, model=input_ref(s, model, "model"), **foreign)
    baseline = baseline_of(s, model, config, against, prefect_tasks.evaluate)
    chosen = config.model_copy(update={"baseline": baseline})
    return prefect_tasks.evaluate(chosen, s, model=input_ref(s, model, "model"))
