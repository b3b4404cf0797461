"""The whole chain, from a source of pictures to generated ones. Read this file first."""

from prefect import flow

from dalle_model.config import PipelineConfig
from flows.presets import quickstart
from flows.settings import settings_for
from tasks.plain import Steps
from tasks.prefect_tasks import STEPS
from tasks.settings import Settings
from tasks.step import StepResult


def chain(config: PipelineConfig, s: Settings, do: Steps) -> dict[str, StepResult]:
    """Every stage in order. ``do`` decides how each is run: as Prefect tasks, as plain functions, or only looked up."""
    pairs = do.ingest(config.ingest, s)
    curated = do.curate(config.curate, s, pairs=pairs.ref)
    trained: tuple[StepResult, ...]
    if config.family == "dalle":
        tokenizer = do.fit_tokenizer(config.tokenizer, s, curated=curated.ref)
        tokens = do.encode(config.encode, s, curated=curated.ref, tokenizer=tokenizer.ref)
        trained = (tokenizer, tokens, do.fit(config.fit, s, tokens=tokens.ref))
    else:
        trained = (do.fit_generator(config.generator, s, curated=curated.ref),)
    evaluation = do.evaluate(config.evaluate, s, model=trained[-1].ref)
    generations = do.generate(config.generate, s, model=trained[-1].ref)
    results = (pairs, curated, *trained, evaluation, generations)
    return {result.ref.step: result for result in results}


@flow(name="pipeline", flow_run_name="pipeline on {config.ingest.source}")
def pipeline(config: PipelineConfig = quickstart(), store: str = "") -> dict[str, StepResult]:  # noqa: B008 - frozen
    """Train a text-to-image model on a source of captioned pictures and draw with it.

    Args:
        config: Every knob of the chain, section by section. A step runs again only when something it reads changed.
        store: Folder or s3://bucket/prefix that keeps the artifacts; empty = the worker's own default.
    """
    return chain(config, settings_for(store), STEPS)
