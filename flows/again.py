"""What `dalle ingest --retry` and `dalle update` do."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dalle_model.errors import UsageError
from dalle_model.sources.failures import TRANSIENT
from flows import commands, views
from flows.comparison import offer
from flows.lineage import lineage_of
from flows.temporary_server import api_is_configured, prefect_api, prepare_environment
from tasks.attempts import last_attempt, may_pass
from tasks.plain import bind, here
from tasks.settings import Settings
from tasks.step import StepResult, input_ref, open_store


def retry(
    kind: str, refs: Mapping[str, str], sets: list[str], preset: str, settings: Settings, *, debug: bool
) -> tuple[dict[str, Any], list[str]]:
    """Fetch again what failed for a passing reason in the newest attempt at this source. UsageError for other classes."""
    if kind != TRANSIENT:
        raise UsageError(f"--retry {kind!r}: only transient failures are worth another try; write --retry {TRANSIENT}")
    config = commands.preset_config(preset, sets)
    inputs = {name: input_ref(settings, ref, "pairs") for name, ref in refs.items()}
    found = last_attempt(config.ingest, inputs, settings)
    if not may_pass(found):
        ref = found.ref(open_store(settings).manifest_uri(found.step, found.fingerprint))
        done = StepResult(ref=ref, reused=True, seconds=0.0, decision="reused: no fetch failed for a passing reason")
        result = commands.summary({"ingest": done}, settings, None, time.monotonic())
        return result.payload, ["no fetch failed for a passing reason; there is nothing to try again", *result.lines]
    again = commands.preset_config(preset, [*sets, f"ingest.retry={TRANSIENT}"])
    result = commands.run_stage("ingest", {"pairs": found.fingerprint}, again, settings, None, debug=debug)
    return result.payload, result.lines


def update(
    source: str, model: str, sets: list[str], preset: str, settings: Settings, out: Path, *, promote: bool, debug: bool
) -> tuple[dict[str, Any], list[str]]:
    """Run the update flow: recorded by the configured Prefect API, or as plain functions where none is configured.

    ``promote`` offers the name production to the new model: the last line says what was decided.
    """
    started = time.monotonic()
    views.prepare_folder(out)
    lineage = lineage_of(settings, input_ref(settings, model, "model"))
    prepare_environment(debug=debug)  # before Prefect is imported
    from flows.update import config_of, refresh
    from flows.update import update as flow

    config_of(source, lineage, sets, preset)  # what is wrong with it is said before a run is recorded
    if api_is_configured():
        with prefect_api():
            results = flow(source, model=model, sets=tuple(sets), preset=preset, store=settings.store)
    else:
        results = refresh(source, settings, bind(here), model, sets, preset)
    result = commands.summary(results, settings, out, started)
    lines = {
        ("ingest",): ["the source holds no pair that the model's data lack"],
        ("ingest", "curate"): ["curation keeps none of the new pairs, so there is nothing to learn"],
    }.get(tuple(results), [])
    verdict = [offer(settings, results["fit"].ref)] if promote and "fit" in results else []
    return result.payload | ({"promotion": verdict} if promote else {}), [*lines, *result.lines, *verdict]
