"""Attempts at one list of URLs: the plain ingest, and each retry onto the one before."""

from collections.abc import Mapping

from dalle_model.config import IngestConfig
from dalle_model.errors import UsageError
from dalle_model.sources.failures import TRANSIENT
from tasks.artifacts import ArtifactRef, Manifest
from tasks.settings import Settings
from tasks.stages import INGEST
from tasks.step import open_store, plan


def last_attempt(config: IngestConfig, inputs: Mapping[str, ArtifactRef], settings: Settings) -> Manifest:
    """The newest attempt at what a config reads. UsageError when there was none yet."""
    store = open_store(settings)
    planned = plan(INGEST, config.model_copy(update={"retry": "none"}), inputs, settings)
    found = store.find(INGEST.name, planned.fingerprint)
    if found is None:
        raise UsageError(
            f"{config.source} was not ingested into {store.uri} with these settings, so nothing of it can be tried again; "
            "run the same command without --retry first"
        )
    again = config.model_copy(update={"retry": TRANSIENT})
    while True:
        earlier = found.ref(store.manifest_uri(INGEST.name, found.fingerprint))
        planned = plan(INGEST, again, {"pairs": earlier}, settings)
        later = store.find(INGEST.name, planned.fingerprint)
        if later is None:
            return found
        found = later


def may_pass(manifest: Manifest) -> int:
    """How many fetches of a pairs artifact failed for a reason that may pass."""
    return int(manifest.stats.get("fetches", {}).get(TRANSIENT, 0))
