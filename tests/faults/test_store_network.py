"""What networks and S3 servers do wrong, and what the store makes of it: a right result or one line with a remedy."""

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from support.fault_proxy import FaultProxy
from support.object_stores import SECRET, artifact, rclone, shared
from support.processes import LONG_S, closed_port

from dalle_model.errors import CorruptObject, StoreError, StoreUnreachable, UnsafeStore, UsageError
from tasks.artifacts import Part
from tasks.store import Store

pytestmark = pytest.mark.server


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    with FaultProxy(shared("moto").port) as proxy:
        yield proxy


def through(proxy: FaultProxy, **options: object) -> Store:
    return shared("moto").store(endpoint_url=proxy.url, **options)


def work(store: Store, name: str = "a") -> None:
    """What a step asks of its store; every promise checked."""
    manifest = artifact(store, name)
    store.commit_part(manifest.fingerprint, 0, Part(objects=manifest.objects[:1]))
    store.commit(manifest)
    store.set_ref("production", manifest)
    assert store.parts(manifest.fingerprint) == {0: Part(objects=manifest.objects[:1])}
    assert store.find("ingest", manifest.fingerprint) == manifest
    assert store.verify(manifest) == []
    assert store.resolve("production") == manifest


@pytest.mark.parametrize("key", ["data/", "parts/", "manifests/", "refs/"])
def test_lost_success_answer_is_no_conflict(proxy: FaultProxy, key: str) -> None:
    rule = proxy.add("drop-answer", method="PUT", key=key, times=2)
    work(through(proxy))
    assert rule.hits == 2


@pytest.mark.parametrize("mode", ["503", "500", "reset"])
def test_refusals_for_some_seconds_are_waited_out(proxy: FaultProxy, mode: str) -> None:
    store = through(proxy)
    work(store, "before")
    proxy.seen.clear()
    proxy.add(mode, times=4)
    work(store)
    refused = [seen.at for seen in proxy.seen if seen.status in (500, 503, 0)]
    assert len(refused) == 4
    # two a second; aiohttp by itself repeats a request at once when a kept connection turns out to be dead
    pauses = 1 if mode == "reset" else 3
    assert refused[-1] - refused[0] > 0.49 * pauses


def test_refused_parallel_requests_are_paced_together(proxy: FaultProxy) -> None:
    store = through(proxy)
    manifest = artifact(store, rows=8)
    proxy.seen.clear()
    proxy.add("503", method="HEAD", times=11)
    store.commit(manifest)
    refused = [seen.at for seen in proxy.seen if seen.status == 503]
    assert len(refused) == 11
    # at most the eight that were under way when the first was refused, then two a second
    assert refused[-1] - refused[0] > 0.49 * (11 - 8)


def test_outage_longer_than_patience_is_one_line(proxy: FaultProxy) -> None:
    store = through(proxy, patience_s=1.5)
    proxy.add("503")
    with pytest.raises(
        StoreUnreachable, match=r"did not serve for \d+ s \(503 SlowDown\).*run the same command again"
    ) as error:
        artifact(store)
    assert "\n" not in str(error.value)
    assert len(proxy.seen) < 20  # in ten minutes, the default, it would be hundreds


def test_long_outage_warns_while_it_waits(proxy: FaultProxy, caplog: pytest.LogCaptureFixture) -> None:
    store = through(proxy)
    proxy.add("500", times=4)
    with caplog.at_level(logging.WARNING):
        store.load("notes/x")
    assert "does not serve (500 InternalError); trying again for up to 30 s" in caplog.text


def test_one_request_in_ten_failing_changes_nothing(proxy: FaultProxy) -> None:
    store = through(proxy)
    rules = [proxy.add(mode, share=0.035) for mode in ("503", "500", "reset", "drop-answer", "cut")]
    done = 0
    while done < 3 or sum(rule.hits for rule in rules) < 3:
        work(store, f"n{done}")
        done += 1
    assert done < 50


def test_answer_cut_in_half_is_asked_for_again(proxy: FaultProxy) -> None:
    store = through(proxy)
    rule = proxy.add("cut", method="GET", times=3)
    work(store)
    assert rule.hits == 3


def test_bit_flipped_on_the_way_back_is_read_again(proxy: FaultProxy, tmp_path: Path) -> None:
    store = through(proxy)
    manifest = artifact(store)
    store.commit(manifest)
    obj = manifest.objects[0]
    rule = proxy.add("flip", method="GET", key="/(data|manifests)/", times=1)
    assert store.read(obj)
    proxy.add("flip", method="GET", key="/data/", times=1)
    assert store.fetch(obj, tmp_path).stat().st_size == obj.bytes
    proxy.add("flip", method="GET", key="/data/", times=1)
    assert store.verify(manifest) == []
    proxy.add("flip", method="GET", key="/manifests/", times=1)
    assert store.find("ingest", manifest.fingerprint) == manifest
    assert rule.hits == 1
    assert store.keys("quarantine/") == []


def test_bit_flipped_on_the_way_there_is_refused_by_a_server_that_checks(proxy: FaultProxy) -> None:
    store = through(proxy)
    flipped = proxy.add("flip-upload", method="PUT", times=3)
    proxy.add("check-checksum", method="PUT")
    work(store)
    assert flipped.hits == 3


def test_bit_flipped_on_the_way_there_is_found_where_the_server_does_not_check(proxy: FaultProxy) -> None:
    store = through(proxy)
    proxy.add("flip-upload", method="PUT", key="/data/", times=1)
    manifest = artifact(store)
    with pytest.raises(CorruptObject, match="hashes to"):
        store.read(manifest.objects[0])
    assert [key for key, _ in store.verify(manifest)] == [manifest.objects[0].key]


def test_large_upload_survives_failing_parts(proxy: FaultProxy, tmp_path: Path) -> None:
    store = through(proxy)
    source = tmp_path / "weights"
    source.write_bytes(os.urandom(1 << 20) * 34)
    rules = [
        proxy.add("reset", method="PUT", key="partNumber=2", times=2),
        proxy.add("drop-answer", method="PUT", key="partNumber=1", times=1),
        proxy.add("503", method="POST", times=2),
        proxy.add("drop-answer", method="POST", key="uploadId=", times=1),
    ]
    obj = store.put(source, ext="bin", role="weights")
    assert [rule.hits for rule in rules] == [2, 1, 2, 1]
    assert store.verify(artifact(store).model_copy(update={"objects": (obj,)})) == []


def test_slow_answers_are_waited_for(proxy: FaultProxy) -> None:
    proxy.add("slow", delay_s=0.1)
    work(through(proxy))


def test_silent_server_is_given_up_after_the_read_timeout(proxy: FaultProxy) -> None:
    store = through(proxy, read_timeout_s=0.5, patience_s=1.0)
    proxy.add("slow", delay_s=5)
    with pytest.raises(StoreUnreachable, match="ReadTimeout"):
        store.load("notes/x")


def test_server_that_forgets_conditions_is_found_out(proxy: FaultProxy) -> None:
    assert through(proxy).probe()[:2] == (True, True)
    proxy.add("strip-header", method="PUT")
    store = through(proxy)
    assert store.probe()[:2] == (False, False)
    with pytest.raises(UnsafeStore, match="ignores create-only writes"):
        store.require_create_only()


def test_server_that_accepts_a_wrong_checksum_is_found_out(proxy: FaultProxy) -> None:
    assert "checksums of uploads are not checked" in through(proxy).probe().detail
    proxy.add("check-checksum", method="PUT")
    assert "uploads are checked against their checksum" in through(proxy).probe().detail


def test_probe_waits_out_an_outage(proxy: FaultProxy) -> None:
    proxy.add("503", seconds=1)
    assert through(proxy).probe()[:2] == (True, True)


def refusals(store: Store) -> list[str]:
    """What every kind of use says."""
    words = []
    for use in (
        lambda: store.load("notes/x"),
        lambda: store.put(b"x", ext="bin", role="x"),
        lambda: store.create("notes/x", b"x"),
        lambda: store.keys("notes/"),
        lambda: store.probe(),
        lambda: store.resolve("production"),
        lambda: store.set_ref("x-y", artifact(shared("moto").store())),
    ):
        with pytest.raises(StoreUnreachable) as error:
            use()
        assert SECRET not in str(error.value) and "\n" not in str(error.value)
        words.append(str(error.value))
    return words


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"secret": SecretStr("canary-wrong-secret")}, "the secret key does not fit"),
        ({"key": SecretStr("canary-wrong-key-id")}, "AWS_ACCESS_KEY_ID"),
    ],
)
def test_wrong_credentials_are_said_without_showing_them(changes: dict[str, SecretStr], said: str) -> None:
    store = shared("rclone").store(**changes)
    for words in refusals(store):
        assert said in words or "access is denied" in words
        assert "canary" not in words
    assert "canary" not in repr(store) + repr(store.options) + repr(store.backend.__dict__)


def test_missing_credentials_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    store = shared("rclone").store(key=SecretStr(""), secret=SecretStr(""))
    with pytest.raises(StoreUnreachable, match="no credentials: set AWS_ACCESS_KEY_ID"):
        store.load("notes/x")


@pytest.mark.parametrize("kind", ["moto", "rclone"])
def test_missing_bucket_is_said(kind: str) -> None:
    for words in refusals(shared(kind).store("s3://no-such-bucket/prefix")):
        assert "there is no such bucket: create it or correct --store" in words


def test_address_where_nobody_listens_is_given_up_soon() -> None:
    with closed_port() as port:
        store = shared("moto").store(endpoint_url=f"http://127.0.0.1:{port}", patience_s=2.0)
        with pytest.raises(StoreUnreachable, match="no server answers: check AWS_ENDPOINT_URL"):
            store.load("notes/x")


@pytest.mark.parametrize("uri", ["s3://", "s3://key:canary@bucket/x", "gs://bucket/x", ""])
def test_uri_that_is_no_store_is_refused_without_repeating_secrets(uri: str) -> None:
    with pytest.raises(UsageError) as error:
        Store.open(uri)
    assert "canary" not in str(error.value)


def test_endpoint_that_is_no_url_is_said() -> None:
    with pytest.raises(StoreUnreachable, match=r"no http:// or https:// URL"):
        shared("moto").store(endpoint_url="localhost-without-scheme").load("notes/x")


def test_server_killed_and_restarted_loses_nothing_and_is_waited_for() -> None:
    with rclone() as server:
        store = server.store(patience_s=LONG_S)
        done = artifact(store, "done")
        store.commit(done)
        server.kill()
        with contextlib.suppress(StoreError):
            Store.open(store.uri, options=server.options(patience_s=0.5)).load("notes/x")
        back = threading.Event()

        def start() -> None:
            back.set()
            server.start()

        threading.Timer(2.0, start).start()
        manifest = artifact(store, "after")
        assert back.is_set(), "it was written while no server ran"
        store.commit(manifest)
        assert store.verify(done) == store.verify(manifest) == []


def test_bucket_deleted_while_used_is_said() -> None:
    server = shared("moto")
    store = server.store("s3://doomed/prefix")
    client = store.backend._client  # type: ignore[attr-defined]
    client.call("create_bucket", Bucket="doomed")
    manifest = artifact(store)
    for key in store.keys(""):
        store.delete(key)
    client.call("delete_bucket", Bucket="doomed")
    for use in (lambda: store.read(manifest.objects[0]), lambda: store.commit(manifest), lambda: store.sweep()):
        with pytest.raises(StoreUnreachable, match="there is no such bucket"):
            use()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("mode", "seconds"), [("503", 120), ("500", 60), ("reset", 60), ("503", 600)])
def test_minutes_of_refusal_are_survived_at_two_requests_a_second(proxy: FaultProxy, mode: str, seconds: int) -> None:
    store = through(proxy, patience_s=660.0)
    work(store, "before")
    proxy.seen.clear()
    proxy.add(mode, seconds=seconds)
    work(store)
    refused = [seen.at for seen in proxy.seen if seen.status in (500, 503, 0)]
    print(
        f"\n{mode} for {seconds} s: {len(refused)} refused requests, served again after {refused[-1] - refused[0]:.0f} s"
    )
    assert len(refused) <= 2 * seconds + 2
