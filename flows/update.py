"""New data for a model that is there: what is new is taken in, and the model goes on from its weights."""

import io

import pyarrow.parquet as pq
from prefect import flow

from dalle_model.config import EncodeConfig, ModelConfig, PipelineConfig
from flows.lineage import lineage_of
from flows.presets import quickstart
from flows.settings import settings_for
from tasks.artifacts import ArtifactRef, Manifest
from tasks.plain import Steps
from tasks.prefect_tasks import STEPS
from tasks.settings import Settings
from tasks.step import StepResult, input_ref, open_store
from tasks.store import Store


def refresh(config: PipelineConfig, s: Settings, do: Steps, model: str) -> dict[str, StepResult]:
    """Ingest onto the pairs that ``model`` was trained on, then curate, encode as before, fit from its weights.

    Ends after ingest when the source holds nothing new, and after curate when that keeps the pairs that the model was
    trained on and no others. Raises RefNotFound, or UsageError for a model without pairs.
    """
    before = input_ref(s, model, "model")
    lineage = lineage_of(s, before)
    pairs = do.ingest(config.ingest, s, pairs=_ref(s, lineage["pairs"]))
    grown = open_store(s).find(pairs.ref.step, pairs.ref.fingerprint)
    if grown is not None and not grown.stats["new"]["kept"]:
        return {"ingest": pairs}
    curated = do.curate(config.curate, s, pairs=pairs.ref)
    if _same_pairs(s, lineage["curated"], curated.ref):
        return {"ingest": pairs, "curate": curated}
    encoding = EncodeConfig.model_validate(lineage["tokens"].config["config"])
    tokens = do.encode(encoding, s, curated=curated.ref, tokenizer=_ref(s, lineage["tokenizer"]))
    shape = ModelConfig.model_validate(lineage["model"].config["config"]["model"])
    fitted = do.fit(config.fit.model_copy(update={"model": shape}), s, tokens=tokens.ref, model=before)
    evaluation = do.evaluate(config.evaluate, s, model=fitted.ref)
    results = (pairs, curated, tokens, fitted, evaluation)
    return {result.ref.step: result for result in results}


def _ref(s: Settings, manifest: Manifest) -> ArtifactRef:
    return manifest.ref(open_store(s).manifest_uri(manifest.step, manifest.fingerprint))


def _same_pairs(s: Settings, before: Manifest, after: ArtifactRef) -> bool:
    """Whether two curations keep the same pairs in the same splits: nothing is to be learned from the new one."""
    store = open_store(s)
    found = store.find(after.step, after.fingerprint)
    return found is not None and found.rows == before.rows and _kept(store, found) == _kept(store, before)


def _kept(store: Store, curated: Manifest) -> list[tuple[str, str]]:
    with pq.ParquetFile(io.BytesIO(store.read(curated.object_of("curated")))) as file:
        table = file.read(columns=["id", "split"])
    return sorted(zip(table["id"].to_pylist(), table["split"].to_pylist(), strict=True))


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
