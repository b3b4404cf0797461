"""The whole chain, from a source of pictures to generated ones. Read this file first."""

from prefect import flow

from dalle_model.config import PipelineConfig
from flows.presets import quickstart
from flows.settings import settings_for
from tasks.prefect_tasks import curate, encode, evaluate, fit, fit_tokenizer, generate, ingest
from tasks.step import StepResult


@flow(name="pipeline", flow_run_name="pipeline {config.ingest.source}", log_prints=True)
def pipeline(config: PipelineConfig = quickstart(), store: str = "") -> dict[str, StepResult]:  # noqa: B008 - frozen
    """Train a text-to-image model on a source of captioned pictures and draw with it.

    Args:
        config: Every knob of the chain, section by section. A step runs again only when something it reads changed.
        store: Folder or s3://bucket/prefix that keeps the artifacts; empty = the worker's own default.
    """
    s = settings_for(store)
    pairs = ingest(config.ingest, s)
    curated = curate(config.curate, s, pairs=pairs.ref)
    tokenizer = fit_tokenizer(config.tokenizer, s, curated=curated.ref)
    tokens = encode(config.encode, s, curated=curated.ref, tokenizer=tokenizer.ref)
    model = fit(config.fit, s, tokens=tokens.ref)
    evaluation = evaluate(config.evaluate, s, model=model.ref)
    generations = generate(config.generate, s, model=model.ref)
    results = (pairs, curated, tokenizer, tokens, model, evaluation, generations)
    return {result.ref.step: result for result in results}
