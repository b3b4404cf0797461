"""New data for a model that is there: what is new is taken in, and the model goes on from its weights."""

from prefect import flow

from dalle_model.config import EncodeConfig, ModelConfig, PipelineConfig
from dalle_model.errors import UsageError
from flows.presets import quickstart
from flows.settings import settings_for
from tasks.artifacts import ArtifactRef, Manifest
from tasks.job import load_ancestor
from tasks.plain import Steps
from tasks.prefect_tasks import STEPS
from tasks.settings import Settings
from tasks.step import StepResult, input_ref, open_store


def refresh(config: PipelineConfig, s: Settings, do: Steps, model: str) -> dict[str, StepResult]:
    """Ingest onto the pairs that ``model`` was trained on, then curate, encode as before, fit from its weights.

    Ends after ingest when the source holds nothing new. Raises RefNotFound, or UsageError for a model without pairs.
    """
    before = input_ref(s, model, "model")
    lineage = _lineage(s, before.fingerprint, before.step)
    pairs = do.ingest(config.ingest, s, pairs=_ref(s, lineage["pairs"]))
    grown = open_store(s).find(pairs.ref.step, pairs.ref.fingerprint)
    if grown is not None and not grown.stats["new"]["kept"]:
        return {"ingest": pairs}
    curated = do.curate(config.curate, s, pairs=pairs.ref)
    encoding = EncodeConfig.model_validate(lineage["tokens"].config["config"])
    tokens = do.encode(encoding, s, curated=curated.ref, tokenizer=_ref(s, lineage["tokenizer"]))
    shape = ModelConfig.model_validate(lineage["model"].config["config"]["model"])
    fitted = do.fit(config.fit.model_copy(update={"model": shape}), s, tokens=tokens.ref, model=before)
    evaluation = do.evaluate(config.evaluate, s, model=fitted.ref)
    results = (pairs, curated, tokens, fitted, evaluation)
    return {result.ref.step: result for result in results}


def _ref(s: Settings, manifest: Manifest) -> ArtifactRef:
    return manifest.ref(open_store(s).manifest_uri(manifest.step, manifest.fingerprint))


def _lineage(s: Settings, fingerprint: str, step: str) -> dict[str, Manifest]:
    """The artifacts behind a model, by kind."""
    store = open_store(s)
    model = store.find(step, fingerprint)
    assert model is not None  # it was resolved a moment ago
    if all(used.name != "tokens" for used in model.inputs):
        raise UsageError(f"model {fingerprint[:12]} was not trained here, so its pairs are not known; train one first")
    tokens = load_ancestor(store, model, "tokens")
    curated = load_ancestor(store, tokens, "curated")
    return {
        "model": model,
        "tokens": tokens,
        "curated": curated,
        "tokenizer": load_ancestor(store, tokens, "tokenizer"),
        "pairs": load_ancestor(store, curated, "pairs"),
    }


@flow(name="update", flow_run_name="update with {config.ingest.source}")
def update(
    config: PipelineConfig = quickstart(),  # noqa: B008 - frozen
    model: str = "production",
    store: str = "",
) -> dict[str, StepResult]:
    """Take new pairs into the data of a model and train it further on all of it.

    Args:
        config: The source of the new pairs, and the settings of the steps after it. The tokenizer, the encoding and the shape of the model stay.
        model: Reference of the model to go on from.
        store: Folder or s3://bucket/prefix that keeps the artifacts; empty = the worker's own default.
    """
    return refresh(config, settings_for(store), STEPS, model)
