"""The store's parts by themselves: keys, records, and how answers of an S3 server are understood."""

import errno
import hashlib
import resource
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError
from pydantic import SecretStr, ValidationError
from support.object_stores import artifact

from dalle_model.errors import CommitConflict, CorruptObject, StoreError, StoreFull, StoreUnreachable, UsageError
from tasks.artifacts import Part
from tasks.backends import check_key
from tasks.removals import Rule, removals_of, write_rule
from tasks.s3_backend import Pacer, S3Backend
from tasks.s3_client import StoreOptions
from tasks.sealed import seal, unseal
from tasks.spool import is_full, spool_error
from tasks.store import Store


class FakeS3:
    """A bucket in memory; each request first meets the next scripted failure of its method, if any."""

    def __init__(self, **failures: list[Exception | None]) -> None:
        self.objects: dict[str, bytes] = {}
        self.failures = failures
        self.calls: list[str] = []
        self.lost = 0  # bytes that an upload drops
        self.cut = 0  # answers still to be cut in the middle, or emptied if they are listings

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        self.calls.append(method)
        script = self.failures.get(method)
        if script and (failure := script.pop(0)) is not None:
            raise failure
        key = arguments.get("Key", "")
        if method == "put_object":
            if arguments.get("IfNoneMatch") and key in self.objects:
                raise refusal(412, "PreconditionFailed")
            if "IfMatch" in arguments and arguments["IfMatch"] != self.tag(key):
                raise refusal(412, "PreconditionFailed")
            self.objects[key] = arguments["Body"][: len(arguments["Body"]) - self.lost]
            return {}
        if method in ("get_object", "head_object"):
            if key not in self.objects:
                raise refusal(404, "NoSuchKey")
            data = self.objects[key]
            if self.cut and method == "get_object":
                self.cut -= 1
                data = data[: len(data) // 2]
            return {"Body": data, "ETag": self.tag(key), "ContentLength": len(data), "LastModified": datetime.now(UTC)}
        if method == "list_objects_v2":
            if self.cut:
                self.cut -= 1
                return {}
            found = [key for key in sorted(self.objects) if key.startswith(arguments["Prefix"])]
            contents = [{"Key": k, "Size": len(self.objects[k]), "LastModified": datetime.now(UTC)} for k in found]
            return {"Contents": contents, "IsTruncated": False}
        self.objects.pop(key, None)
        return {}

    def tag(self, key: str) -> str:
        return hashlib.md5(self.objects.get(key, b"")).hexdigest()


def refusal(status: int, code: str) -> OSError:
    """What s3fs raises for an answer of S3."""
    error = OSError(errno.EIO, "canary: servers may echo what was signed")
    response = {"Error": {"Code": code, "Message": "canary"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error.__cause__ = ClientError(response, "Operation")  # type: ignore[arg-type]
    return error


def fake_store(client: FakeS3, patience_s: float = 5.0) -> Store:
    return Store(S3Backend("bucket", "prefix", client, endpoint="host", pacer=Pacer(0.01), patience_s=patience_s))


@pytest.mark.parametrize(
    "key", ["", "/abs", "../up", "a/../b", "a//b", "a/", ".hidden", "a/.tmp-1", "a b", "a\n", "ä", "a\\b"]
)
def test_keys_that_could_leave_the_store_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(StoreError, match="is no key of the store"):
        check_key(key)
    with pytest.raises(StoreError, match="is no key of the store"):
        Store.open(tmp_path).create(key, b"x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ext", ["", ".png", "PNG", "a/b", "tar..gz"])
def test_extensions_that_are_none_are_refused(tmp_path: Path, ext: str) -> None:
    with pytest.raises(UsageError, match="is no file extension"):
        Store.open(tmp_path).put(b"x", ext=ext, role="x")


def test_sealed_record_shows_every_changed_byte() -> None:
    body = {"n": 1, "text": "ä", "list": [1, 2.5, None]}
    data = seal(body)
    assert unseal(data, "here") == body
    for place in range(len(data)):
        for bit in range(8):
            with pytest.raises(CorruptObject, match="here is damaged"):
                unseal(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :], "here")


def test_store_opens_by_path_and_uri(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    assert Store.open(folder).uri == Store.open(str(folder)).uri == Store.open(folder.as_uri()).uri == folder.as_uri()
    assert Store.open("s3://bucket/deep/prefix/").uri == "s3://bucket/deep/prefix"
    assert Store.open("s3://bucket").uri == "s3://bucket"
    assert not folder.exists(), "opening writes nothing"


def test_options_hide_secrets_and_refuse_unknown_keys() -> None:
    options = StoreOptions(key=SecretStr("canary"), secret=SecretStr("canary"), token=SecretStr("canary"))
    assert "canary" not in repr(options) + str(options) + options.model_dump_json()
    with pytest.raises(ValidationError):
        StoreOptions(pass_word="x")  # type: ignore[call-arg]


def test_password_in_the_endpoint_is_not_shown() -> None:
    store = Store.open("s3://bucket", options=StoreOptions(endpoint_url="ftp://user:canary@host:9", patience_s=0))
    with pytest.raises(StoreUnreachable) as error:
        store.load("notes/x")
    assert "canary" not in str(error.value) and "host:9" in str(error.value)


def test_local_store_imports_no_s3() -> None:
    code = "import sys; from tasks.store import Store; Store.open(sys.argv[1]).find('ingest', '0' * 64); " + (
        "print([m for m in ('s3fs', 'fsspec', 'botocore', 'aiohttp', 'prefect', 'torch') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "/nonexistent/store"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (503, "SlowDown"),
        (500, "InternalError"),
        (409, "ConditionalRequestConflict"),
        (429, ""),
        (400, "BadDigest"),
        (200, "InternalError"),
    ],
)
def test_transient_answers_are_tried_again(status: int, code: str) -> None:
    client = FakeS3(put_object=[refusal(status, code), refusal(status, code)])
    obj = fake_store(client).put(b"x", ext="bin", role="x")
    assert client.calls == ["put_object"] * 3 + ["head_object"]
    assert client.objects == {f"prefix/{obj.key}": b"x"}


@pytest.mark.parametrize(
    ("status", "code", "kind", "said"),
    [
        (403, "AccessDenied", StoreUnreachable, "access is denied"),
        (403, "InvalidAccessKeyId", StoreUnreachable, "the access key is unknown"),
        (403, "SignatureDoesNotMatch", StoreUnreachable, "the secret key does not fit"),
        (400, "ExpiredToken", StoreUnreachable, "the session token has expired"),
        (403, "RequestTimeTooSkewed", StoreUnreachable, "clock is off .*: set it"),
        (404, "NoSuchBucket", StoreUnreachable, "there is no such bucket"),
        (301, "PermanentRedirect", StoreUnreachable, "set AWS_REGION"),
        (507, "InsufficientStorage", StoreFull, "no space left"),
        (400, "MalformedXML", StoreUnreachable, "refuses the request"),
    ],
)
def test_final_answers_end_at_once_in_one_line(status: int, code: str, kind: type[Exception], said: str) -> None:
    client = FakeS3(put_object=[refusal(status, code)], get_object=[refusal(status, code)])
    store = fake_store(client)
    for use in (lambda: store.put(b"x", ext="bin", role="x"), lambda: store.load("notes/x")):
        with pytest.raises(kind, match=said) as error:
            use()
        assert "canary" not in str(error.value) and "\n" not in str(error.value)
    assert client.calls == ["put_object", "get_object"]


def test_a_limit_of_the_size_of_files_is_a_full_disk_and_nothing_half_written_stays(tmp_path: Path) -> None:
    """``ulimit -f`` and quotas were unexpected errors with a trace."""
    store = Store.open(str(tmp_path / "store"))
    store.put(b"small", ext="bin", role="x")
    before = store.keys("data/")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StoreFull, match=r"File too large.*run the same command again") as error:
            store.put(bytes(100_000), ext="bin", role="x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.keys("data/") == before
    quota = OSError(errno.EDQUOT, "Disk quota exceeded")
    for failure in (error.value.__cause__, quota):
        assert isinstance(failure, OSError) and is_full(failure)
        assert isinstance(spool_error(tmp_path, failure), StoreFull)


def test_server_that_cannot_do_conditions_is_used_without_and_found_out() -> None:
    unable = [refusal(501, "NotImplemented") for _ in range(3)]
    client = FakeS3(put_object=[unable[0], None, None, unable[1], unable[2]])
    store = fake_store(client)
    store.create("notes/a", b"x")
    assert store.load("notes/a") == b"x"
    assert store.probe()[:2] == (False, False)


def test_upload_that_arrives_short_is_noticed() -> None:
    client = FakeS3()
    client.lost = 1
    with pytest.raises(StoreError, match="has 2 bytes after an upload of 3; the server lost data"):
        fake_store(client).put(b"abc", ext="bin", role="x")


class HalfWritten(FakeS3):
    """Shows a record empty at first and whole later, as rclone's server may."""

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        answer = super().call(method, **arguments)
        if method == "get_object" and self.calls.count("get_object") <= 2:
            answer["Body"] = b""
        return answer


def test_record_that_is_being_written_is_looked_at_again() -> None:
    client = HalfWritten()
    store = fake_store(client)
    store.backend.write(store.part_key("ab", 0), seal({"fingerprint": "ab", "n": 0, "part": {"stats": {"rows": 1}}}))
    store.backend.write(store.part_key("ab", 1), seal({"fingerprint": "ab", "n": 1, "part": {}}))
    with pytest.raises(CommitConflict):
        store.commit_part("ab", 0, Part())
    assert client.calls.count("get_object") == 3


def test_defect_of_the_program_is_not_taken_for_a_fault_of_the_network() -> None:
    with pytest.raises(ZeroDivisionError):
        fake_store(FakeS3(get_object=[ZeroDivisionError()])).load("notes/x")


def test_a_server_named_by_the_environment_is_that_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients are kept, and one for a server that was named before must not be taken for this one's."""
    clients = []
    for port in (1, 2, 1):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        clients.append(Store.open("s3://bucket").backend._client)  # type: ignore[attr-defined]
    assert [client._options.endpoint_url[-1] for client in clients] == ["1", "2", "1"]
    assert clients[0] is clients[2]


def test_pacer_spaces_requests_only_while_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only sleeping moves: a busy machine would make any real one late."""
    now, slept = 100.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += seconds

    monkeypatch.setattr("tasks.s3_backend.time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    pacer = Pacer(0.05)
    for _ in range(50):
        pacer.wait()
    assert slept == []
    pacer.report(refused=True)
    for _ in range(4):
        pacer.wait()
        pacer.report(refused=True)
    assert slept == pytest.approx([0.05] * 4)
    pacer.report(refused=False)
    pacer.wait()
    assert len(slept) == 4


def test_an_answer_that_was_cut_on_its_way_changes_nothing() -> None:
    """A cut receipt was a conflict, a cut name lost its history, and an empty listing was a store without withdrawals."""
    client = FakeS3()
    store = fake_store(client)
    store.backend.second_looks_s = (0.0, 0.0)
    manifest = artifact(store)
    part = Part(objects=manifest.objects[:1])
    store.commit(manifest)
    store.commit_part(manifest.fingerprint, 0, part)
    store.set_ref("production", manifest)
    rule = Rule(kind="source", value="x")
    write_rule(store, rule, [])
    for use in (
        lambda: store.commit_part(manifest.fingerprint, 0, part),
        lambda: store.set_ref("production", manifest, note="again"),
        lambda: store.artifacts() == [("ingest", manifest.fingerprint)],
        lambda: [found.value for found in removals_of(store).rules] == ["x"],
    ):
        client.cut = 1
        assert use() is not False
        assert client.cut == 0
    client.cut, rules = 0, store.keys("removals/")
    assert len(store.read_ref("production").history) == 2  # type: ignore[union-attr]
    client.call("put_object", Key=f"prefix/{rules[0]}", Body=b"damaged")
    with pytest.raises(CorruptObject, match="restore it from a backup"):
        removals_of(store)
