"""The S3 backend: conditions, checksums and patience over single requests.

Every request goes through one loop that knows what its failure means. The client beneath retries nothing: a hidden
retry of a create-only write turns a lost success into a conflict, and hidden bursts keep a throttled server throttled.
"""

import base64
import contextlib
import hashlib
import logging
import random
import secrets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from dalle_model.errors import StoreError, StoreFull, StoreUnreachable
from tasks.backends import Stat, Tagged, check_key, local_errors

log = logging.getLogger(__name__)

PART_BYTES = 16 * 2**20  # of a multipart upload and of a ranged read
MAX_PARTS = 9_000  # S3 allows 10,000
THROTTLED_INTERVAL_S = 0.5  # at most two requests a second and process while the server refuses
CONTACT_S = 20.0  # an endpoint that never answered is a wrong endpoint, not an outage

# What an answer of success always holds. One without it was lost or cut on the way, however well it parses: an empty
# listing would say that nothing is withdrawn, and that no manifest names any object.
_ALWAYS = {"list_objects_v2": "IsTruncated", "create_multipart_upload": "UploadId"}

_REFUSED = {
    "InvalidAccessKeyId": "the access key is unknown",
    "SignatureDoesNotMatch": "the secret key does not fit the access key",
    "ExpiredToken": "the session token has expired",
    "InvalidToken": "the session token is invalid",
}


class S3Client(Protocol):
    """One signed request: method and arguments as in boto3's S3 client. A ``Body`` in the answer is bytes."""

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Send once, without a retry. Raises what s3fs raises."""


class Fault(NamedTuple):
    """What a failed request means: ``again`` and ``contact`` may be sent again, ``fatal`` not; the rest are answers."""

    kind: str  # absent | precondition | range | unsupported | again | contact | full | fatal
    words: str


class _Answer(StoreError):
    """A fault that is an answer to the question asked, e.g. the key is absent. A StoreError where none is expected."""

    def __init__(self, fault: Fault, where: str) -> None:
        super().__init__(
            f"{where} answers {fault.words} ({fault.kind}), which is not expected here; is it an S3 server?"
        )
        self.kind = fault.kind


def classify(error: BaseException) -> Fault | None:
    """What an exception of s3fs means, None for one that is a defect of this program.

    The words hold the server's code and never its text: servers echo what was signed.
    """
    from botocore import exceptions as boto  # type: ignore[import-untyped]

    source = error.__cause__ if isinstance(error.__cause__, boto.ClientError) else error
    if isinstance(source, boto.ClientError):
        return _classify_code(source.response)
    if (
        isinstance(error, (boto.NoCredentialsError, boto.PartialCredentialsError))
        or "credentials" in type(error.__cause__).__name__.lower()
    ):
        return Fault("fatal", "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile")
    if isinstance(error, boto.ParamValidationError):
        return Fault("fatal", "the bucket's name is not a valid one")
    if isinstance(error, boto.SSLError):
        return Fault(
            "contact", "no trusted TLS connection: check that the endpoint speaks https and its certificate is known"
        )
    if isinstance(error, (boto.EndpointConnectionError, boto.ConnectTimeoutError, boto.ProxyConnectionError)):
        return Fault("contact", "no server answers: check AWS_ENDPOINT_URL, the network, and that the server runs")
    if isinstance(error, ValueError) and "endpoint" in str(error).lower():
        return Fault("fatal", "the endpoint is no http:// or https:// URL: check AWS_ENDPOINT_URL")
    if isinstance(error, (boto.BotoCoreError, boto.HTTPClientError, OSError, TimeoutError, EOFError)) or type(
        error
    ).__module__.startswith("aiohttp"):
        return Fault("again", f"{type(error).__name__}")
    return None


def _classify_code(response: dict[str, Any]) -> Fault:
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) or 0)
    if code == "NoSuchBucket":
        return Fault("fatal", "there is no such bucket: create it or correct --store")
    if status == 507 or code in ("InsufficientStorage", "QuotaExceeded", "XMinioStorageFull"):
        return Fault("full", "the server has no space left")
    if status == 412 or code in ("PreconditionFailed", "412"):
        return Fault("precondition", code)
    if status == 416 or code == "InvalidRange":
        return Fault("range", code)
    if status == 404 or code in ("NoSuchKey", "NoSuchUpload", "404"):
        return Fault("absent", code)
    if status in (301, 307, 308) or code in (
        "PermanentRedirect",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
    ):
        return Fault("fatal", f"the bucket lies in another region ({code}): set AWS_REGION")
    if code == "RequestTimeTooSkewed":
        return Fault("fatal", f"this machine's clock is off ({code}): set it, or turn its synchronisation on")
    if status in (401, 403) or code in _REFUSED:
        reason = _REFUSED.get(code, "access is denied")
        return Fault(
            "fatal", f"{reason} ({code}): check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
        )
    if status == 501 or code in ("NotImplemented", "MethodNotAllowed"):
        return Fault("unsupported", code)
    transient = (
        "BadDigest",
        "XAmzContentSHA256Mismatch",
        "IncompleteBody",
        "RequestTimeout",
        "SlowDown",
        "Throttling",
        "InternalError",
    )
    if status >= 500 or status in (200, 408, 409, 425, 429) or code in transient:
        return Fault("again", f"{status} {code}")
    return Fault("fatal", f"the server refuses the request ({status} {code})")


class Pacer:
    """Spaces the requests of one process while the server refuses, so that an outage is not made worse."""

    def __init__(self, interval_s: float = THROTTLED_INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._refused = False
        self._next = 0.0

    def wait(self) -> None:
        """Return at once in good times; else when this request's turn has come."""
        with self._lock:
            if not self._refused:
                return
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._interval_s
        time.sleep(turn - now)

    def report(self, refused: bool) -> None:
        """Say how the last request went."""
        with self._lock:
            if refused and not self._refused:
                self._next = time.monotonic() + self._interval_s
            self._refused = refused


class S3Backend:
    """A bucket, or a folder of one. ``patience_s`` bounds how long one request is tried again."""

    workers = 8
    second_looks_s: tuple[float, ...] = (
        0.05,
        0.2,
    )  # damage may happen on the way, and rclone shows files while it writes them
    page_keys = 1000  # of a listing; the most that S3 gives

    def __init__(
        self,
        bucket: str,
        prefix: str,
        client: S3Client,
        *,
        endpoint: str = "",
        pacer: Pacer | None = None,
        patience_s: float = 600.0,
    ) -> None:
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._client = client
        self._where = f"{self.uri} at {endpoint}" if endpoint else self.uri
        self._patience_s = patience_s
        self._pacer = pacer or Pacer()
        self._met = False  # has this endpoint ever answered

    def path(self, key: str) -> Path | None:
        return None

    def get(self, key: str) -> bytes | None:
        found = self.get_tagged(key)
        return None if found is None else found.data

    def get_tagged(self, key: str) -> Tagged | None:
        try:
            answer = self._request("get_object", Key=self._key(key))
        except _Answer as refusal:
            if refusal.kind == "absent":
                return None
            raise
        return Tagged(answer["Body"], answer.get("ETag", ""))

    def stat(self, key: str) -> Stat | None:
        try:
            answer = self._request("head_object", Key=self._key(key))
        except _Answer as refusal:
            if refusal.kind == "absent":
                return None
            raise
        return Stat(int(answer["ContentLength"]), answer["LastModified"].timestamp())

    def blocks(self, key: str, size: int) -> Iterator[bytes] | None:
        if size <= 2 * PART_BYTES:
            data = self.get(key)
            return None if data is None else iter((data,))
        found = self.stat(key)
        return None if found is None else self._ranges(key, found.bytes)

    def create(self, key: str, data: bytes) -> bytes | None:
        for _ in range(4):
            # Asked first, for a server that ignores the condition: there at least nothing old is overwritten.
            if (found := self.get(key)) is not None:
                return found
            try:
                self._put_object(key, data, IfNoneMatch="*")
            except _Answer as refusal:  # taken meanwhile, or ours and the success was lost: read it
                if refusal.kind != "unsupported":
                    continue
                self._put_object(key, data)
            return None
        raise StoreError(
            f"{self.uri}/{key} appears and disappears while it is created; another program changes this store"
        )

    def replace(self, key: str, data: bytes, tag: str | None) -> bool:
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        try:
            self._put_object(key, data, **condition)
        except _Answer as refusal:
            if refusal.kind != "unsupported":
                return self.get(key) == data  # ours after all, when the answer of the first attempt was lost
            self._put_object(key, data)
        return True

    def write(self, key: str, data: bytes) -> None:
        self._put_object(key, data)

    def put(self, key: str, source: bytes | Path, sha256: str) -> None:
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        found = None
        for _ in range(2):  # a sweep elsewhere may have aborted the first upload
            if size <= 2 * PART_BYTES:
                self._put_object(key, source if isinstance(source, bytes) else _read(source, 0, size), sha256)
            else:
                self._put_parts(key, source, size)
            found = self.stat(key)
            if found is not None and found.bytes == size:
                return
        raise StoreError(
            f"{self.uri}/{key} has {found.bytes if found else 'no'} bytes after an upload of {size}; "
            "the server lost data, do not use it"
        )

    def delete(self, key: str) -> None:
        with contextlib.suppress(_Answer):
            self._request("delete_object", Key=self._key(key))

    def walk(self, prefix: str) -> Iterator[tuple[str, Stat]]:
        more: dict[str, str] = {}
        while True:
            answer = self._request("list_objects_v2", Prefix=self._prefix + prefix, MaxKeys=self.page_keys, **more)
            for entry in answer.get("Contents", ()):
                yield (
                    entry["Key"].removeprefix(self._prefix),
                    Stat(int(entry["Size"]), entry["LastModified"].timestamp()),
                )
            if not answer.get("IsTruncated"):
                return
            more = {"ContinuationToken": answer["NextContinuationToken"]}

    def leftovers(self, older_than_s: float, now: float, dry_run: bool) -> list[str]:
        found = []
        try:
            answer = self._request("list_multipart_uploads", Prefix=self._prefix)
        except _Answer:
            return []  # a server that cannot list uploads has its own way with them
        for upload in answer.get("Uploads", ()):
            if now - upload["Initiated"].timestamp() > older_than_s:
                found.append(upload["Key"].removeprefix(self._prefix))
                if not dry_run:
                    with contextlib.suppress(_Answer):
                        self._request("abort_multipart_upload", Key=upload["Key"], UploadId=upload["UploadId"])
        return found

    def conditional(self) -> tuple[bool, bool, str]:
        key = f"probe/{secrets.token_hex(8)}"
        try:
            self._put_object(key, b"1")
            exclusive = self._refuses(key, IfNoneMatch="*")
            guarded = self._refuses(key, IfMatch='"00000000000000000000000000000000"')
            checked = self._refuses_damage(key)
        finally:
            self.delete(key)
        words = [
            "create-only writes are honoured"
            if exclusive
            else "create-only writes are IGNORED: run one writer at a time",
            "conditional replacement is honoured"
            if guarded
            else "conditional replacement is IGNORED: move names from one place at a time",
            "uploads are checked against their checksum"
            if checked
            else "checksums of uploads are not checked: damage on the way is found by readers",
        ]
        return exclusive, guarded, "; ".join(words)

    def _refuses(self, key: str, **condition: str) -> bool:
        try:
            self._put_object(key, b"2", **condition)
        except _Answer as refusal:
            return refusal.kind == "precondition"
        return False

    def _refuses_damage(self, key: str) -> bool:
        checksum = _checksum(hashlib.sha256(b"other").hexdigest())
        try:  # not through _request: a wrong checksum is a fault that it would try again
            self._client.call("put_object", Bucket=self._bucket, Key=self._key(key), Body=b"3", ChecksumSHA256=checksum)
        except Exception as error:
            if classify(error) is None:
                raise
            return True
        return False

    def _key(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _put_object(self, key: str, data: bytes, sha256: str = "", **condition: str) -> None:
        checksum = _checksum(sha256 or hashlib.sha256(data).hexdigest())
        self._request("put_object", Key=self._key(key), Body=data, ChecksumSHA256=checksum, **condition)

    def _put_parts(self, key: str, source: bytes | Path, size: int) -> None:
        """Multipart upload, each part with its checksum and tried again by itself. The object appears at the end."""
        part_bytes = max(PART_BYTES, -(-size // MAX_PARTS))
        upload = self._request("create_multipart_upload", Key=self._key(key), ChecksumAlgorithm="SHA256")["UploadId"]
        where = {"Key": self._key(key), "UploadId": upload}

        def send(number: int) -> dict[str, Any]:
            data = _read(source, (number - 1) * part_bytes, part_bytes)
            checksum = _checksum(hashlib.sha256(data).hexdigest())
            answer = self._request("upload_part", **where, PartNumber=number, Body=data, ChecksumSHA256=checksum)
            return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": checksum}

        try:
            with ThreadPoolExecutor(4) as pool:  # four parts in memory
                parts = list(pool.map(send, range(1, -(-size // part_bytes) + 1)))
            with contextlib.suppress(_Answer):  # NoSuchUpload: completed, and the answer was lost. The caller looks.
                self._request("complete_multipart_upload", **where, MultipartUpload={"Parts": parts})
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to tell; a sweep aborts what is left
                self._client.call("abort_multipart_upload", Bucket=self._bucket, **where)
            raise

    def _ranges(self, key: str, size: int) -> Iterator[bytes]:
        for start in range(0, size, PART_BYTES):
            try:
                answer = self._request(
                    "get_object", Key=self._key(key), Range=f"bytes={start}-{min(start + PART_BYTES, size) - 1}"
                )
            except _Answer:
                return  # vanished or cut meanwhile: the caller's hash will differ
            yield answer["Body"]

    def _request(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Send until it succeeds, its failure is an answer, or patience ends."""
        start = time.monotonic()
        attempt = 0
        while True:
            self._pacer.wait()
            try:
                answer = self._client.call(method, Bucket=self._bucket, **arguments)
                if method in _ALWAYS and _ALWAYS[method] not in answer:
                    raise EOFError(f"an answer without {_ALWAYS[method]}")
            except Exception as error:
                if (fault := classify(error)) is None:
                    raise
                self._met = self._met or fault.kind != "contact"
                self._pacer.report(fault.kind in ("again", "contact"))
                self._judge(fault, time.monotonic() - start)
            else:
                self._met = True
                self._pacer.report(False)
                return answer
            attempt += 1
            if attempt in (3, 10, 30, 100, 300):
                log.warning(
                    "%s does not serve (%s); trying again for up to %.0f s", self._where, fault.words, self._patience_s
                )
            # full jitter, so that workers that failed together do not come back together
            time.sleep(random.uniform(0.1, min(0.2 * 1.7**attempt, 15.0)))

    def _judge(self, fault: Fault, waited_s: float) -> None:
        """Return when the request may be sent again, else raise what it failed with."""
        patience_s = self._patience_s if self._met else min(CONTACT_S, self._patience_s)
        if fault.kind in ("again", "contact"):
            if waited_s < patience_s:
                return
            raise StoreUnreachable(
                f"{self._where} did not serve for {waited_s:.0f} s ({fault.words})",
                again=". What is finished is kept: run the same command again when it does",
            )
        if fault.kind == "full":
            raise StoreFull(
                f"{self._where}: {fault.words}; free some, then run the same command again: what is finished is kept"
            )
        if fault.kind == "fatal":
            raise StoreUnreachable(f"{self._where}: {fault.words}")
        raise _Answer(fault, self._where)


def _checksum(sha256: str) -> str:
    return base64.b64encode(bytes.fromhex(sha256)).decode()


def _read(source: bytes | Path, start: int, count: int) -> bytes:
    if isinstance(source, bytes):
        return source[start : start + count]
    with local_errors(source), source.open("rb") as file:
        file.seek(start)
        return file.read(count)
