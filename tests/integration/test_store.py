"""The store keeps its promises alike on a folder, on moto (strict) and on rclone (persistent, without conditions)."""

import json
import os
import pickle
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.object_stores import any_store, artifact, shared
from support.processes import LONG_S

from dalle_model.errors import CommitConflict, CorruptObject, RefNotFound, UnsafeStore, UsageError
from tasks.artifacts import Part
from tasks.s3_backend import S3Backend
from tasks.s3_client import S3Filesystem
from tasks.store import Store

KINDS = ["local", pytest.param("moto", marks=pytest.mark.server), pytest.param("rclone", marks=pytest.mark.server)]
STRICT = KINDS[:2]


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return any_store(request.param, tmp_path)


@pytest.fixture(params=STRICT)
def strict_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return any_store(request.param, tmp_path)


def test_what_is_put_is_read_and_fetched(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "shard"
    source.write_bytes(os.urandom(300_000))
    obj = store.put(source, ext="parquet", role="pairs", rows=7)
    assert (obj.bytes, obj.rows, obj.role) == (300_000, 7, "pairs")
    assert obj.key == f"data/{obj.sha256[:2]}/{obj.sha256}.parquet"
    assert store.read(obj) == source.read_bytes()
    fetched = store.fetch(obj, tmp_path / "spool")
    assert fetched.read_bytes() == source.read_bytes()
    assert store.fetch(obj, tmp_path / "spool") == fetched
    assert store.put(source.read_bytes(), ext="parquet", role="pairs", rows=7) == obj
    assert not store.missing([obj])


def test_empty_object_is_an_object(store: Store, tmp_path: Path) -> None:
    obj = store.put(b"", ext="txt", role="note")
    assert store.read(obj) == b""
    assert store.fetch(obj, tmp_path).read_bytes() == b""


@pytest.mark.parametrize("kind", KINDS)
def test_large_object_goes_up_in_parts_and_comes_back_whole(kind: str, tmp_path: Path) -> None:
    store = any_store(kind, tmp_path)
    source = tmp_path / "weights"
    source.write_bytes(os.urandom(1024) * (37 * 1024))  # 37 MB: three parts on S3
    obj = store.put(source, ext="safetensors", role="weights")
    assert store.fetch(obj, tmp_path / "spool").read_bytes() == source.read_bytes()
    assert store.read(obj) == source.read_bytes()


def test_absent_things_are_none_or_named(store: Store, tmp_path: Path) -> None:
    assert store.load("manifests/ingest/none.json") is None
    assert store.find("ingest", "0" * 64) is None
    assert store.parts("0" * 64) == {}
    assert store.read_ref("production") is None
    assert store.keys("manifests/") == []
    obj = artifact(store).objects[0]
    store.delete(obj.key)
    store.delete(obj.key)
    assert store.missing([obj]) == [obj]
    for ask in (lambda: store.read(obj), lambda: store.fetch(obj, tmp_path / "spool")):
        with pytest.raises(CorruptObject, match=r"\(head\) is missing; run the step that made it again"):
            ask()


def test_commit_is_found_and_verifies(store: Store) -> None:
    manifest = artifact(store)
    ref = store.commit(manifest)
    assert ref.uri == store.manifest_uri("ingest", manifest.fingerprint)
    assert store.find("ingest", manifest.fingerprint) == manifest
    assert store.verify(manifest) == []
    assert store.artifacts() == [("ingest", manifest.fingerprint)]


def test_equal_work_commits_twice_and_other_work_conflicts(store: Store) -> None:
    manifest = artifact(store, facts={"host": "one"})
    first = store.commit(manifest)
    assert store.commit(manifest.model_copy(update={"facts": {"host": "two"}})) == first
    with pytest.raises(CommitConflict, match="committed with other content"):
        store.commit(manifest.model_copy(update={"stats": {"mean": 0.6}}))
    found = store.find("ingest", manifest.fingerprint)
    assert found is not None and found.facts == {"host": "one"}


def test_commit_refuses_an_artifact_whose_object_is_not_there(store: Store) -> None:
    manifest = artifact(store)
    store.delete(manifest.objects[1].key)
    with pytest.raises(CorruptObject, match="is missing"):
        store.commit(manifest)
    assert store.find("ingest", manifest.fingerprint) is None


def test_create_is_create_only(store: Store) -> None:
    store.create("notes/a.json", b"one")
    store.create("notes/a.json", b"one")
    with pytest.raises(CommitConflict, match="exists with other content"):
        store.create("notes/a.json", b"other")
    assert store.load("notes/a.json") == b"one"


def test_receipts_come_back_by_number(store: Store) -> None:
    manifest = artifact(store)
    parts = {n: Part(objects=(manifest.objects[n],), stats={"rows": n}) for n in range(3)}
    for n, part in parts.items():
        store.commit_part("ab12", n, part)
        store.commit_part("ab12", n, part)
    assert store.parts("ab12") == parts
    with pytest.raises(CommitConflict, match="not deterministic"):
        store.commit_part("ab12", 1, Part(stats={"rows": 99}))
    assert store.parts("ab12") == parts


def test_damaged_receipt_counts_as_missing_and_can_be_written_again(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    part = Part(stats={"rows": 5})
    for n in range(3):
        store.commit_part("ab12", n, part)
    good = store.load("parts/ab12/000000.json") or b""
    store.backend.write("parts/ab12/000000.json", good.replace(b'"rows":5', b'"rows":6'))
    store.backend.write("parts/ab12/000001.json", good)  # the receipt of piece 0 in the place of piece 1
    assert set(store.parts("ab12")) == {2}
    assert "000000.json is damaged; piece 0 is made again" in caplog.text
    store.commit_part("ab12", 0, part)
    store.commit_part("ab12", 1, part)
    assert set(store.parts("ab12")) == {0, 1, 2}


def test_receipt_whose_object_is_gone_counts_as_missing(store: Store) -> None:
    objects = artifact(store).objects
    store.commit_part("ab12", 0, Part(objects=objects[:1]))
    store.commit_part("ab12", 1, Part(objects=objects[1:]))
    store.delete(objects[0].key)
    assert set(store.parts("ab12")) == {1}
    artifact(store)  # the piece is made again
    store.commit_part("ab12", 0, Part(objects=objects[:1]))
    assert set(store.parts("ab12")) == {0, 1}


def test_found_damage_is_recorded_and_the_next_put_cures_it(store: Store, tmp_path: Path) -> None:
    manifest = artifact(store)
    store.commit(manifest)
    obj = manifest.objects[0]
    store.backend.write(obj.key, b"x" * obj.bytes)
    assert not store.missing([obj]), "nobody has read it yet"
    with pytest.raises(CorruptObject, match=r"\(head\) hashes to .*, expected"):
        store.read(obj)
    record = json.loads(store.load(f"quarantine/{obj.sha256}.json") or b"")
    assert (record["key"], record["role"], record["expected_sha256"]) == (obj.key, "head", obj.sha256)
    assert store.missing(manifest.objects) == [obj]
    with pytest.raises(CorruptObject):
        store.fetch(obj, tmp_path / "spool")
    assert store.verify(manifest) == [(obj.key, f"hashes to {record['found_sha256'][:12]}, expected {obj.sha256[:12]}")]
    artifact(store)
    assert store.missing(manifest.objects) == []
    assert store.keys("quarantine/") == []
    assert store.verify(manifest) == []


def test_fetch_notices_that_a_verified_object_changed(tmp_path: Path) -> None:
    store = any_store("local", tmp_path)
    obj = store.put(b"content" * 100, ext="bin", role="x")
    path = store.fetch(obj, tmp_path)
    path.write_bytes(b"Content" * 100)
    with pytest.raises(CorruptObject):
        store.fetch(obj, tmp_path)


def test_damaged_manifest_is_named_with_its_cure(store: Store) -> None:
    one, two = artifact(store, "one"), artifact(store, "two")
    store.commit(one)
    store.commit(two)
    key = store.manifest_key("ingest", one.fingerprint)
    data = store.load(key) or b""
    for damage in (data[:-20], data.replace(b"0.5", b"0.6"), b"", b"[]", two.to_bytes()):
        store.backend.write(key, damage)
        with pytest.raises(CorruptObject, match=r"manifests/ingest/.*delete this file and run the step again"):
            store.find("ingest", one.fingerprint)
    assert store.find("ingest", two.fingerprint) == two


def test_name_moves_with_history_and_rolls_back(store: Store) -> None:
    a, b, c = (artifact(store, name) for name in "abc")
    for manifest in (a, b, c):
        store.commit(manifest)
    for manifest in (a, b, b, c):
        store.set_ref("production", manifest, note="try")
    value = store.read_ref("production")
    assert value is not None
    assert value.fingerprint == c.fingerprint and value.step == "ingest" and value.kind == "pairs"
    assert [t.fingerprint for t in value.previous] == [a.fingerprint, b.fingerprint]
    assert store.refs() == {"production": c.fingerprint}
    assert store.rollback("production").fingerprint == b.fingerprint
    assert store.rollback("production").fingerprint == a.fingerprint
    with pytest.raises(RefNotFound, match="nothing to go back to"):
        store.rollback("production")
    history = store.read_ref("production")
    assert history is not None
    assert [t.fingerprint for t in history.history] == [m.fingerprint for m in (a, b, c, b, a)]


def test_rollback_refuses_a_target_that_is_gone(store: Store) -> None:
    a, b = artifact(store, "a"), artifact(store, "b")
    store.commit(b)
    store.set_ref("best", a)
    store.set_ref("best", b)
    with pytest.raises(RefNotFound, match="is gone from"):
        store.rollback("best")
    with pytest.raises(RefNotFound, match=r"no name 'bets'.*near: best"):
        store.rollback("bets")


def test_set_ref_can_demand_the_old_target(store: Store) -> None:
    a, b = artifact(store, "a"), artifact(store, "b")
    store.set_ref("production", a, expect="")
    with pytest.raises(CommitConflict, match="points at"):
        store.set_ref("production", b, expect=b.fingerprint)
    assert store.set_ref("production", b, expect=a.fingerprint).fingerprint == b.fingerprint


def test_damaged_name_is_said_and_can_be_set_again(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    a = artifact(store)
    store.set_ref("production", a)
    store.backend.write("refs/production.json", (store.load("refs/production.json") or b"").replace(b"pairs", b"Pairs"))
    with pytest.raises(CorruptObject, match="set the name again"):
        store.read_ref("production")
    assert store.refs() == {}
    assert "damaged" in caplog.text
    assert store.set_ref("production", a).fingerprint == a.fingerprint


@pytest.mark.parametrize("name", ["", "Big", "a/b", "../x", "-a", "beef", "0123456789ab", "x" * 101])
def test_names_that_cannot_be_names_are_refused(tmp_path: Path, name: str) -> None:
    store = any_store("local", tmp_path)
    with pytest.raises(UsageError, match="cannot be a name"):
        store.set_ref(name, artifact(store))


def test_concurrent_changes_of_a_name_lose_none(strict_store: Store) -> None:
    manifests = [artifact(strict_store, f"m{n}") for n in range(8)]
    barrier = threading.Barrier(8)

    def change(n: int) -> None:
        barrier.wait()
        strict_store.set_ref("production", manifests[n])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(change, range(8)))
    value = strict_store.read_ref("production")
    assert value is not None
    assert sorted(t.fingerprint for t in value.history) == sorted(m.fingerprint for m in manifests)


def test_reference_resolves_in_every_spelling(store: Store) -> None:
    manifest = artifact(store, "a")
    ref = store.commit(manifest)
    store.set_ref("production", manifest)
    relative = store.manifest_key("ingest", manifest.fingerprint)
    for spelling in (
        manifest.fingerprint,
        manifest.fingerprint[:4],
        manifest.fingerprint.upper(),
        ref.uri,
        relative,
        "production",
    ):
        assert store.resolve(spelling) == manifest, spelling


def test_local_manifest_resolves_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = any_store("local", tmp_path)
    manifest = artifact(store)
    store.commit(manifest)
    path = tmp_path / "artifacts" / store.manifest_key("ingest", manifest.fingerprint)
    monkeypatch.chdir(tmp_path)
    assert store.resolve(str(path)) == store.resolve(str(path.relative_to(tmp_path))) == manifest
    with pytest.raises(RefNotFound, match="another store"):
        store.resolve(str(path).replace("artifacts", "elsewhere"))


def test_unresolved_reference_lists_what_is_near(store: Store) -> None:
    with pytest.raises(RefNotFound, match="the store is empty"):
        store.resolve("production")
    manifest = artifact(store, "a")
    store.commit(manifest)
    store.set_ref("production", manifest)
    with pytest.raises(RefNotFound, match="near: production"):
        store.resolve("prodction")
    wrong = manifest.fingerprint[:6] + "0000"
    with pytest.raises(RefNotFound, match=f"no artifact answers to '{wrong}'.*near: {manifest.fingerprint[:10]}"):
        store.resolve(wrong)
    with pytest.raises(RefNotFound, match="4 digits at least"):
        store.resolve(manifest.fingerprint[:3])
    with pytest.raises(RefNotFound, match="no manifest's URI"):
        store.resolve("some/where/else")
    with pytest.raises(RefNotFound, match="empty reference"):
        store.resolve("")


def test_ambiguous_prefix_lists_the_candidates(store: Store) -> None:
    for step, tail in (("ingest", "0"), ("curate", "1")):
        store.commit(artifact(store, step=step, fingerprint="abcd" + tail * 60))
    with pytest.raises(
        RefNotFound, match="start of 2 artifacts: curate abcd111111, ingest abcd000000; give more digits"
    ):
        store.resolve("abcd")
    assert store.resolve("abcd1").step == "curate"


def test_sweep_removes_what_nobody_names_and_nothing_else(store: Store) -> None:
    done, orphan, running = artifact(store, "done"), artifact(store, "orphan"), artifact(store, "running")
    store.commit(done)
    store.commit_part(done.fingerprint, 0, Part(objects=orphan.objects[:1]))  # a checkpoint of a finished step
    store.commit_part(running.fingerprint, 0, Part(objects=running.objects))
    assert store.sweep().removed == (), "all is younger than a day"
    planned = store.sweep(older_than_s=-60, dry_run=True)
    assert planned.kept == 6 and len(planned.removed) == 4
    assert store.missing(orphan.objects) == []
    report = store.sweep(older_than_s=-60)
    assert (
        set(report.removed)
        == {store.part_key(done.fingerprint, 0), *(o.key for o in orphan.objects)}
        == set(planned.removed)
    )
    assert report.bytes > sum(o.bytes for o in orphan.objects)
    assert store.verify(done) == store.verify(running) == []
    assert store.missing(orphan.objects) == list(orphan.objects)
    assert set(store.parts(running.fingerprint)) == {0}


def test_sweep_stops_at_an_unreadable_manifest(store: Store) -> None:
    manifest = artifact(store)
    store.commit(manifest)
    store.backend.write(store.manifest_key("ingest", manifest.fingerprint), b"{}")
    with pytest.raises(CorruptObject, match="nothing is swept while a manifest is unreadable"):
        store.sweep(older_than_s=-60)
    assert store.missing(manifest.objects) == []


def test_sweep_spares_an_old_object_that_was_just_put_again(tmp_path: Path) -> None:
    store = any_store("local", tmp_path)
    old, again = artifact(store, "old").objects, artifact(store, "again").objects
    for obj in (*old, *again):
        os.utime(tmp_path / "artifacts" / obj.key, (0, 0))
    artifact(store, "again")
    assert set(store.sweep().removed) == {o.key for o in old}


def test_sweep_ends_what_killed_writers_left(tmp_path: Path) -> None:
    store = any_store("local", tmp_path)
    manifest = artifact(store)
    store.commit(manifest)
    torn = tmp_path / "artifacts" / "manifests" / "ingest" / ".tmp-1-abcd"
    torn.write_bytes(b"half")
    assert store.artifacts() == [("ingest", manifest.fingerprint)]
    assert store.sweep().removed == ()
    os.utime(torn, (0, 0))
    assert store.sweep().removed == ("manifests/ingest/.tmp-1-abcd",)
    assert not torn.exists()


@pytest.mark.server
def test_sweep_aborts_stale_uploads() -> None:
    store = shared("moto").store()
    client = store.backend._client  # type: ignore[attr-defined]
    key = store.uri.rpartition("/")[2] + "/data/aa/stale.bin"
    client.call("create_multipart_upload", Bucket="artifacts", Key=key)
    assert store.sweep(dry_run=True).removed == ("data/aa/stale.bin",)  # moto dates every upload to 2010
    assert store.sweep().removed == ("data/aa/stale.bin",)
    assert store.sweep().removed == ()


@pytest.mark.server
def test_listing_longer_than_a_page_is_complete() -> None:
    backend = S3Backend("artifacts", uuid.uuid4().hex, S3Filesystem(shared("moto").options()))
    backend.page_keys = 10
    store = Store(backend)
    names = [f"notes/{n:04d}" for n in range(25)]
    for name in names:
        backend.write(name, b"x")
    assert store.keys("notes/") == names


@pytest.mark.server
def test_probe_says_what_each_store_honours(tmp_path: Path) -> None:
    for kind, safe in (("local", True), ("moto", True), ("rclone", False)):
        store = any_store(kind, tmp_path)
        probe = store.probe()
        assert (probe.create_only, probe.conditional_replace) == (safe, safe), kind
        assert store.keys("probe/") == []
        if safe:
            store.require_create_only()
        else:
            assert "IGNORED" in probe.detail
            with pytest.raises(UnsafeStore, match="run one at a time"):
                store.require_create_only()


def test_store_survives_pickling(store: Store) -> None:
    obj = artifact(store).objects[0]
    assert pickle.loads(pickle.dumps(store)).read(obj) == store.read(obj)


@pytest.mark.server
def test_store_used_before_a_fork_works_after_it() -> None:
    code = """
import os, sys
from support.object_stores import artifact
from tasks.s3_backend import S3Backend
from tasks.s3_client import S3Filesystem
from tasks.store import Store
store = Store.open(sys.argv[1])
manifest = artifact(store)
pid = os.fork()
if pid == 0:
    ok = store.verify(manifest) == [] and len(artifact(store, "child").objects) == 3
    os._exit(0 if ok else 1)
assert os.waitpid(pid, 0)[1] == 0
assert store.verify(artifact(store, "child")) == []
"""
    server = shared("moto")
    env = os.environ | server.env() | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code, server.uri()], env=env, timeout=LONG_S, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
