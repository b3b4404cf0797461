"""Withdrawn pairs: the marks that keep them out of every later curation, and the marks on what was made with them.

    removals/<number>.json                      a rule: this pair id, this key or this source is withdrawn
    removals/<number>.<digest>.json             the pair ids that a key stood for when it was withdrawn
    marks/<step>/<fingerprint>.<number>.json    this artifact was made with withdrawn pairs

All are written once and never changed; nothing is deleted. A rule is written first, so that a run that begins in the
same moment already leaves the pairs out; whoever was killed in between repeats the command and it goes on.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from dalle_model.config import Section, canonical_json
from dalle_model.errors import CommitConflict, CorruptObject, DataError
from tasks.artifacts import ArtifactRef, Manifest
from tasks.s3_client import StoreOptions
from tasks.sealed import seal, unseal
from tasks.settings import Settings
from tasks.spool import spool_folder
from tasks.store import Store

RULES, MARKS = "removals/", "marks/"
_MARK = re.compile(rf"{MARKS}([A-Za-z0-9_-]+)/([0-9a-f]{{64}})\.([0-9a-f]+)\.json")
Kind = Literal["id", "key", "source"]


class Rule(BaseModel):
    """What somebody withdrew. ``at`` (UTC) and ``note`` are for the record and decide nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    value: str
    at: str = ""
    note: str = ""

    @property
    def number(self) -> str:
        """Names the rule in the store."""
        return hashlib.sha256(f"{self.kind}\n{self.value}".encode()).hexdigest()[:16]


class Mark(BaseModel):
    """One artifact that was made with pairs which a rule withdraws."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: str
    fingerprint: str
    rule: str  # its number
    pairs: int
    objects: tuple[str, ...]


class Removals:
    """All rules of a store together."""

    def __init__(self, rules: Iterable[Rule], ids: Iterable[str]) -> None:
        self.rules = tuple(rules)
        self._values: dict[str, set[str]] = {"id": set(ids), "key": set(), "source": set()}
        for rule in self.rules:
            self._values[rule.kind].add(rule.value)

    def __bool__(self) -> bool:
        return bool(self.rules)

    @property
    def ids(self) -> set[str]:
        """Pair ids that are withdrawn one by one."""
        return self._values["id"]

    def hits(self, table: pa.Table) -> pa.ChunkedArray:
        """Which rows of a table with id, key and source are withdrawn."""
        found = [
            pa.compute.is_in(table[name], pa.array(sorted(values), pa.string()))
            for name, values in self._values.items()
            if values
        ]
        hit = found[0] if found else pa.chunked_array([pa.array([False] * table.num_rows)])
        for other in found[1:]:
            hit = pa.compute.or_(hit, other)
        return hit


def removals_of(store: Store) -> Removals:
    """Every rule in force. CorruptObject when a rule is damaged or gone: no withdrawal may end by accident."""
    marks = marked(store)  # asked first: a rule is written before its marks
    removals = rules_in(store)
    lost = {number for numbers in marks.values() for number in numbers} - {rule.number for rule in removals.rules}
    if lost:
        name = f"{min(lost)}.json"
        raise CorruptObject(
            f"{store.url(RULES + name)} is gone, and artifacts are marked as made with pairs that it withdrew; restore it from "
            f"a backup, or repeat its `dalle forget` (to take a withdrawal back, delete {MARKS}*/*.{name}, too)"
        )
    return removals


def rules_in(store: Store, only: Rule | None = None) -> Removals:
    """The rules that are there, or one alone. CorruptObject when one is damaged."""
    rules, ids = [], set()
    for key in store.keys(RULES):
        number, _, rest = key.removeprefix(RULES).partition(".")
        body = None if only and number != only.number else _rule_at(store, key)
        if body is None:
            continue
        if rest == "json":
            rules.append(Rule(**body))
        else:
            ids.update(body["ids"])
    return Removals(rules, ids)


def _rule_at(store: Store, key: str) -> dict[str, Any] | None:
    try:
        return store.parsed(key, lambda data: unseal(data, store.url(key)))
    except CorruptObject as error:
        raise CorruptObject(
            f"{store.url(key)} is damaged, so that nobody knows which pairs it withdraws; "
            "restore it from a backup, or delete this file and repeat the `dalle forget` that wrote it"
        ) from error


def write_rule(store: Store, rule: Rule, ids: Iterable[str]) -> bool:
    """Put a rule in force, with the pair ids that a key stands for now. False when it was in force before."""
    new = _create(store, f"{RULES}{rule.number}.json", rule.model_dump())
    if rule.kind == "key":  # the same picture under another name elsewhere is the same picture
        names = sorted(ids)
        digest = hashlib.sha256(canonical_json(names)).hexdigest()[:16]
        _create(store, f"{RULES}{rule.number}.{digest}.json", {"ids": names})
    return new


def write_mark(store: Store, mark: Mark) -> bool:
    """Mark an artifact. False when it was marked before."""
    return _create(store, f"{MARKS}{mark.step}/{mark.fingerprint}.{mark.rule}.json", mark.model_dump(mode="json"))


def marked(store: Store) -> dict[str, list[str]]:
    """Numbers of the rules by the fingerprint of each marked artifact."""
    found: dict[str, list[str]] = {}
    for key in store.keys(MARKS):
        if match := _MARK.fullmatch(key):
            found.setdefault(match[2], []).append(match[3])
    return found


def warnings_of(store: Store, inputs: Mapping[str, ArtifactRef]) -> list[str]:
    """What to say before a step uses marked artifacts. Pairs are no matter: curation leaves the withdrawn ones out."""
    used = {ref.fingerprint: ref for ref in inputs.values() if ref.kind != "pairs"}
    return [
        f"{used[fingerprint].kind} {fingerprint[:12]} was made with pairs that are withdrawn since; "
        "run the chain again, and use what it makes without them"
        for fingerprint in marked(store)
        if fingerprint in used
    ]


def _create(store: Store, key: str, body: Mapping[str, Any]) -> bool:
    if store.load(key) is not None:
        return False
    try:
        store.create(key, seal(dict(body)))
    except CommitConflict:  # somebody else withdrew it in the same moment
        return False
    return True


def withdrawn_ids(store: Store, pairs: Manifest, removals: Removals, settings: Settings) -> list[str]:
    """Ids of the pairs of an artifact that are withdrawn, sorted. Reads its ledger, no picture."""
    if not removals:
        return []
    found: set[str] = set()
    with spool_folder(settings.spool, pairs.fingerprint) as spool:
        for obj in pairs.objects_of("ledger"):
            table = pq.read_table(store.fetch(obj, spool), columns=["id", "source", "key", "kept"])
            kept = table.filter(table["kept"])
            found.update(kept.filter(removals.hits(kept))["id"].to_pylist())
    return sorted(found)


def digest_of(ids: list[str]) -> dict[str, str]:
    """How withdrawn ids enter a fingerprint; nothing when there are none."""
    return {"removed": hashlib.sha256(canonical_json(ids)).hexdigest()} if ids else {}


def outside(config: Section, inputs: Mapping[str, ArtifactRef], settings: Settings) -> dict[str, str]:
    """What curation must know beyond its inputs: which of their pairs were withdrawn since they were ingested."""
    store = Store.open(settings.store, options=StoreOptions(endpoint_url=settings.endpoint_url))
    if not (removals := removals_of(store)):
        return {}
    pairs = store.find(inputs["pairs"].step, inputs["pairs"].fingerprint)
    return {} if pairs is None else digest_of(withdrawn_ids(store, pairs, removals, settings))


def withdrawn_in(store: Store, pairs: Manifest, recorded: Mapping[str, str], settings: Settings) -> set[str]:
    """The withdrawn ids, in the step itself. DataError when they are not those that the step was planned with."""
    ids = withdrawn_ids(store, pairs, removals_of(store), settings)
    if digest_of(ids).get("removed") != recorded.get("removed"):
        raise DataError("pairs were withdrawn since this run began; start it again, and it leaves them out")
    return set(ids)
