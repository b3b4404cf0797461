"""Commands that look at the store and the machine. Each returns (JSON payload, lines for a person)."""

import datetime
import importlib.metadata
import logging
import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dalle_model.config import PipelineConfig
from dalle_model.errors import CorruptObject, DalleError, UsageError
from flows.overrides import allowed_range
from flows.presets import PRESETS
from tasks.artifacts import Manifest
from tasks.erase_pairs import erase_pairs
from tasks.forget import erase, tainted
from tasks.inventory import inventory
from tasks.settings import Settings
from tasks.stages import ALL_STAGES, STAGES, stage_named
from tasks.step import Plan, difference, open_store
from tasks.store import Store

log = logging.getLogger(__name__)
Shown = tuple[dict[str, Any], list[str]]


def all_manifests(store: Store) -> list[Manifest]:
    """Every readable manifest of a store, oldest first. Of the others a warning is logged."""
    manifests, unreadable = inventory(store)
    for why in unreadable.values():
        log.warning("left out: %s", why)
    return sorted(manifests, key=_started_at)


def newest(store: Store, kind: str) -> Manifest | None:
    """The artifact of a kind that was begun last. CorruptObject when one of its stage cannot be read: it may be that."""
    manifests, unreadable = inventory(store)
    steps = {stage.name for stage in ALL_STAGES.values() if stage.kind == kind}
    for known, why in unreadable.items():
        if known.step in steps:
            raise CorruptObject(f"which {kind} is the latest is not known, name one by its fingerprint: {why}")
    return max((m for m in manifests if m.kind == kind), key=_started_at, default=None)


def _started_at(manifest: Manifest) -> float:
    return float(manifest.facts.get("started_at", 0))


def list_artifacts(settings: Settings, kind: str) -> Shown:
    """``dalle ls``."""
    store = open_store(settings)
    names: dict[str, list[str]] = {}
    for name, target in store.refs().items():
        names.setdefault(target, []).append(name)
    manifests, unreadable = inventory(store)
    manifests.sort(key=_started_at)
    withdrawn = tainted(store, manifests)
    rows = [m for m in manifests if kind in ("", m.kind, m.step)]
    lines = [f"{'stage':14} {'kind':12} {'fingerprint':13} {'rows':>9} {'MB':>9} {'made':17} names"]
    for m in rows:
        seconds = float(m.facts.get("started_at", 0)) + float(m.facts.get("seconds", 0))
        made = datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
        lines.append(
            f"{m.step:14} {m.kind:12} {m.fingerprint[:12]:13} {m.rows:9,} {m.bytes / 1e6:9.2f} {made:17} {' '.join(names.get(m.fingerprint, []))}"
            + (" (withdrawn pairs)" if m.fingerprint in withdrawn else "")
        )
    if not rows:
        lines = [
            f"{store.uri} holds no artifact{' of kind ' + kind if kind else ''}; make some with `dalle run quickstart`"
        ]
    lines += [f"not listed: {why}" for why in unreadable.values()]
    entries = [
        _entry(store, m) | {"names": names.get(m.fingerprint, []), "withdrawn": withdrawn.get(m.fingerprint, "")}
        for m in rows
    ]
    return {"artifacts": entries, "unreadable": {k.fingerprint: why for k, why in unreadable.items()}}, lines


def _entry(store: Store, m: Manifest) -> dict[str, Any]:
    ref = m.ref(store.manifest_uri(m.step, m.fingerprint))
    return ref.model_dump() | {"started_at": m.facts.get("started_at"), "seconds": m.facts.get("seconds")}


def show(settings: Settings, ref: str) -> Shown:
    """``dalle show``."""
    store = open_store(settings)
    m = store.resolve(ref)
    lines = [
        f"{m.step} {m.fingerprint}",
        f"  kind {m.kind}, {m.rows:,} rows, {m.bytes / 1e6:.2f} MB, step version {m.step_version}",
        f"  manifest {m.sha256}",
    ]
    withdrawn = tainted(store, all_manifests(store)).get(m.fingerprint, "")
    lines += [f"  {withdrawn}: run the chain again, it leaves them out"] if withdrawn else []
    lines += [f"  input {i.name}: {i.step} {i.fingerprint[:12]}" for i in m.inputs]
    lines += [f"  {name}: {value}" for name, value in _flat(m.config)]
    lines += ["  figures:"] + [f"    {name}: {_short(value)}" for name, value in _flat(m.stats)]
    lines += ["  objects:"] + [f"    {o.role:22} {o.rows:8,} rows {o.bytes / 1e6:9.3f} MB  {o.key}" for o in m.objects]
    lines += ["  facts:"] + [f"    {name}: {_short(value)}" for name, value in _flat(m.facts)]
    return m.model_dump(mode="json") | {"sha256": m.sha256, "withdrawn": withdrawn}, lines


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _flat(value, f"{prefix}{key}.")
    else:
        yield prefix.rstrip("."), tree


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 100 else text[:97] + "..."


def verify(settings: Settings, ref: str) -> tuple[dict[str, Any], list[str], bool]:
    """``dalle verify``: reads every object of the artifact."""
    store = open_store(settings)
    manifest = store.resolve(ref)
    problems = store.verify(manifest)
    lines = [f"{key}: {problem}" for key, problem in problems]
    if problems:
        lines.append(
            f"{len(problems)} of {len(manifest.objects)} objects are damaged; run the step again to make them anew, or restore the store"
        )
    else:
        lines.append(
            f"{manifest.step} {manifest.fingerprint[:12]}: all {len(manifest.objects)} objects ({manifest.bytes / 1e6:.2f} MB) match their hashes"
        )
    withdrawn = tainted(store, all_manifests(store)).get(manifest.fingerprint, "")
    if withdrawn:
        lines.append(
            f"{manifest.step} {manifest.fingerprint[:12]}: {withdrawn}; run the chain again, it leaves them out"
        )
    payload = {
        "fingerprint": manifest.fingerprint,
        "withdrawn": withdrawn,
        "objects": len(manifest.objects),
        "problems": [{"key": k, "problem": p} for k, p in problems],
    }
    return payload, lines, not problems


def explain(settings: Settings, what: str, config: PipelineConfig) -> Shown:
    """``dalle explain``: of an artifact, why it was made; of a stage, whether it would run with this config and why."""
    if what.replace("_", "-") in STAGES:
        return _explain_stage(settings, stage_named(what).name, config)
    store = open_store(settings)
    m = store.resolve(what)
    before = [other for other in all_manifests(store) if other.step == m.step and _started_at(other) < _started_at(m)]
    lines = [f"{m.step} {m.fingerprint[:12]} was {m.facts.get('decision', 'made')}"]
    lines += [f"  it read {i.name} = {i.step} {i.fingerprint[:12]}" for i in m.inputs]
    changes = difference(before[-1], m) if before else []
    if before:
        lines.append(f"  against the {m.step} before it, {before[-1].fingerprint[:12]}:")
        lines += [f"    {change}" for change in changes] or ["    no difference is recorded"]
    else:
        lines.append(f"  it is the first {m.step} in this store")
    return {"fingerprint": m.fingerprint, "decision": m.facts.get("decision"), "changes": changes}, lines


def _explain_stage(settings: Settings, name: str, config: PipelineConfig) -> Shown:
    from flows.pipeline import chain
    from tasks.plain import NotCommitted, bind, only_reuse

    try:
        results = chain(config, settings, bind(only_reuse))
    except NotCommitted as needed:
        first, reason = needed.stage.name, _reason(open_store(settings), needed.planned)
        order = list(STAGES)
        reuse = order.index(first) > order.index(name)
        if reuse:
            decision = f"would be reused; the first stage to run is {first}"
        elif first == name:
            decision = f"would run: {reason}"
        else:
            decision = f"would run: it depends on {first}, which has to run first: {reason}"
        return {"stage": name, "reuse": reuse, "first": first, "decision": decision}, [f"{name} {decision}"]
    ref = results[name].ref
    return {"stage": name, "reuse": True, "decision": results[name].decision, "fingerprint": ref.fingerprint}, [
        f"{name} would be {results[name].decision} ({ref.fingerprint[:12]})"
    ]


def _reason(store: Store, planned: Plan) -> str:
    """Why a planned step has work to do: what separates it from the most similar artifact of its stage."""
    made = [m for m in all_manifests(store) if m.step == planned.stage.name]
    if not made:
        return f"{store.uri} holds no artifact of {planned.stage.name}"
    nearest = min(made, key=lambda m: len(difference(m, planned.blank())))
    changes = difference(nearest, planned.blank())
    return (
        f"against {nearest.fingerprint[:12]}, {'; '.join(changes)}"
        if changes
        else f"objects of {nearest.fingerprint[:12]} are missing or damaged"
    )


def rollback(settings: Settings, name: str) -> Shown:
    """``dalle rollback``."""
    store = open_store(settings)
    value = store.rollback(name)
    return {"name": name, "fingerprint": value.fingerprint}, [f"{name} is again {value.step} {value.fingerprint[:12]}"]


def sweep(
    settings: Settings, older_than_h: float, dry_run: bool, forgotten: bool = False, pairs: bool = False
) -> Shown:
    """``dalle sweep``. UsageError for ``pairs`` without ``forgotten``."""
    if pairs and not forgotten:
        raise UsageError("--pairs erases withdrawn pairs from shards that are still needed; give --forgotten --pairs")
    store = open_store(settings)
    verb = "would remove" if dry_run else "removed"
    lines, erased, blanked = [], None, None
    if forgotten:
        erased = erase(store, dry_run=dry_run)
        lines = [f"{verb} {m.step} {m.fingerprint[:12]}, made with withdrawn pairs" for m in erased.removed]
        lines += [f"stays: {fingerprint[:12]}: {why}" for fingerprint, why in erased.stays.items()]
    if erased is not None and pairs:
        blanked = erase_pairs(store, settings, erased, dry_run=dry_run)
        would = "would erase" if dry_run else "erased"
        lines += [f"{would} {count} withdrawn pairs in {f[:12]}" for f, count in blanked.artifacts.items()]
        lines += [f"not erased yet in {f[:12]}: {why}" for f, why in blanked.waits.items()]
    report = store.sweep(older_than_s=older_than_h * 3600, dry_run=dry_run)
    lines += [f"{verb} {len(report.removed)} objects, {report.bytes / 1e6:.2f} MB", *report.removed[:20]]
    payload: dict[str, Any] = {"removed": report.removed, "bytes": report.bytes}
    if erased is not None:
        payload |= {"artifacts": [m.fingerprint for m in erased.removed], "stays": erased.stays}
    if blanked is not None:
        payload |= {"erased_pairs": blanked.artifacts, "not_erased": blanked.waits}
    return payload, lines


def export(settings: Settings, ref: str, place: str) -> Shown:
    """``dalle export``: pairs as an imagefolder, a model as a folder; either also under an ``s3://`` address."""
    from tasks.export import export_pairs

    store = open_store(settings)
    manifest = store.resolve(ref)
    if manifest.kind == "model":
        from tasks.export_model import export_model

        wrote = export_model(store, manifest, place, settings)
        where = place if "://" in place else str(Path(place).absolute())
        return {"folder": where, **wrote}, [
            f"{wrote['files']} files, {wrote['bytes'] / 1e6:.1f} MB are in {where}; "
            f'load them with TextToImage.from_pretrained("{where}")'
        ]
    counts = export_pairs(store, manifest, place, settings)
    where = place if "://" in place else str(Path(place).absolute())
    lines = [f"{counts['pairs']:,} pairs and {counts['rejected']:,} rejected rows are in {where}"]
    if counts["withdrawn"]:
        lines.append(f"{counts['withdrawn']:,} pairs are left out: they were withdrawn by dalle forget")
    return {"folder": where, **counts}, lines


def list_presets() -> Shown:
    """``dalle presets``."""
    docs = {name: (make.__doc__ or "").strip() for name, make in PRESETS.items()}
    return {"presets": docs}, [f"{name}\n    {doc}" for name, doc in docs.items()]


def show_config(config: PipelineConfig) -> Shown:
    """``dalle config``."""
    return config.model_dump(mode="json"), list(_describe(config, ""))


def _describe(section: BaseModel, prefix: str) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        path = f"{prefix}{name}".removeprefix("fit.")
        if isinstance(value, BaseModel):
            yield f"\n[{path}] {(type(value).__doc__ or '').strip().splitlines()[0]}"
            yield from _describe(value, f"{prefix}{name}.")
        else:
            yield f"{path} = {value!r}   ({allowed_range(field)}) {field.description or ''}".rstrip()


def doctor(settings: Settings) -> tuple[dict[str, Any], list[str], bool]:
    """``dalle doctor``: what this machine has, and whether each part can do its work."""
    examinations = {"versions": _versions, "devices": _devices, "disk": _disk, "store": _store, "prefect": _prefect}
    checks = [_check(name, examination, settings) for name, examination in examinations.items()]
    lines = [f"{'ok  ' if good else 'FAIL'} {name:9} {text}" for name, good, text in checks]
    return (
        {"checks": [{"name": n, "ok": ok, "text": text} for n, ok, text in checks]},
        lines,
        all(good for _, good, _ in checks),
    )


def _check(name: str, examine: Callable[[Settings], str], settings: Settings) -> tuple[str, bool, str]:
    try:
        return name, True, examine(settings)
    except DalleError as error:
        return name, False, str(error)
    except Exception as error:  # a doctor reports an illness, it does not catch it
        return name, False, f"{type(error).__name__}: {error}"


def _versions(_: Settings) -> str:
    names = ("prefect", "torch", "datasets", "pyarrow", "pillow", "s3fs", "transformers", "fastapi", "sqlalchemy")
    return f"python {platform.python_version()}, " + ", ".join(f"{n} {importlib.metadata.version(n)}" for n in names)


def _devices(settings: Settings) -> str:
    from tasks import devices

    runtime = devices.resolve(
        devices.DevicePolicy(settings.device, settings.dtype, settings.num_threads, settings.memory_fraction)
    )
    free = devices.free_memory_bytes(runtime) / 1e9
    return (
        f"{runtime.device}, {str(runtime.dtype).removeprefix('torch.')}, {runtime.threads} threads, {free:.1f} GB free"
    )


def _disk(settings: Settings) -> str:
    settings.spool.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(settings.spool).free / 1e9
    if free < 2:
        raise DalleError(
            f"the spool folder {settings.spool} has {free:.1f} GB free, less than 2; set DALLE_SPOOL to another disk"
        )
    return f"spool {settings.spool}, {free:.0f} GB free"


def _store(settings: Settings) -> str:
    store = open_store(settings)
    probe = store.probe()
    promise = (
        "create-only writes honoured" if probe.create_only else "create-only writes IGNORED: run one writer at a time"
    )
    return f"{store.uri}: {promise}; {probe.detail}"


def _prefect(_: Settings) -> str:
    from flows.temporary_server import api_is_configured, configured_api

    if not api_is_configured():
        return "no API configured: `dalle run` starts Prefect's temporary server, `dalle up` a lasting one"
    import httpx

    url = configured_api()
    try:
        version = httpx.get(f"{url}/admin/version", timeout=5).raise_for_status().text
    except httpx.HTTPError as error:
        raise DalleError(
            f"the Prefect API {url} does not answer ({type(error).__name__}); start it with `dalle up`, or unset PREFECT_API_URL"
        ) from None
    return f"API {url}, server {version}"
