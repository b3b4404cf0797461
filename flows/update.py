"""New data for a model that is there: what is new is taken in, and the model goes on from its weights."""

import io
from collections.abc import Mapping, Sequence
from typing import Annotated

import pyarrow.parquet as pq
from prefect import flow, get_run_logger
from pydantic import Field

from dalle_model.config import EncodeConfig, ModelConfig, PipelineConfig
from flows.commands import preset_config
from flows.comparison import offer
from flows.lineage import check_places, data_sets, lineage_of
from flows.presets import PRESETS
from flows.settings import settings_for
from tasks.artifacts import ArtifactRef, Manifest
from tasks.plain import Steps
from tasks.prefect_tasks import STEPS
from tasks.settings import Settings
from tasks.step import StepResult, input_ref, open_store
from tasks.store import Store


def refresh(source: str, s: Settings, do: Steps, model: str, sets: Sequence[str], preset: str) -> dict[str, StepResult]:
    """Ingest onto the pairs that ``model`` was trained on, then curate, encode as before, fit from its weights.

    Ends after ingest when the source holds nothing new, and after curate when that keeps the pairs that the model was
    trained on and no others. Raises what ``config_of`` does.
    """
    before = input_ref(s, model, "model")
    lineage = lineage_of(s, before)
    config = config_of(source, lineage, sets, preset)
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


def config_of(source: str, lineage: Mapping[str, Manifest], sets: Sequence[str], preset: str) -> PipelineConfig:
    """The settings of an update: new pairs are stored and curated as the model's own were, but for what ``sets`` say.

    Raises UsageError for an unknown preset, key or value, and for a list or a model that judged the model's own pairs
    and is not given.
    """
    config = preset_config(preset, [*data_sets(lineage), f"ingest.source={source}", *sets])
    check_places(lineage["curated"], config.curate)
    return config


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


@flow(name="update", flow_run_name="update with {source}")
def update(
    source: str,
    model: str = "production",
    sets: tuple[str, ...] = (),
    preset: Annotated[str, Field(json_schema_extra={"enum": list(PRESETS)})] = "quickstart",
    promote: bool = False,
    store: str = "",
) -> dict[str, StepResult]:
    """Take new pairs into the data of a model and train it further on all of it, as `dalle update` does.

    New pairs are stored and curated as the model's own were. The tokenizer, the encoding and the shape of the model stay.

    Args:
        source: Where the new pairs are, as in `dalle ingest`, e.g. imagefolder:/data/new.
        model: Reference of the model to go on from.
        sets: Settings that are to be other than those, each as section.key=value, e.g. train.steps=500.
        preset: Settings of the steps after curation, by name.
        promote: Give the name production to the new model if it is better than the one that has it; the log says why not.
        store: Folder or s3://bucket/prefix that keeps the artifacts; empty = the worker's own default.
    """
    s = settings_for(store)
    results = refresh(source, s, STEPS, model, sets, preset)
    if promote and "fit" in results:
        get_run_logger().info(offer(s, results["fit"].ref))
    return results
