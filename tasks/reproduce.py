"""Compute an evaluation again from what its manifest records, and hold every figure against the stored one."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from dalle_model.errors import DataError, UsageError
from tasks.artifacts import ArtifactRef, Manifest, fingerprint
from tasks.job import load_ancestor
from tasks.launch import Listener, launch
from tasks.settings import Settings
from tasks.stages import EVALUATE
from tasks.step import Plan, job_spec
from tasks.store import Store

REPRODUCES = "reproduces"
"""Name of the outside input that tells a reproduction from an evaluation: the fingerprint it repeats."""


@dataclass(frozen=True)
class Reproduction:
    """Stored and repeated figures by name; ``objects``: role -> whether the bytes are the same."""

    original: Manifest
    repeated: Manifest
    figures: Mapping[str, tuple[float | None, float | None]]
    objects: Mapping[str, bool]

    @property
    def differing(self) -> list[str]:
        """Figures that did not come out to the last digit."""
        return [name for name, (before, now) in self.figures.items() if before != now]


def is_reproduction(evaluation: Manifest) -> bool:
    """Whether an evaluation repeats another one."""
    return REPRODUCES in evaluation.config.get("outside", {})


def split_id(identifier: str) -> tuple[str, str]:
    """``EVALUATION[:FIGURE]`` -> (reference, figure or "")."""
    ref, _, figure = identifier.partition(":")
    if "/" in figure:  # a manifest's URI has a colon of its own
        ref, figure = identifier, ""
    return ref, figure


def reproduce(store: Store, original: Manifest, settings: Settings, listener: Listener) -> Reproduction:
    """Run the evaluation anew, as an artifact of its own, on the kind of device and number of threads of the first time.

    Raises UsageError when the artifact is no evaluation or one of another version of the step.
    """
    if original.kind != EVALUATE.kind:
        raise UsageError(
            f"{original.fingerprint[:12]} is of kind {original.kind}; --reproduce takes an evaluation: `dalle ls --kind evaluation` shows those"
        )
    if original.step_version != EVALUATE.version:
        raise UsageError(
            f"evaluation {original.fingerprint[:12]} was made by version {original.step_version} of the step, this is version {EVALUATE.version}; "
            "install the release that made it (infra/CHANGES.md lists the versions)"
        )
    planned = _planned(store, original)
    launch(
        job_spec(planned, _as_then(settings, original), f"reproduces {original.fingerprint[:12]}"), settings, listener
    )
    repeated = store.find(EVALUATE.name, planned.fingerprint)
    if repeated is None:
        raise DataError(f"the reproduction is not in {store.uri}; is the store being deleted while it is used?")
    before, now = (_figures(store, m) for m in (original, repeated))
    figures = {name: (before.get(name), now.get(name)) for name in sorted(before.keys() | now.keys())}
    theirs = {o.role: o.sha256 for o in repeated.objects}
    objects = {o.role: theirs.get(o.role) == o.sha256 for o in original.objects}
    return Reproduction(original, repeated, figures, objects)


def _planned(store: Store, original: Manifest) -> Plan:
    inputs: dict[str, ArtifactRef] = {}
    for used in original.inputs:
        found = load_ancestor(store, original, used.name)
        inputs[used.name] = found.ref(store.manifest_uri(found.step, found.fingerprint))
    # The time makes it another artifact each time: a look-up would prove nothing.
    outside = {REPRODUCES: original.fingerprint, "at": datetime.now(UTC).isoformat()}
    recorded: dict[str, Any] = original.config["config"]
    digests = {name: ref.fingerprint for name, ref in inputs.items()} | outside
    address = fingerprint(EVALUATE.name, EVALUATE.version, recorded, digests)
    return Plan(EVALUATE, EVALUATE.config.model_validate(recorded), recorded, outside, inputs, address)


def _as_then(settings: Settings, original: Manifest) -> Settings:
    """Last digits depend on the device, the precision and the number of threads."""
    facts = original.facts
    then = {"device": str(facts.get("device", settings.device)), "dtype": facts.get("dtype", settings.dtype)}
    return settings.model_copy(update=then | {"threads": int(facts.get("threads", settings.threads))})


def _figures(store: Store, evaluation: Manifest) -> dict[str, float]:
    figures: dict[str, float] = json.loads(store.read(evaluation.object_of("metrics")))["metrics"]
    return figures
