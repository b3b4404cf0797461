"""Removing what nobody names: the only code that deletes objects by its own judgement."""

import logging
import secrets
import time
from typing import TYPE_CHECKING, NamedTuple

from dalle_model.errors import CorruptObject, StoreError
from tasks.backends import Stat

if TYPE_CHECKING:
    from tasks.store import Store

log = logging.getLogger(__name__)


class SweepReport(NamedTuple):
    """What a sweep removed, or would remove: keys, their bytes, and how many data objects stay."""

    removed: tuple[str, ...]
    bytes: int
    kept: int
    dry_run: bool


def sweep(store: "Store", older_than_s: float, dry_run: bool) -> SweepReport:
    """Remove data objects that no manifest and no receipt names, receipts of finished steps, and torn writes.

    Only what is older than ``older_than_s`` goes: a live writer's objects are named at the end of its step. Objects
    are listed before the manifests are read, and looked at again before they go: ``put`` makes an old one young.
    Raises CorruptObject when a manifest is damaged, as what it names is then unknown.
    """
    start = _clock(store)

    def old(stat: Stat) -> bool:
        return start - stat.modified > older_than_s

    objects = list(store.backend.walk("data/"))
    removed = [(key, stat) for key, stat in store.backend.walk("probe/") if old(stat)]
    finished, named = _named_by_manifests(store)
    for key, stat in store.backend.walk("parts/"):
        fingerprint = key.split("/")[1]
        if fingerprint in finished and old(stat):
            removed.append((key, stat))
        else:
            named |= store.named_by_receipt(key)
    removed += [(key, stat) for key, stat in objects if key not in named and old(stat)]
    gone = []
    for key, stat in removed:
        now = store.backend.stat(key)
        if now is None or not old(now):
            continue
        gone.append((key, stat.bytes))
        if not dry_run:
            store.backend.delete(key)
    torn = store.backend.leftovers(older_than_s, start, dry_run)
    swept = sum(key.startswith("data/") for key, _ in gone)
    return SweepReport((*(key for key, _ in gone), *torn), sum(size for _, size in gone), len(objects) - swept, dry_run)


def _clock(store: "Store") -> float:
    """The time as the store tells it, Unix seconds: its files are dated by its clock, and another machine's may differ."""
    key = f"probe/{secrets.token_hex(8)}"
    try:
        store.backend.write(key, b"")
        stat = store.backend.stat(key)
        store.backend.delete(key)
    except StoreError:  # full, or not ours to write: a dry run is asked here, too
        stat = None
    return stat.modified if stat else time.time()


def _named_by_manifests(store: "Store") -> tuple[set[str], set[str]]:
    finished: set[str] = set()
    named: set[str] = set()
    for step, fingerprint in store.artifacts():
        try:
            manifest = store.find(step, fingerprint)
        except CorruptObject as error:
            raise CorruptObject(f"nothing is swept while a manifest is unreadable: {error}") from error
        if manifest is not None:
            finished.add(fingerprint)
            named.update(o.key for o in manifest.objects)
    return finished, named
