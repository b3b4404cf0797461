"""The artifacts behind a model, and the settings its data were made with."""

import json
from collections.abc import Mapping

from dalle_model.config import CurateConfig
from dalle_model.errors import UsageError
from tasks.artifacts import ArtifactRef, Manifest
from tasks.job import load_ancestor
from tasks.settings import Settings
from tasks.step import open_store

_POLICY = "policy_file"
# By the rule that asks the model, the setting that names it. What judges beauty drops nothing.
CUTTING_MODELS = {"nsfw": "nsfw_model", "agreement": "agreement_model"}
# An artifact records digests of what lies there, no places.
_PLACES = (*CUTTING_MODELS.values(), _POLICY, "embedding_model", "aesthetic_model")


def lineage_of(settings: Settings, model: ArtifactRef) -> dict[str, Manifest]:
    """The artifacts behind a model, by kind. UsageError for a model that was not trained in this store."""
    store = open_store(settings)
    found = store.find(model.step, model.fingerprint)
    assert found is not None  # it was resolved a moment ago
    if all(used.name != "tokens" for used in found.inputs):
        raise UsageError(
            f"model {model.fingerprint[:12]} was not trained here, so its pairs are not known; train one first"
        )
    tokens = load_ancestor(store, found, "tokens")
    curated = load_ancestor(store, tokens, "curated")
    return {
        "model": found,
        "tokens": tokens,
        "curated": curated,
        "tokenizer": load_ancestor(store, tokens, "tokenizer"),
        "pairs": load_ancestor(store, curated, "pairs"),
    }


def data_sets(lineage: Mapping[str, Manifest]) -> list[str]:
    """How the pairs were stored and curated, as assignments, so that more of them are taken in alike."""
    ingest = lineage["pairs"].config["config"]
    stored = [f"ingest.{name}={json.dumps(ingest[name])}" for name in ("image_px", "background") if name in ingest]
    return [*stored, *curate_sets(lineage["curated"])]


def curate_sets(curated: Manifest) -> list[str]:
    """The curation of an artifact as assignments, but for what lies elsewhere."""
    recorded = curated.config["config"]
    names = sorted((CurateConfig.model_fields.keys() - set(_PLACES)) & recorded.keys())
    return [f"curate.{name}={json.dumps(recorded[name])}" for name in names]


def check_places(curated: Manifest, config: CurateConfig, names: tuple[str, ...] = _PLACES) -> None:
    """UsageError when an artifact was curated by a list or a model of ``names`` that the config does not name."""
    outside = curated.config.get("outside", {})
    rules = {knob: f"model.{rule}" for rule, knob in CUTTING_MODELS.items()} | {
        "aesthetic_model": "model.aesthetic_model"
    }
    for name in names:
        if rules.get(name, name) in outside and not getattr(config, name):
            what = "an own list of words" if name == _POLICY else "a model"
            raise UsageError(
                f"curated {curated.fingerprint[:12]} was judged by {what}, of which only the digest is recorded; give it with --set curate.{name}=PATH"
            )
