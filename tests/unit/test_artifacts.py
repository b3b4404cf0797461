"""Manifests and fingerprints."""

import hashlib
import json

import pytest

from dalle_model.config import canonical_json
from dalle_model.errors import CorruptObject, DataError
from tasks.artifacts import Manifest, ObjectRef, fingerprint


def manifest(**changes: object) -> Manifest:
    values: dict[str, object] = {
        "kind": "pairs",
        "step": "ingest",
        "step_version": 1,
        "fingerprint": "ab" * 32,
        "config": {"config": {"limit": 3}},
        "inputs": (),
        "objects": (ObjectRef(key="data/aa/aa.parquet", sha256="aa", bytes=5, rows=3, role="pairs"),),
        "rows": 3,
        "stats": {"kept": 3, "share": 0.1},
        "facts": {"host": "a"},
    }
    return Manifest.model_validate(values | changes)


def test_facts_are_stored_but_not_hashed() -> None:
    here, there = manifest(facts={"host": "a", "seconds": 1.0}), manifest(facts={"host": "b"})
    assert here.sha256 == there.sha256
    assert Manifest.from_bytes(here.to_bytes(), "x").facts == {"host": "a", "seconds": 1.0}


@pytest.mark.parametrize(
    "change", [{"rows": 4}, {"stats": {"kept": 3, "share": 0.2}}, {"step_version": 2}, {"config": {}}, {"objects": ()}]
)
def test_everything_else_is_hashed(change: dict[str, object]) -> None:
    assert manifest(**change).sha256 != manifest().sha256


def test_a_manifest_survives_storage_with_the_same_hash() -> None:
    stored = manifest().to_bytes()
    assert Manifest.from_bytes(stored, "x").sha256 == manifest().sha256


def test_every_flipped_bit_is_found() -> None:
    """Also in the number of the schema: it must not read as the work of another release."""
    stored = manifest(facts={}).to_bytes()
    for i in range(len(stored)):
        for bit in range(8):
            damaged = stored[:i] + bytes([stored[i] ^ 1 << bit]) + stored[i + 1 :]
            with pytest.raises(CorruptObject):
                Manifest.from_bytes(damaged, "x")
                raise AssertionError(f"bit {bit} of byte {i} ({stored[i : i + 1]!r}) may change unnoticed")


def test_a_newer_schema_is_refused_in_words() -> None:
    envelope = json.loads(manifest().to_bytes())
    envelope["body"]["schema_version"] = 99
    envelope["sha256"] = hashlib.sha256(canonical_json(envelope["body"])).hexdigest()
    with pytest.raises(DataError, match="schema 99"):
        Manifest.from_bytes(json.dumps(envelope).encode(), "x")


def test_a_fingerprint_depends_on_step_version_config_and_inputs_and_on_nothing_else() -> None:
    base = fingerprint("curate", 1, {"a": 1, "b": 2}, {"pairs": "f"})
    assert fingerprint("curate", 1, {"b": 2, "a": 1}, {"pairs": "f"}) == base
    others = {
        fingerprint("encode", 1, {"a": 1, "b": 2}, {"pairs": "f"}),
        fingerprint("curate", 2, {"a": 1, "b": 2}, {"pairs": "f"}),
        fingerprint("curate", 1, {"a": 1, "b": 3}, {"pairs": "f"}),
        fingerprint("curate", 1, {"a": 1, "b": 2}, {"pairs": "g"}),
        fingerprint("curate", 1, {"a": 1, "b": 2}, {"other": "f"}),
    }
    assert len(others | {base}) == 6
