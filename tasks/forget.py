"""Withdraw pairs: find everything that was made with them, mark it, and keep them out of every later run."""

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dalle_model.errors import UsageError
from tasks.artifacts import Manifest, ObjectRef
from tasks.faults import fault_point
from tasks.inventory import all_or_error, inventory
from tasks.removals import Mark, Removals, Rule, marked, rules_in, write_mark, write_rule
from tasks.settings import Settings
from tasks.spool import spool_folder
from tasks.store import Store

_ID = re.compile(r"[0-9a-f]{64}")
_SHORT_ID = re.compile(r"[0-9a-f]{8,64}")
_KINDS = ("id", "key", "source")
_ROWS_WITH_IDS = {"pairs": "pairs", "curated": "curated", "tokens": "tokens"}  # kind -> role of its rows


@dataclass(frozen=True)
class Touched:
    """An artifact that was made with withdrawn pairs: how many of them it holds (0: it was made from one that does)."""

    manifest: Manifest
    pairs: int
    objects: tuple[ObjectRef, ...]
    splits: dict[str, int]
    names: tuple[str, ...]

    def entry(self) -> dict[str, Any]:
        """For programs."""
        return {
            "step": self.manifest.step,
            "kind": self.manifest.kind,
            "fingerprint": self.manifest.fingerprint,
            "pairs": self.pairs,
            "splits": self.splits,
            "names": list(self.names),
            "objects": [{"key": o.key, "role": o.role, "rows": o.rows} for o in self.objects],
        }


@dataclass(frozen=True)
class Forgotten:
    """What a withdrawal found and did."""

    rule: Rule
    new: bool
    ids: list[str]
    touched: list[Touched]
    pairs: int  # of these ids that this store holds or held
    others: dict[str, int]  # by key, pairs with other captions of the pictures whose ids were withdrawn
    unreadable: dict[str, str]  # by fingerprint, why nobody knows whether an artifact was made with these pairs


class Lineage:
    """All artifacts of a store, and which of them were made with given pairs."""

    def __init__(self, store: Store, spool: Path) -> None:
        self.store = store
        self._spool = spool
        manifests, self.unreadable = inventory(store)
        self.manifests = {manifest.fingerprint: manifest for manifest in manifests}

    def look_again(self) -> bool:
        """Take in what was committed meanwhile; whether there was something."""
        manifests, self.unreadable = inventory(self.store, besides=self.manifests)
        self.manifests |= {manifest.fingerprint: manifest for manifest in manifests}
        return bool(manifests)

    def of_kind(self, kind: str) -> list[Manifest]:
        """All artifacts of a kind."""
        return [m for m in self.manifests.values() if m.kind == kind]

    def ledgers(self) -> Iterator[pa.Table]:
        """id, source, key and kept of every row that was ever ingested."""
        for pairs in self.of_kind("pairs"):
            for obj in pairs.objects_of("ledger"):
                yield pq.read_table(self.store.fetch(obj, self._spool), columns=["id", "source", "key", "kept"])

    @cached_property
    def names(self) -> dict[str, list[str]]:
        """Names by the fingerprint they point at."""
        found: dict[str, list[str]] = {}
        for name, target in self.store.refs().items():
            found.setdefault(target, []).append(name)
        return found

    def touched_by(self, ids: set[str]) -> list[Touched]:
        """Every artifact made with one of the pairs, inputs before what was made from them."""
        wanted = pa.array(sorted(ids), pa.string())
        memo: dict[str, Touched | None] = {}
        for fingerprint in self.manifests:
            self._look(fingerprint, wanted, memo)
        return [touched for touched in memo.values() if touched is not None]

    def _look(self, fingerprint: str, wanted: pa.Array, memo: dict[str, Touched | None]) -> Touched | None:
        if fingerprint in memo or fingerprint not in self.manifests:
            return memo.get(fingerprint)
        manifest = self.manifests[fingerprint]
        inputs = [self._look(used.fingerprint, wanted, memo) for used in manifest.inputs]
        memo[fingerprint] = self._touch(manifest, [i for i in inputs if i is not None], wanted)
        return memo[fingerprint]

    def _touch(self, manifest: Manifest, inputs: list[Touched], wanted: pa.Array) -> Touched | None:
        rows, objects = 0, list[ObjectRef]()
        splits: dict[str, int] = {}
        for obj in manifest.objects_of(_ROWS_WITH_IDS.get(manifest.kind, "")):
            hit = self._rows(obj, wanted)
            if hit.num_rows:
                rows += hit.num_rows
                objects.append(obj)
                for split in hit["split"].to_pylist() if "split" in hit.column_names else ():
                    splits[split] = splits.get(split, 0) + 1
        if manifest.kind in ("pairs", "curated"):
            # These choose their rows: what stands above them says nothing, only what they hold does.
            if not rows:
                return None
        elif not inputs:
            return None
        elif not objects:
            objects = list(manifest.objects)
        names = tuple(self.names.get(manifest.fingerprint, ()))
        return Touched(manifest, rows, tuple(objects), splits, names)

    def _rows(self, obj: ObjectRef, wanted: pa.Array) -> pa.Table:
        file = pq.ParquetFile(self.store.fetch(obj, self._spool))
        columns = [name for name in ("id", "split", "key", "caption") if name in file.schema_arrow.names]
        table = file.read(columns=columns)
        table = table.filter(pa.compute.is_in(table["id"], wanted))
        if "key" not in columns or "caption" not in columns:
            return table
        # A row without words and address was erased: see tasks.erase_pairs.
        erased = pa.compute.and_(pa.compute.equal(table["key"], ""), pa.compute.equal(table["caption"], ""))
        return table.filter(pa.compute.invert(erased))


def forget(store: Store, what: str, settings: Settings, *, note: str = "", dry_run: bool = False) -> Forgotten:
    """Withdraw a pair id, a key or a source. Repeating it does what a killed command left undone, and nothing twice.

    ``what`` is an id, at least 8 digits of one, a key or a source as the ledgers have them, or one of them behind
    ``id:``, ``key:`` or ``source:``, which also withdraws what this store has never seen. Raises UsageError when
    nothing answers to it, or several things do.
    """
    with spool_folder(settings.spool, "f" * 64) as spool:
        lineage = Lineage(store, spool)
        rule = _rule(what, lineage, note, rules_in(store))  # not removals_of: what is lost is put in force again here
        ids, pairs, others = _ids(lineage, rule, rules_in(store, rule))
        new = write_rule(store, rule, ids) if not dry_run else False
        fault_point("forget.after_rule")
        if lineage.look_again():  # by runs that began before there was this rule
            ids, pairs, others = _ids(lineage, rule, rules_in(store, rule))
            if not dry_run:
                write_rule(store, rule, ids)
        touched = lineage.touched_by(ids)
        for one in touched:
            if not dry_run:
                m = one.manifest
                keys = tuple(o.key for o in one.objects)
                write_mark(
                    store, Mark(step=m.step, fingerprint=m.fingerprint, rule=rule.number, pairs=one.pairs, objects=keys)
                )
                fault_point("forget.after_mark")
    unreadable = {known.fingerprint: why for known, why in lineage.unreadable.items()}
    return Forgotten(rule, new, sorted(ids), touched, pairs, others, unreadable)


def _rule(what: str, lineage: Lineage, note: str, earlier: Removals) -> Rule:
    at = datetime.now(UTC).isoformat(timespec="seconds")
    kind, colon, value = what.partition(":")
    if colon and kind in _KINDS and value:
        if kind == "id" and not _ID.fullmatch(value):
            raise UsageError(f"{value!r} is no pair id: 64 hexadecimal digits; without `id:` the first 8 will do")
        return Rule(kind=kind, value=value, at=at, note=note)  # type: ignore[arg-type]
    if not what:
        raise UsageError(
            "nothing to withdraw was named; give a pair id, a key or a source, as `dalle export` writes them"
        )
    short = _SHORT_ID.fullmatch(what)  # a file may be named by 64 digits, too: whether it is an id, the ledgers know
    found: dict[str, set[str]] = {name: set() for name in _KINDS}
    for rule in earlier.rules:  # after its last bytes are erased no ledger has a key or an address any more
        if rule.value == what or (rule.kind == "id" and short and rule.value.startswith(what)):
            found[rule.kind].add(rule.value)
    near, longer = set[str](), set[str]()
    for table in lineage.ledgers():
        sources = table["source"].unique().to_pylist()
        near.update(sources)
        found["source"].update(name for name in sources if name == what)
        found["key"].update(table["key"].filter(pa.compute.equal(table["key"], what)).unique().to_pylist())
        if len(longer) < 3:
            longer.update(table["key"].filter(pa.compute.ends_with(table["key"], what)).unique().to_pylist()[:3])
        if short:
            found["id"].update(table["id"].filter(pa.compute.starts_with(table["id"], what)).unique().to_pylist())
    matches = [(name, value) for name, values in found.items() for value in sorted(values)]
    if len(matches) == 1:
        name, value = matches[0]
        return Rule(kind=name, value=value, at=at, note=note)  # type: ignore[arg-type]
    if matches:
        listed = ", ".join(f"{name}:{value}" for name, value in matches[:6])
        raise UsageError(f"{what!r} is the name of {len(matches)} things: {listed}; write one of them like this")
    close = difflib.get_close_matches(what, sorted(near), n=3, cutoff=0.4)
    raise UsageError(
        f"no pair id, key or source of {lineage.store.uri} is {what!r}"
        + (f"; sources near: {', '.join(close)}" if close else "")
        + (f"; keys that end so: {', '.join(sorted(longer)[:3])}" if longer else "")
        + "; write id:, key: or source: before it to withdraw what is not here yet"
    )


def _ids(lineage: Lineage, rule: Rule, earlier: Removals) -> tuple[set[str], int, dict[str, int]]:
    """Ids of all pairs that a rule stands for, and those that it stood for earlier; how many are known here; and others
    of the same pictures, see ``Forgotten``."""
    removals = Removals([*earlier.rules, rule], earlier.ids)
    found, keys = set(earlier.ids), set[tuple[str, str]]()
    for table in lineage.ledgers():
        kept = table.filter(table["kept"])
        hits = kept.filter(removals.hits(kept))
        found.update(hits["id"].to_pylist())
        if rule.kind == "id":
            keys.update(zip(hits["source"].to_pylist(), hits["key"].to_pylist(), strict=True))
    others: dict[str, set[str]] = {}
    for table in lineage.ledgers() if any(key for _, key in keys) else ():
        named = table.filter(
            pa.compute.and_(table["kept"], pa.compute.is_in(table["key"], pa.array([k for _, k in keys])))
        )
        for row in named.to_pylist():
            if row["key"] and (row["source"], row["key"]) in keys and row["id"] not in found:
                others.setdefault(row["key"], set()).add(row["id"])
    wanted = found | ({rule.value} if rule.kind == "id" else set())
    return wanted, len(found), {key: len(ids) for key, ids in sorted(others.items())}


def tainted(store: Store, manifests: Iterable[Manifest]) -> dict[str, str]:
    """Fingerprint -> why an artifact is not to be used: it is marked itself, or was made from one that is.

    Pairs and curated pairs count only by their own marks: they choose their rows.
    """
    own = marked(store)
    by_print = {m.fingerprint: m for m in manifests}
    memo: dict[str, str] = {}

    def look(fingerprint: str) -> str:
        if fingerprint in memo:
            return memo[fingerprint]
        memo[fingerprint] = "made with withdrawn pairs" if fingerprint in own else ""
        manifest = by_print.get(fingerprint)  # what was made from it while it was erased still bears its mark
        if manifest is not None and not memo[fingerprint] and manifest.kind not in ("pairs", "curated"):
            above = [used for used in manifest.inputs if look(used.fingerprint)]
            if above:
                memo[fingerprint] = (
                    f"made from {above[0].step} {above[0].fingerprint[:12]}, which holds withdrawn pairs"
                )
        return memo[fingerprint]

    return {fingerprint: why for fingerprint in by_print if (why := look(fingerprint))}


@dataclass(frozen=True)
class Erased:
    """What ``erase`` removed, and what stays although it was made with withdrawn pairs, with the reason."""

    removed: list[Manifest]
    stays: dict[str, str]


def erase(store: Store, *, dry_run: bool = False) -> Erased:
    """Remove the manifests of all that was made with withdrawn pairs; a sweep then takes their objects.

    What a name points at stays, with all it was made from; so do pairs from which a sound artifact was made. Raises
    CorruptObject, before anything is removed, when a manifest or a name is damaged: what it needs is then unknown.
    """
    manifests = all_or_error(store, "nothing is removed")
    why = tainted(store, manifests)
    by_print = {m.fingerprint: m for m in manifests}
    stays: dict[str, str] = {}

    def keep(fingerprint: str, reason: str) -> None:
        if fingerprint in why and fingerprint not in stays:
            stays[fingerprint] = reason
            for used in by_print[fingerprint].inputs:
                keep(used.fingerprint, reason)

    for name, target in store.refs().items():
        keep(target, f"the name {name} needs it; promote another artifact first")
    for m in manifests:
        if m.fingerprint not in why:
            for used in m.inputs:
                keep(
                    used.fingerprint,
                    f"{m.step} {m.fingerprint[:12]} was made from its other pairs; take the withdrawn ones out of the source and run again",
                )
    removed = [m for m in manifests if m.fingerprint in why and m.fingerprint not in stays]
    if not dry_run:
        order = {m.fingerprint: _depth(m, by_print) for m in removed}
        for m in sorted(
            removed, key=lambda m: -order[m.fingerprint]
        ):  # what was made goes before what it was made from
            store.delete(store.manifest_key(m.step, m.fingerprint))
    return Erased(removed, stays)


def _depth(manifest: Manifest, by_print: dict[str, Manifest]) -> int:
    above = [by_print[used.fingerprint] for used in manifest.inputs if used.fingerprint in by_print]
    return 1 + max((_depth(m, by_print) for m in above), default=0)
