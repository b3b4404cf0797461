"""A store of which something cannot be read: nothing passes for empty, newest, or withdrawn by nobody."""

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
from support.commands import dalle
from support.object_stores import artifact

from dalle_model.errors import CorruptObject, StoreUnreachable
from flows.commands import artifact_of
from flows.comparison import promote
from tasks.artifacts import Manifest
from tasks.forget import erase, forget
from tasks.removals import Mark, Rule, removals_of, write_mark, write_rule
from tasks.settings import Settings
from tasks.store import Store


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(store=str(tmp_path / "store"), spool=tmp_path / "spool")


@pytest.fixture
def store(settings: Settings) -> Store:
    return Store.open(settings.store)


def committed(store: Store, name: str, **changes: Any) -> Manifest:
    manifest = artifact(store, name, **changes)
    store.commit(manifest)
    return manifest


def spoil(store: Store, key: str) -> None:
    path = store.backend.path(key)
    assert path is not None
    path.write_bytes(path.read_bytes()[:-9])


def spoil_manifest(store: Store, manifest: Manifest) -> None:
    spoil(store, store.manifest_key(manifest.step, manifest.fingerprint))


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep removed the objects of all manifests that it could not list."""
    manifest = committed(store, "a")
    write_rule(store, Rule(kind="source", value="x"), [])
    real = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name in ("ingest", "removals"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for use in (lambda: store.sweep(older_than_s=-60), lambda: removals_of(store), store.artifacts):
        with pytest.raises(StoreUnreachable, match="may not be used by this user"):
            use()
    monkeypatch.undo()
    assert store.verify(manifest) == []


def test_the_latest_is_not_an_older_one_because_the_latest_is_damaged(store: Store, settings: Settings) -> None:
    old, new = (
        committed(store, name, step="fit", kind="model", facts={"started_at": begun})
        for name, begun in (("old", 1.0), ("new", 2.0))
    )
    assert artifact_of(settings, "latest", "model").fingerprint == new.fingerprint
    spoil_manifest(store, new)
    with pytest.raises(CorruptObject, match=r"which model is the latest is not known.*is damaged; delete this file"):
        artifact_of(settings, "latest", "model")
    said = dalle("ls", "--store", settings.store)
    assert old.fingerprint[:12] in said.out
    assert f"not listed: {store.manifest_uri('fit', new.fingerprint)} is damaged" in said.out


def test_what_a_damaged_manifest_needs_is_not_removed_with_what_was_forgotten(store: Store, settings: Settings) -> None:
    good, bad = committed(store, "good"), committed(store, "bad")
    write_rule(store, Rule(kind="source", value="x"), [])
    number = Rule(kind="source", value="x").number
    write_mark(store, Mark(step="ingest", fingerprint=good.fingerprint, rule=number, pairs=1, objects=()))
    spoil_manifest(store, bad)
    with pytest.raises(CorruptObject, match="nothing is removed while a manifest is unreadable"):
        erase(store)
    assert store.find("ingest", good.fingerprint) == good
    assert set(forget(store, "source:x", settings).unreadable) == {bad.fingerprint}
    said = dalle("forget", "source:x", "--store", settings.store, DALLE_SPOOL=str(settings.spool))
    assert f"whether {bad.fingerprint[:12]} was made with them is not known" in said.out


def test_what_a_damaged_name_needs_is_not_removed_either(store: Store) -> None:
    manifest = committed(store, "a")
    store.set_ref("production", manifest)
    write_rule(store, Rule(kind="source", value="x"), [])
    number = Rule(kind="source", value="x").number
    write_mark(store, Mark(step="ingest", fingerprint=manifest.fingerprint, rule=number, pairs=1, objects=()))
    spoil(store, "refs/production.json")
    with pytest.raises(CorruptObject, match="nothing is removed while a name is unreadable"):
        erase(store)
    assert store.find("ingest", manifest.fingerprint) == manifest


@pytest.mark.parametrize("loss", ["damaged", "deleted"])
def test_a_lost_rule_does_not_bring_withdrawn_pairs_back(loss: str, store: Store, settings: Settings) -> None:
    rule = Rule(kind="source", value="x")
    manifest = committed(store, "a")
    write_rule(store, rule, [])
    write_mark(store, Mark(step="ingest", fingerprint=manifest.fingerprint, rule=rule.number, pairs=1, objects=()))
    key = f"removals/{rule.number}.json"
    if loss == "damaged":
        spoil(store, key)
        with pytest.raises(CorruptObject, match="nobody knows which pairs it withdraws; restore it"):
            removals_of(store)
    store.delete(key)
    with pytest.raises(CorruptObject, match="is gone, and artifacts are marked"):
        removals_of(store)
    forget(store, "source:x", settings)  # what the message says
    assert [found.value for found in removals_of(store).rules] == ["x"]


def test_production_is_given_to_whole_models_and_a_damaged_name_is_set_again_by_force(
    store: Store, settings: Settings
) -> None:
    model = committed(store, "m", step="fit", kind="model")
    promote(settings, model.fingerprint, "production", force=False)
    spoil(store, "refs/production.json")
    with pytest.raises(CorruptObject, match="--as production --force"):
        promote(settings, model.fingerprint, "production", force=False)
    promote(settings, model.fingerprint, "production", force=True)
    assert store.resolve("production") == model
    spoil(store, model.objects[1].key)
    with contextlib.suppress(CorruptObject):
        store.delete("refs/production.json")
    with pytest.raises(CorruptObject, match=r"model .* cannot draw: .* bytes, expected .*made anew"):
        promote(settings, model.fingerprint, "production", force=True)
    assert store.read_ref("production") is None
