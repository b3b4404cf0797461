"""What a stage's work function receives and returns. It runs in a child process; see ``tasks.worker``."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pydantic import BaseModel

from dalle_model.config import Section
from dalle_model.errors import DataError
from tasks.artifacts import ArtifactRef, Manifest, ObjectRef, Part
from tasks.faults import fault_point
from tasks.place import Place
from tasks.settings import Settings
from tasks.store import Store

if TYPE_CHECKING:
    from dalle_model.runtime import Runtime


class StopRequested(BaseException):
    """SIGTERM arrived. Not an Exception, so that no handler for bad data swallows it."""


class JobSpec(BaseModel):
    """Everything the child needs to know, as JSON."""

    work: str
    stage: str
    step_version: int
    kind: str
    config: dict[str, Any]
    recorded_config: dict[str, Any]
    inputs: tuple[tuple[str, ArtifactRef], ...]
    fingerprint: str
    traces: tuple[str, ...] = ()
    decision: str
    settings: dict[str, Any]
    parent_pid: int
    pieces: tuple[int, int] | None = None


@dataclass(frozen=True)
class Outcome:
    """What a stage made. ``objects`` and ``stats`` must be the same at every run; ``facts`` may differ."""

    objects: tuple[ObjectRef, ...]
    rows: int
    stats: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)


class Events:
    """JSON lines to the parent: progress, log, done, error, and a heartbeat."""

    def __init__(self, stream: IO[str], spoken: frozenset[str] | None = None) -> None:
        self._stream = stream
        self._spoken = spoken  # None = all; of several ranks one reports, but each may fail
        self._lock = threading.Lock()

    def send(self, event: str, **values: Any) -> None:
        """Write one event; a parent that is gone is noticed elsewhere."""
        if self._spoken is not None and event not in self._spoken:
            return
        line = json.dumps({"event": event, **values}, default=str)
        with self._lock:
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except (BrokenPipeError, ValueError):
                pass


def load_input(store: Store, name: str, ref: ArtifactRef) -> Manifest:
    """The manifest behind a reference. Raises DataError when the store does not hold it or holds another one."""
    manifest = store.find(ref.step, ref.fingerprint)
    if manifest is None:
        raise DataError(
            f"input {name} ({ref.step} {ref.fingerprint[:12]}) is not in {store.uri}; run that step first, or name the store that has it"
        )
    if not manifest.answers_to(ref.manifest_sha256):
        raise DataError(
            f"input {name} ({ref.step} {ref.fingerprint[:12]}) was replaced in {store.uri} since this run began; start again"
        )
    return manifest


def load_ancestor(store: Store, manifest: Manifest, name: str) -> Manifest:
    """The input of an artifact that its manifest calls ``name``. Raises DataError when it is no longer in the store."""
    for used in manifest.inputs:
        if used.name == name:
            found = store.find(used.step, used.fingerprint)
            if found is not None and found.answers_to(used.manifest_sha256):
                return found
            raise DataError(
                f"{manifest.step} {manifest.fingerprint[:12]} was made from {used.step} {used.fingerprint[:12]}, which {store.uri} does not hold any more"
            )
    raise DataError(
        f"{manifest.step} {manifest.fingerprint[:12]} has no input named {name!r}; it has {', '.join(i.name for i in manifest.inputs) or 'none'}"
    )


class Job:
    """One run of one stage: its config, its inputs, its store, and how to report."""

    def __init__(
        self,
        spec: JobSpec,
        config: Section,
        settings: Settings,
        store: Store,
        spool: Path,
        events: Events,
        *,
        place: Place = Place(),  # noqa: B008 - frozen
    ):
        self.spec = spec
        self.config: Any = config
        self.settings = settings
        self.store = store
        self.spool = spool
        self.fingerprint = spec.fingerprint
        self.place = place
        self.rank, self.world = place.rank, place.world
        self.workers = settings.num_workers
        self._events = events
        self._stop = threading.Event()
        self._last_progress = 0.0

    @cached_property
    def inputs(self) -> dict[str, Manifest]:
        """Input manifests by name."""
        return {name: load_input(self.store, name, ref) for name, ref in self.spec.inputs}

    @cached_property
    def runtime(self) -> "Runtime":
        """Device, precision and threads of this process; the GPU stays leased until the process ends."""
        from tasks import devices  # torch is a second of start-up that data stages need not pay

        settings = self.settings
        policy = devices.DevicePolicy(settings.device, settings.dtype, settings.num_threads, settings.memory_fraction)
        runtime = devices.resolve(policy, self.place)
        self._lease = devices.lease_for(runtime, settings.lock_dir, wait_s=settings.gpu_wait_s, log=self.log)
        return runtime

    def device_facts(self) -> dict[str, Any]:
        """Where the numbers were computed, for the manifest's facts; empty when no device was asked for."""
        runtime = self.__dict__.get("runtime")
        if runtime is None:
            return {}
        return {
            "device": str(runtime.device),
            "dtype": str(runtime.dtype).removeprefix("torch."),
            "threads": runtime.threads,
            "ranks": runtime.world,
        }

    # receipts -----------------------------------------------------------------------------------------------------

    def parts(self) -> dict[int, Part]:
        """Receipts of the pieces that earlier runs finished."""
        return self.store.parts(self.fingerprint)

    @property
    def pieces(self) -> range | None:
        """The pieces that this job is to make, no more and no manifest; None for all of them and the artifact."""
        return None if self.spec.pieces is None else range(*self.spec.pieces)

    def commit_part(self, n: int, part: Part, fingerprint: str = "") -> None:
        """Record that piece ``n`` is finished; its objects must be in the store.

        fingerprint: what the receipt hangs on, for pieces that other artifacts share; empty = this step's own.
        """
        fault_point("part.before_receipt")
        self.store.commit_part(fingerprint or self.fingerprint, n, part)
        fault_point("part.after_receipt")
        self.check_stop()

    def put(self, source: bytes | Path, *, ext: str, role: str, rows: int = 0) -> ObjectRef:
        """Store bytes or a finished local file under its hash."""
        return self.store.put(source, ext=ext, role=role, rows=rows)

    def read(self, obj: ObjectRef) -> bytes:
        """An object's verified bytes."""
        return self.store.read(obj)

    def fetch(self, obj: ObjectRef) -> Path:
        """A verified local file with an object's bytes."""
        return self.store.fetch(obj, self.spool)

    # reporting ----------------------------------------------------------------------------------------------------

    def progress(self, done: int, total: int, unit: str = "rows", **figures: float) -> None:
        """``show_progress`` at a place where the work may stop: raises StopRequested after SIGTERM."""
        self.show_progress(done, total, unit, **figures)
        self.check_stop()

    def show_progress(self, done: int, total: int, unit: str = "rows", **figures: float) -> None:
        """Say how far the work is, of a total of 0 when that is not known; at most four times a second reach the parent."""
        now = time.monotonic()
        if done >= total > 0 or now - self._last_progress >= 0.25:
            self._last_progress = now
            self._events.send("progress", done=done, total=total, unit=unit, figures=figures)

    def show_picture(self, title: str, png_base64: str) -> None:
        """A picture to look at while the work goes on."""
        self._events.send("picture", title=title, png=png_base64)

    def log(self, text: str) -> None:
        """A line for a person."""
        self._events.send("log", text=text)

    # stopping -----------------------------------------------------------------------------------------------------

    def request_stop(self) -> None:
        """Called by the SIGTERM handler."""
        self._stop.set()

    @property
    def stop_requested(self) -> bool:
        """Whether SIGTERM arrived: finish the piece at hand, save, and return or raise StopRequested."""
        return self._stop.is_set()

    def check_stop(self) -> None:
        """Raise StopRequested after SIGTERM."""
        if self._stop.is_set():
            raise StopRequested

    # result -------------------------------------------------------------------------------------------------------

    def manifest(self, outcome: Outcome, facts: Mapping[str, Any]) -> Manifest:
        """The manifest that commits an outcome."""
        spec = self.spec
        inputs = tuple(ref.as_input(name) for name, ref in spec.inputs)
        return Manifest(
            kind=spec.kind,
            step=spec.stage,
            step_version=spec.step_version,
            fingerprint=spec.fingerprint,
            config=spec.recorded_config,
            inputs=inputs,
            objects=tuple(outcome.objects),
            rows=outcome.rows,
            stats=json.loads(json.dumps(outcome.stats)),  # tuples become lists now, not at the next reading
            facts={**facts, **outcome.facts},
        )


Work = Callable[[Job], Outcome]
