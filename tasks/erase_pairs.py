"""The last bytes of withdrawn pairs: their rows in the shards of sound artifacts are made blank, in place.

A row stays where it is, for curated pairs point at shard and row; its picture, words and address go, its id and source
stay, by which every later run knows that it is withdrawn. New shards are written first, then the one manifest that
names them replaces the old one, then receipts and marks go: whoever reads meanwhile sees the old artifact or the new
one, both whole, and whoever was killed in between repeats the command.
"""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from dalle_model.errors import CommitConflict, CorruptObject
from tasks.artifacts import Manifest, ObjectRef
from tasks.faults import fault_point
from tasks.forget import Erased, Lineage
from tasks.removals import MARKS, Removals, removals_of, withdrawn_ids
from tasks.sealed import unseal
from tasks.settings import Settings
from tasks.shard_measures import SHARD
from tasks.spool import spool_folder
from tasks.store import Store
from tasks.tables import TableFile

_WORDS: dict[str, Any] = {"caption": "", "key": "", "author": "", "extra": "{}", "detail": ""}
_DERIVED: dict[str, Any] = {"masked": None, "personal_kinds": "", "picture": 0, "phash": 0}
_ROLES = {"pairs": ("pairs", "ledger"), "curated": ("features", "ledger")}


@dataclass(frozen=True)
class Blanked:
    """Artifacts whose withdrawn rows were made blank, with the number of these pairs, and those that must wait."""

    artifacts: dict[str, int]
    waits: dict[str, str]


@cache
def blank_picture() -> bytes:
    """What stands in the place of a withdrawn picture: it decodes, and shows nothing."""
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG")
    return out.getvalue()


def erase_pairs(store: Store, settings: Settings, erased: Erased, *, dry_run: bool = False) -> Blanked:
    """Make the withdrawn rows of pairs and sound curated pairs blank; ``erased`` is what ``forget.erase`` said.

    What an artifact that stays for its name was made from waits, for it still needs these pictures. A sweep then takes
    the shards that nobody names any more. Raises CommitConflict when another process replaced a manifest meanwhile.
    """
    removals = removals_of(store)
    if not removals:
        return Blanked({}, {})
    with spool_folder(settings.spool, "e" * 64) as spool:
        lineage = Lineage(store, spool)
        removed = {manifest.fingerprint for manifest in erased.removed}
        present = {f: m for f, m in lineage.manifests.items() if f not in removed}
        waits = _needed(present, erased.stays)
        pairs = [m for m in present.values() if m.kind == "pairs"]
        ids = {i for m in pairs for i in withdrawn_ids(store, m, removals, settings)}
        done: dict[str, int] = {}
        for manifest in (*pairs, *(m for m in present.values() if m.kind == "curated")):
            if manifest.fingerprint in waits:
                continue
            after, count = _blanked(store, manifest, ids, spool)
            if count:
                done[manifest.fingerprint] = count
                if not dry_run:
                    _replace(store, manifest, after)
                    fault_point("erase.after_manifest")
        if dry_run:
            return Blanked(done, waits)
        _drop_receipts(store)
        for manifest in pairs:
            if manifest.fingerprint not in waits:
                _drop_marks(store, manifest, removals)
    return Blanked(done, waits)


def _needed(present: Mapping[str, Manifest], stays: Mapping[str, str]) -> dict[str, str]:
    """Pairs and curated pairs behind what was made with withdrawn pairs and stays, with the reason."""
    waits: dict[str, str] = {}

    def wait(manifest: Manifest, why: str) -> None:
        if manifest.kind in ("pairs", "curated"):
            waits.setdefault(manifest.fingerprint, why)
        for used in manifest.inputs:
            if used.fingerprint in present:
                wait(present[used.fingerprint], why)

    for fingerprint, why in stays.items():
        if fingerprint in present and present[fingerprint].kind != "pairs":
            wait(present[fingerprint], why)
    return waits


def _blanked(store: Store, manifest: Manifest, ids: set[str], spool: Any) -> tuple[Manifest, int]:
    """The artifact without what it knows of these pairs, and how many of them it still knew. Nothing is committed."""
    known = pa.array(sorted(ids), pa.string())
    objects: list[ObjectRef] = []
    found: set[str] = set()
    shown = False
    for obj in manifest.objects:
        if obj.role not in _ROLES[manifest.kind]:
            objects.append(obj)
            continue
        after, hits = _blank_rows(store, obj, known, spool)
        objects.append(after)
        found.update(hits["id"].to_pylist())
        # Curation shows no picture that was withdrawn before; one that was dropped for another reason may be shown.
        shown |= obj.role == "ledger" and hits["reason"].to_pylist() != ["removed"] * hits.num_rows
    if not found:
        return manifest, 0
    if shown:
        objects = [_without_pictures(store, obj) for obj in objects]
    facts = {**manifest.facts, "blanked_pairs": manifest.facts.get("blanked_pairs", 0) + len(found)}
    replaces = (*manifest.replaces, manifest.sha256)
    return manifest.model_copy(update={"objects": tuple(objects), "replaces": replaces, "facts": facts}), len(found)


def _blank_rows(store: Store, obj: ObjectRef, known: pa.Array, spool: Any) -> tuple[ObjectRef, pa.Table]:
    """The object with the rows of these ids blank, and these rows as they were; the object itself where there are none."""
    with pq.ParquetFile(store.fetch(obj, spool)) as file:
        names = file.schema_arrow.names
        words = [name for name in ("id", "caption", "key", "reason") if name in names]
        rows = file.read(columns=words)
        alive = pc.not_equal(rows["key"], "")
        if "caption" in names:
            alive = pc.or_(alive, pc.not_equal(rows["caption"], ""))
        hits = rows.filter(pc.and_(pc.is_in(rows["id"], known), alive))
        if not hits.num_rows:
            return obj, hits
        blanks = {name: value for name, value in (_WORDS | _DERIVED).items() if name in names}
        if "image" in names:
            blanks["image"] = blank_picture()
        with TableFile(spool / f"blank-{obj.sha256}.parquet", file.schema_arrow) as out:
            for group in range(file.num_row_groups):
                out.add_table(_blank_group(file.read_row_group(group), known, blanks))
            after = store.put(out.finish(), ext="parquet", role=obj.role, rows=obj.rows)
    fault_point("erase.after_shard")
    return after, hits


def _blank_group(table: pa.Table, known: pa.Array, blanks: Mapping[str, Any]) -> pa.Table:
    hit = pc.is_in(table["id"], known)
    for name, value in blanks.items():
        field = table.schema.field(name)
        column = pc.if_else(hit, pa.scalar(value, field.type), table[name])
        table = table.set_column(table.schema.get_field_index(name), field, column)
    return table


def _without_pictures(store: Store, obj: ObjectRef) -> ObjectRef:
    """Sheets and reports that may show a withdrawn picture become an empty picture and an empty page."""
    if obj.role.startswith("sheet"):
        return store.put(blank_picture(), ext="png", role=obj.role)
    if obj.role == "report":
        return store.put(b"<!doctype html><title>withdrawn</title><p>Pairs were withdrawn.", ext="html", role=obj.role)
    return obj


def _replace(store: Store, before: Manifest, after: Manifest) -> None:
    """Put a manifest in the place of another, if it is still that one."""
    key = store.manifest_key(before.step, before.fingerprint)
    found = store.backend.get_tagged(key)
    same = found is not None and Manifest.from_bytes(found.data, store.url(key)).sha256 == before.sha256
    if not same or found is None or not store.backend.replace(key, after.to_bytes(), found.tag):
        raise CommitConflict(f"{store.url(key)} was changed by another process meanwhile; run this command again")


def _drop_receipts(store: Store) -> None:
    """Remove what was measured of shards that no artifact holds any more, and receipts of the blank artifacts."""
    held: set[str] = set()
    rewritten: set[str] = set()
    for step, fingerprint in store.artifacts():
        manifest = store.find(step, fingerprint)
        if manifest is not None and manifest.kind == "pairs":
            held.update(obj.key for obj in manifest.objects_of("pairs"))
            if manifest.replaces:
                rewritten.add(fingerprint)
    for key in store.keys("parts/"):
        if key.split("/")[1] in rewritten or _shard_of(store, key) not in (held | {""}):
            store.delete(key)
            fault_point("erase.after_receipt")


def _shard_of(store: Store, key: str) -> str:
    """The shard that a receipt was made from; empty for other receipts."""
    try:
        data = store.load(key)
        return "" if data is None else str(unseal(data, store.url(key))["part"]["stats"].get(SHARD, ""))
    except (CorruptObject, KeyError, AttributeError):
        return ""  # of no use to anybody: the piece is made again


def _drop_marks(store: Store, manifest: Manifest, removals: Removals) -> None:
    """The artifact holds none of these pairs any more. Marks of rules that came meanwhile stay."""
    known: Iterable[str] = {rule.number for rule in removals.rules}
    for key in store.keys(f"{MARKS}{manifest.step}/"):
        fingerprint, rule = key.rsplit("/", 1)[1].split(".")[:2]
        if fingerprint == manifest.fingerprint and rule in known:
            store.delete(key)
