"""The step: look the result up by its fingerprint, or make it in a child process and commit it.

A plain function first. The Prefect task around it (``tasks.prefect_tasks``) adds a name, retries and the UI.
"""

import importlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from dalle_model.config import Section
from dalle_model.errors import UsageError
from dalle_model.sources.telling import Tell, silent
from tasks.artifacts import ArtifactRef, Manifest, fingerprint
from tasks.job import JobSpec
from tasks.launch import Listener, launch
from tasks.removals import warnings_of
from tasks.s3_client import StoreOptions
from tasks.settings import Settings
from tasks.store import Store

# What a stage's identity function returns: the config as it enters the fingerprint, and digests of outside inputs. It may
# add their traces, one text per input that changes whenever it is written, or "": taken before the digests, they tell the
# step without another reading that all stayed as it was. It says how far it is, where that may take long.
Identity = Callable[
    [Any, Settings, Tell],
    tuple[dict[str, Any], dict[str, str]] | tuple[dict[str, Any], dict[str, str], tuple[str, ...]],
]
# What a stage's outside function returns: more digests of outside inputs.
Outside = Callable[[Any, Mapping[str, ArtifactRef], Settings], dict[str, str]]
# How many pieces a stage has, as far as that is known before they are made.
Pieces = Callable[[Any, Mapping[str, ArtifactRef], Settings], int]


@dataclass(frozen=True)
class Stage:
    """The constant facts of one stage of the chain.

    version: raised by hand when the meaning of the output changes; it is part of every fingerprint.
    kind: of the artifact it makes. inputs: names of the artifacts it reads, which are their kinds. optional: those it
    can do without, named likewise; one that is given counts in the fingerprint. work: dotted path of its work function.
    identity: dotted path of an Identity, for stages that read something outside the store (a source, a prompt file):
    its content must count.
    outside: dotted path of an Outside, for stages where what counts beside the inputs depends on the inputs.
    pieces: dotted path of a Pieces, for stages whose pieces several processes or machines may share.
    distributed: whether it may run on several ranks.
    """

    name: str
    version: int
    kind: str
    config: type[Section]
    inputs: tuple[str, ...]
    work: str
    identity: str = ""
    outside: str = ""
    pieces: str = ""
    distributed: bool = False
    optional: tuple[str, ...] = ()


class StepResult(BaseModel):
    """What a step hands on: the reference, and how it came about."""

    model_config = ConfigDict(frozen=True)

    ref: ArtifactRef
    reused: bool
    seconds: float
    decision: str


@dataclass(frozen=True)
class Plan:
    """A step that is fully determined but not yet run."""

    stage: Stage
    config: Section
    recorded_config: dict[str, Any]
    outside: dict[str, str]
    inputs: dict[str, ArtifactRef]
    fingerprint: str
    traces: tuple[str, ...] = ()

    def blank(self) -> Manifest:
        """The manifest that this plan leads to, still without objects: for comparing it with artifacts."""
        inputs = tuple(ref.as_input(name) for name, ref in self.inputs.items())
        return Manifest(
            kind=self.stage.kind,
            step=self.stage.name,
            step_version=self.stage.version,
            fingerprint=self.fingerprint,
            config={"config": self.recorded_config, "outside": self.outside},
            inputs=inputs,
            objects=(),
            rows=0,
            stats={},
        )


def load_dotted(path: str) -> Any:
    """The object behind ``module:name``. Imported at use, so that the table of stages stays light."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def open_store(settings: Settings) -> Store:
    """The store that the settings name."""
    return Store.open(settings.store, options=StoreOptions(endpoint_url=settings.endpoint_url))


def input_ref(settings: Settings, ref: str, kind: str) -> ArtifactRef:
    """Resolve a person's reference (fingerprint, unique prefix, manifest URI or name) to an artifact of one kind.

    Raises RefNotFound, or UsageError when it is an artifact of another kind.
    """
    store = open_store(settings)
    manifest = store.resolve(ref)
    if manifest.kind != kind:
        raise UsageError(
            f"{ref!r} is of kind {manifest.kind}, but {kind} is needed here; `dalle ls --kind {kind}` shows those"
        )
    return manifest.ref(store.manifest_uri(manifest.step, manifest.fingerprint))


def plan(
    stage: Stage,
    config: Section,
    inputs: Mapping[str, ArtifactRef],
    settings: Settings,
    listener: Listener | None = None,
) -> Plan:
    """Compute the fingerprint, which may need all of a source to be read; the listener is told how far that is.

    Raises UsageError when the inputs are not those that the stage reads.
    """
    if not set(stage.inputs) <= set(inputs) <= {*stage.inputs, *stage.optional}:
        raise UsageError(
            f"step {stage.name} reads {', '.join(stage.inputs) or 'no artifact'}, but was given {', '.join(inputs) or 'none'}"
        )
    identity: Identity | None = load_dotted(stage.identity) if stage.identity else None
    recorded, outside, *more = (
        identity(config, settings, _telling(listener)) if identity else (config.model_dump(mode="json"), {})
    )
    if stage.outside:
        read: Outside = load_dotted(stage.outside)
        outside = outside | read(config, inputs, settings)
    digests = {name: ref.fingerprint for name, ref in inputs.items()} | outside
    return Plan(
        stage,
        config,
        recorded,
        outside,
        dict(inputs),
        fingerprint(stage.name, stage.version, recorded, digests),
        *more,
    )


def _telling(listener: Listener | None) -> Tell:
    """Words for a listener of step events."""
    if listener is None:
        return silent

    def tell(done: int, total: int, unit: str, **figures: float) -> None:
        listener({"event": "progress", "done": done, "total": total, "unit": unit, "figures": figures})

    return tell


def difference(before: Manifest, after: Manifest) -> list[str]:
    """What separates two artifacts of one stage: step version, settings, inputs; one line each."""
    changes = []
    if before.step_version != after.step_version:
        changes.append(f"step version {before.step_version} -> {after.step_version}")
    old, new = dict(_leaves(before.config)), dict(_leaves(after.config))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            changes.append(f"{key} {old.get(key)!r} -> {new.get(key)!r}")
    was = {i.name: i.fingerprint for i in before.inputs}
    changes += [
        f"input {i.name} {was.get(i.name, 'none')[:12]} -> {i.fingerprint[:12]}"
        for i in after.inputs
        if was.get(i.name) != i.fingerprint
    ]
    return changes


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}".removeprefix("."))
    else:
        yield path, tree


def look_up(planned: Plan, store: Store) -> tuple[Manifest | None, str]:
    """The committed manifest, if it is there and whole, and the reason in words."""
    manifest = store.find(planned.stage.name, planned.fingerprint)
    if manifest is None:
        return None, "made: no artifact has this fingerprint"
    missing = store.missing(manifest.objects)
    if missing:
        return (
            None,
            f"made again: {len(missing)} of {len(manifest.objects)} objects are gone from the store, first {missing[0].key}",
        )
    return manifest, "reused: an artifact with this fingerprint is committed"


def run_step(
    stage: Stage,
    config: Section,
    inputs: Mapping[str, ArtifactRef],
    settings: Settings,
    listener: Listener | None = None,
) -> StepResult:
    """Run one stage to a committed artifact, or find that it already is one.

    Raises what the stage raises (see ``dalle_model.errors``). Safe to call from several processes at once and to
    repeat after any interruption.
    """
    started = time.monotonic()
    listen = listener or (lambda event: None)
    store = open_store(settings)
    planned = plan(stage, config, inputs, settings, listener)
    manifest, decision = look_up(planned, store)
    reused = manifest is not None
    if manifest is None:
        listen({"event": "start", "stage": stage.name, "fingerprint": planned.fingerprint, "decision": decision})
        if not store.probe().create_only:
            listen(
                {
                    "event": "log",
                    "text": f"{store.uri} ignores create-only writes: run one writer at a time, or finished work may be overwritten",
                }
            )
        for text in warnings_of(store, inputs):
            listen({"event": "log", "text": text})
        launch(job_spec(planned, settings, decision), settings, listen, distributed=stage.distributed)
        manifest = store.find(stage.name, planned.fingerprint)
        if manifest is None:
            raise UsageError(
                f"step {stage.name} ended well but {store.uri} does not hold its manifest; is the store being deleted while it is used?"
            )
    else:
        listen({"event": "reused", "stage": stage.name, "fingerprint": planned.fingerprint, "decision": decision})
    ref = manifest.ref(store.manifest_uri(stage.name, planned.fingerprint))
    return StepResult(ref=ref, reused=reused, seconds=round(time.monotonic() - started, 3), decision=decision)


def job_spec(planned: Plan, settings: Settings, decision: str) -> JobSpec:
    """What the child process of a planned step is told."""
    stage = planned.stage
    return JobSpec(
        work=stage.work,
        stage=stage.name,
        step_version=stage.version,
        kind=stage.kind,
        config=planned.config.model_dump(mode="json"),
        recorded_config={"config": planned.recorded_config, "outside": planned.outside},
        inputs=tuple((n, planned.inputs[n]) for n in (*stage.inputs, *stage.optional) if n in planned.inputs),
        fingerprint=planned.fingerprint,
        traces=planned.traces,
        decision=decision,
        settings=settings.model_dump(mode="json"),
        parent_pid=os.getpid(),
    )
