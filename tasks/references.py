"""Names for artifacts, and everything else by which a person may call one.

A name is a small mutable record ``refs/<name>.json``; all else in the store is written once. Its history is kept, so a
promotion can be undone and looked into.
"""

import contextlib
import difflib
import logging
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from dalle_model.errors import CommitConflict, CorruptObject, RefNotFound, StoreError, UsageError
from tasks.artifacts import Manifest
from tasks.sealed import seal, unseal

if TYPE_CHECKING:
    from tasks.store import Store

log = logging.getLogger(__name__)

NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_HEX = re.compile(r"[0-9a-f]{4,64}")
_MANIFEST = re.compile(r"manifests/([A-Za-z0-9_-]+)/([0-9a-f]{64})\.json")
_MAX_HISTORY = 1000


class Target(BaseModel):
    """What a name pointed at, and since when (UTC, ISO 8601)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: str
    kind: str
    fingerprint: str
    since: str
    note: str = ""


class RefValue(BaseModel):
    """A name's record. ``previous`` is what a rollback goes back through; ``history`` every target there was."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    current: Target
    previous: tuple[Target, ...] = ()
    history: tuple[Target, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the artifact the name points at."""
        return self.current.fingerprint

    @property
    def step(self) -> str:
        """Step that made it."""
        return self.current.step

    @property
    def kind(self) -> str:
        """Kind of that artifact."""
        return self.current.kind


class Known(NamedTuple):
    """An artifact as a listing shows it."""

    step: str
    fingerprint: str


def ref_key(name: str) -> str:
    """Key of a name. UsageError for a name that is malformed or reads like a fingerprint."""
    if not NAME.fullmatch(name) or len(name) > 100:
        raise UsageError(f"{name!r} cannot be a name: at most 100 of a-z 0-9 . _ - and a letter or digit first")
    if _HEX.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a name: it reads like the start of a fingerprint; add a letter beyond f, or a dash"
        )
    return f"refs/{name}.json"


def parse_ref(name: str, data: bytes, where: str) -> RefValue:
    """A stored name. Raises CorruptObject when damaged, also when it was stored for another name."""
    try:
        value = RefValue(**unseal(data, where))
    except (CorruptObject, ValidationError, TypeError):
        raise CorruptObject(
            f"{where} is damaged; set the name again with `dalle promote REF --as {name} --force`"
        ) from None
    if value.name != name:
        raise CorruptObject(
            f"{where} holds the record of {value.name!r}; set the name again with `dalle promote REF --as {name} --force`"
        )
    return value


def set_ref(store: "Store", name: str, manifest: Manifest, note: str, expect: str | None) -> RefValue:
    """Point a name at an artifact, keeping every target it had. See ``Store.set_ref``."""
    target = Target(step=manifest.step, kind=manifest.kind, fingerprint=manifest.fingerprint, since=_now(), note=note)

    def move(old: RefValue | None) -> RefValue:
        if expect is not None and (old.fingerprint if old else "") != expect:
            raise CommitConflict(
                f"the name {name!r} points at {old.fingerprint[:12] if old else 'nothing'}, "
                f"not at {expect[:12] or 'nothing'}; look again and repeat"
            )
        if old is None:
            return RefValue(name=name, current=target, history=(target,))
        if old.fingerprint == target.fingerprint and note in ("", old.current.note):
            return old
        if old.fingerprint == target.fingerprint:  # another word on the same artifact: nothing to go back to
            return old.model_copy(update={"current": target, "history": (*old.history, target)[-_MAX_HISTORY:]})
        return RefValue(
            name=name,
            current=target,
            previous=(*old.previous, old.current),
            history=(*old.history, target)[-_MAX_HISTORY:],
        )

    return _change(store, name, move)


def rollback(store: "Store", name: str) -> RefValue:
    """Point a name at what it pointed at before. See ``Store.rollback``."""

    def move(old: RefValue | None) -> RefValue:
        if old is None:
            raise RefNotFound(f"there is no name {name!r} in {store.uri}{_near(name, list(store.refs()))}")
        if not old.previous:
            raise RefNotFound(
                f"the name {name!r} has pointed at {old.fingerprint[:12]} only; there is nothing to go back to"
            )
        target = old.previous[-1].model_copy(update={"since": _now(), "note": f"back from {old.fingerprint[:12]}"})
        if store.find(target.step, target.fingerprint) is None:
            raise RefNotFound(
                f"the artifact {target.step} {target.fingerprint[:12]} that {name!r} had before "
                f"is gone from {store.uri}; the name stays"
            )
        return RefValue(
            name=name, current=target, previous=old.previous[:-1], history=(*old.history, target)[-_MAX_HISTORY:]
        )

    return _change(store, name, move)


def _change(store: "Store", name: str, move: Any) -> RefValue:
    """Read, change, write if nobody else did meanwhile; again if so."""
    key = ref_key(name)
    for _ in range(20):
        found = store.backend.get_tagged(key)
        old = None
        if found is not None:
            try:
                old = parse_ref(name, found.data, store.url(key))
            except CorruptObject as error:
                with contextlib.suppress(CorruptObject):
                    store.read_ref(name)  # looks again and again
                    continue  # it was damaged on its way here
                log.warning("%s; its history is lost", error)
        new: RefValue = move(old)
        if new is old or store.backend.replace(key, seal(new.model_dump(mode="json")), found.tag if found else None):
            return new
    raise StoreError(f"the name {name!r} in {store.uri} was changed by others 20 times in a row; try again")


def resolve(store: "Store", ref: str) -> Manifest:
    """The artifact a person means. See ``Store.resolve``."""
    if not ref:
        raise RefNotFound(
            "an empty reference; give a fingerprint, the start of one, a manifest's URI or a name (see `dalle ls`)"
        )
    if ref.endswith(".json") or "/" in ref:
        return _by_uri(store, ref)
    if NAME.fullmatch(ref) and not _HEX.fullmatch(ref):
        value = store.read_ref(ref)
        if value is None:
            raise _not_found(store, ref)
        manifest = store.find(value.current.step, value.fingerprint)
        if manifest is None:
            raise RefNotFound(
                f"the name {ref!r} points at {value.current.step} {value.fingerprint[:12]}, "
                f"which is gone from {store.uri}; roll it back or set it again"
            )
        return manifest
    return _by_prefix(store, ref.lower())


def is_free_name(store: "Store", ref: str) -> bool:
    """Whether a reference is a name that nothing was given yet: no fingerprint, no URI, no name whose artifact is gone."""
    return bool(NAME.fullmatch(ref)) and not _HEX.fullmatch(ref) and store.read_ref(ref) is None


def _by_prefix(store: "Store", prefix: str) -> Manifest:
    if not _HEX.fullmatch(prefix):
        raise _not_found(store, prefix)
    matches = [known for known in store.artifacts() if known.fingerprint.startswith(prefix)]
    if len(matches) > 1:
        listed = ", ".join(f"{known.step} {known.fingerprint[: len(prefix) + 6]}" for known in matches[:6])
        raise RefNotFound(f"{prefix!r} is the start of {len(matches)} artifacts: {listed}; give more digits")
    manifest = store.find(*matches[0]) if matches else None
    if manifest is None:
        raise _not_found(store, prefix)
    return manifest


def _by_uri(store: "Store", ref: str) -> Manifest:
    match = _MANIFEST.search(ref)
    if not match or not ref.endswith(match[0]):
        raise RefNotFound(f"{ref!r} is no manifest's URI; one ends in manifests/STEP/FINGERPRINT.json (see `dalle ls`)")
    place = ref[: match.start()].rstrip("/")
    if place and place != store.uri:
        with contextlib.suppress(UsageError):
            place = type(store).open(place).uri
        if place != store.uri:
            raise RefNotFound(f"{ref} lies in another store than {store.uri}; give --store {place}")
    manifest = store.find(match[1], match[2])
    if manifest is None:
        raise _not_found(store, match[2])
    return manifest


def _not_found(store: "Store", ref: str) -> RefNotFound:
    names = list(store.refs())
    prints = [known.fingerprint[: max(len(ref), 12)] for known in store.artifacts()]
    if len(ref) < 4:
        return RefNotFound(
            f"no name {ref!r} in {store.uri}, and the start of a fingerprint needs 4 digits at least{_near(ref, names)}"
        )
    return RefNotFound(f"no artifact answers to {ref!r} in {store.uri}{_near(ref, [*names, *prints])}")


def _near(ref: str, known: list[str]) -> str:
    if not known:
        return "; the store is empty: run a pipeline first, or give another --store"
    near = difflib.get_close_matches(ref, known, n=3, cutoff=0.5) or [k for k in known if k.startswith(ref[:3])][:3]
    return f"; near: {', '.join(near)}" if near else "; `dalle ls` shows what is there"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
