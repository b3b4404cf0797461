"""What the running commands do: choose the config, run through Prefect or plainly, collect what to show."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dalle_model.config import PipelineConfig
from dalle_model.errors import RefNotFound, UsageError
from flows import views
from flows.overrides import first_problem, override
from flows.presets import PRESETS
from flows.temporary_server import api_is_configured, prefect_api, prepare_environment
from tasks.artifacts import ArtifactRef, Manifest
from tasks.plain import NotCommitted, bind, here, only_reuse
from tasks.settings import Settings
from tasks.stages import SECTIONS, stage_named
from tasks.step import StepResult, input_ref, open_store


@dataclass(frozen=True)
class CommandResult:
    """One JSON object for programs, lines for a person."""

    payload: dict[str, Any]
    lines: list[str]


def preset_config(name: str, assignments: list[str]) -> PipelineConfig:
    """A preset with overrides applied. Raises UsageError for an unknown preset, key or value."""
    if name not in PRESETS:
        raise UsageError(f"unknown preset {name!r}; the presets are {', '.join(PRESETS)}")
    return override(PRESETS[name](), assignments)


def run_chain(config: PipelineConfig, settings: Settings, out: Path, *, plain: bool, debug: bool) -> CommandResult:
    """Run all stages and export what a person looks at to ``out``."""
    started = time.monotonic()
    views.prepare_folder(out)
    prepare_environment(debug=debug)  # before Prefect is imported
    from flows.pipeline import chain, pipeline

    results = None
    if not plain and not api_is_configured():
        # With nothing to do there is nothing to record: spare the start of a temporary server.
        try:
            results = chain(config, settings, bind(only_reuse))
        except NotCommitted:
            results = None
    if results is None and plain:
        results = chain(config, settings, bind(here))
    elif results is None:
        with prefect_api():
            results = pipeline(config, store=settings.store)
    return summary(results, settings, out, started)


def run_stage(
    name: str, refs: Mapping[str, str], config: PipelineConfig, settings: Settings, out: Path | None, *, debug: bool
) -> CommandResult:
    """Run one stage: recorded by the configured Prefect API, or as a plain function where none is configured."""
    started = time.monotonic()
    if out is not None:
        views.prepare_folder(out)
    stage = stage_named(name)
    section = getattr(config, SECTIONS.get(name, name))
    inputs: dict[str, ArtifactRef] = {}
    for kind, ref in refs.items():  # an input is named by its kind
        inputs[kind] = artifact_of(settings, ref, kind)
    if api_is_configured():
        prepare_environment(debug=debug)
        from flows.catalog import FLOWS

        references = {input_name: ref.fingerprint for input_name, ref in inputs.items()}
        with prefect_api():
            result: StepResult = FLOWS[name](config=section, store=settings.store, **references)
    else:
        result = here(stage)(section, settings, **inputs)
    return summary({name: result}, settings, out, started)


def run_beside(name: str, values: Mapping[str, Any], settings: Settings) -> CommandResult:
    """Run a stage whose settings are the command's own arguments, as a plain function.

    Raises UsageError naming the argument that is out of range.
    """
    started = time.monotonic()
    stage = stage_named(name)
    try:
        section = stage.config.model_validate(dict(values))
    except ValidationError as error:
        raise UsageError(first_problem(error)) from None
    return summary({name: here(stage)(section, settings)}, settings, None, started)


def model_sets(settings: Settings, ref: str) -> list[str]:
    """The architecture of a model artifact as assignments, so that training that starts from it needs no other."""
    store = open_store(settings)
    found = artifact_of(settings, ref, "model")
    manifest = store.find(found.step, found.fingerprint)
    model = manifest.config["config"]["model"] if manifest is not None else {}
    return [f"model.{name}={json.dumps(value)}" for name, value in model.items()]


def artifact_of(settings: Settings, ref: str, kind: str) -> ArtifactRef:
    """The artifact of a kind that a person's reference means; ``latest`` is the one that was begun last.

    Raises RefNotFound, CorruptObject when ``latest`` may be a damaged one, or UsageError when it is an artifact of another kind.
    """
    from flows.inspection import newest

    if ref != "latest":
        return input_ref(settings, ref, kind)
    store = open_store(settings)
    found = newest(store, kind)
    if found is None:
        raise RefNotFound(f"{store.uri} holds no {kind}; make one first, e.g. with `dalle run quickstart`")
    return found.ref(store.manifest_uri(found.step, found.fingerprint))


def _entry(result: StepResult) -> dict[str, Any]:
    ref = result.ref
    return {
        "fingerprint": ref.fingerprint,
        "uri": ref.uri,
        "manifest_sha256": ref.manifest_sha256,
        "rows": ref.rows,
        "bytes": ref.bytes,
        "reused": result.reused,
        "seconds": result.seconds,
    }


def summary(results: Mapping[str, StepResult], settings: Settings, out: Path | None, started: float) -> CommandResult:
    """What steps made, for programs and for a person; pages and pictures go to ``out``. ``started`` is monotonic."""
    store = open_store(settings)
    manifests: dict[str, Manifest] = {}
    for name, result in results.items():
        manifest = store.find(result.ref.step, result.ref.fingerprint)
        if manifest is not None:
            manifests[name] = manifest
    payload: dict[str, Any] = {"artifacts": {name: _entry(result) for name, result in results.items()}}
    shown = manifests.get("evaluate") or next(iter(manifests.values()))
    payload["metrics"] = {k: v for k, v in shown.stats.items() if isinstance(v, int | float)}
    if out is not None:
        with views.only_writer(out):
            payload |= _export(store, manifests, out)
    payload["seconds"] = round(time.monotonic() - started, 3)
    return CommandResult(payload, _lines(results, payload))


def _export(store: Any, manifests: Mapping[str, Manifest], out: Path) -> dict[str, str]:
    paths: dict[str, str] = {}
    if "curate" in manifests:
        paths["curation"] = str(views.export_curation(store, manifests["curate"], out).absolute())
    if "generate" in manifests:
        manifest = manifests["generate"]
        paths["gallery"] = str(views.export_page(store, manifest, "gallery", out).absolute())
        views.export_generations(store, manifest, out)
        if sheet := views.export_sheet(store, manifest, out):
            paths["contact_sheet"] = str(sheet.absolute())
    if "evaluate" in manifests:
        manifest = manifests["evaluate"]
        paths["report"] = str(views.export_page(store, manifest, "report", out).absolute())
        if sheet := views.export_sheet(store, manifest, out):  # of training and held-out captions: the one to judge by
            paths["contact_sheet"] = str(sheet.absolute())
    return paths


def _lines(results: Mapping[str, StepResult], payload: Mapping[str, Any]) -> list[str]:
    lines = [f"{'step':14} {'artifact':14} {'rows':>9} {'MB':>9} {'s':>8}"]
    for name, result in results.items():
        ref = result.ref
        time_shown = "reused" if result.reused else f"{result.seconds:.1f}"
        lines.append(f"{name:14} {ref.fingerprint[:12]:14} {ref.rows:9,} {ref.bytes / 1e6:9.2f} {time_shown:>8}")
    if all(result.reused for result in results.values()):
        lines.append("nothing to do: every artifact was already there")
    for name in ("recognisability", "recognisability_heldout"):
        if name in payload["metrics"]:
            lines.append(f"{name}: {payload['metrics'][name]:.3f}")
    for key in ("curation", "gallery", "contact_sheet", "report"):
        if key in payload:
            lines.append(f"{key.replace('_', ' ')}: {payload[key]}")
    lines.append(f"{payload['seconds']:.1f} s")
    return lines
