"""The artifact store: the one door to storage, on a local folder and on S3 alike.

    data/<sha[:2]>/<sha256>.<ext>            immutable objects, addressed by content
    manifests/<step>/<fingerprint>.json      an artifact: the one create-only write that makes a step done
    parts/<fingerprint>/<n>.json             receipts of a long step's finished pieces
    refs/<name>.json                         names with their history; all that ever changes
    quarantine/<sha256>.json                 records of objects found damaged

Readers start from a manifest and verify every object they use; a listing is never more than a hint. The protocol and
its reasons: Delta Lake's and Iceberg's commit, icechunk's reading back after a lost answer.
"""

import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from pydantic import ValidationError

from dalle_model.errors import CommitConflict, CorruptObject, UnsafeStore, UsageError
from tasks.artifacts import ArtifactRef, Manifest, ObjectRef, Part
from tasks.backends import Backend, LocalBackend, check_key, hash_file, local_errors
from tasks.integrity import Found, VerifiedFiles, difference, is_present, is_sound, measure, quarantine
from tasks.references import Known, RefValue, parse_ref, ref_key, resolve, rollback, set_ref
from tasks.s3_backend import S3Backend
from tasks.s3_client import StoreOptions, connection
from tasks.sealed import seal, unseal
from tasks.sweep import SweepReport, sweep

log = logging.getLogger(__name__)

_EXT = re.compile(r"[a-z0-9]+(\.[a-z0-9]+)*")
_PART = re.compile(r"parts/([0-9a-f]+)/(\d{6,})\.json")
_MANIFEST = re.compile(r"manifests/([A-Za-z0-9_-]+)/([0-9a-f]+)\.json")

T = TypeVar("T")
R = TypeVar("R")


class StoreProbe(NamedTuple):
    """What a store was found to honour, and the same in words."""

    create_only: bool
    conditional_replace: bool
    detail: str


class Store:
    """Artifacts under one root. Cheap to make, safe to use from threads, pickled as its URI and options.

    Every method raises StoreUnreachable or StoreFull when the place itself fails; other errors are named at each.
    """

    def __init__(self, backend: Backend, options: StoreOptions | None = None) -> None:
        self.backend = backend
        self.uri = backend.uri
        self.options = options or StoreOptions()
        self._probed: StoreProbe | None = None
        self._files = VerifiedFiles()

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    def __reduce__(self) -> tuple[Callable[..., "Store"], tuple[str, StoreOptions]]:
        return _reopen, (self.uri, self.options)

    @classmethod
    def open(cls, uri: str | Path, *, options: StoreOptions | None = None) -> "Store":
        """A store by path, ``file://`` or ``s3://bucket/prefix``. Touches nothing yet. UsageError for any other URI."""
        text = str(uri)
        parts = urlsplit(text)
        options = options or StoreOptions()
        if parts.scheme == "s3":
            return cls(_open_s3(parts.netloc, parts.path.strip("/"), options), options)
        if parts.scheme == "file":
            return cls(LocalBackend(Path(unquote(parts.path))), options)
        if "://" in text:
            raise UsageError(f"a store cannot be opened by {parts.scheme}://; give a folder or s3://bucket/prefix")
        if not text:
            raise UsageError("an empty store URI; give a folder or s3://bucket/prefix")
        return cls(LocalBackend(Path(text).expanduser()), options)

    def url(self, key: str) -> str:
        """The URI of a key, for people and for references."""
        return f"{self.uri}/{key}"

    # objects

    def put(self, source: bytes | Path, *, ext: str, role: str, rows: int = 0) -> ObjectRef:
        """Store content under its hash, durably. Again is harmless, and cures a damaged object of the same hash."""
        if not _EXT.fullmatch(ext):
            raise UsageError(f"{ext!r} is no file extension: small letters and digits, without the first dot")
        if isinstance(source, bytes):
            sha256, size = hashlib.sha256(source).hexdigest(), len(source)
        else:
            with local_errors(source):
                sha256, size = hash_file(source), source.stat().st_size
        key = f"data/{sha256[:2]}/{sha256}.{ext}"
        self.backend.put(key, source, sha256)
        return ObjectRef(key=key, sha256=sha256, bytes=size, rows=rows, role=role)

    def missing(self, objects: Iterable[ObjectRef]) -> list[ObjectRef]:
        """Those of the objects that are not there, as far as a look tells: absent, of another size, or quarantined."""
        objects = list(objects)
        quarantined = frozenset(self.keys("quarantine/"))
        present = self._map(lambda obj: is_present(self.backend, obj, quarantined), objects)
        return [obj for obj, there in zip(objects, present, strict=True) if not there]

    def read(self, obj: ObjectRef) -> bytes:
        """Content of an object, verified. CorruptObject (and a record in ``quarantine/``) when missing or different."""
        found = Found(None)
        for _ in (1, 2):  # damage may have happened on the way here
            if (blocks := self.backend.blocks(obj.key, obj.bytes)) is None:
                break
            data = b"".join(blocks)
            found = Found(len(data), hashlib.sha256(data).hexdigest())
            if found == (obj.bytes, obj.sha256):
                return data
        raise quarantine(self.backend, obj, found)

    def fetch(self, obj: ObjectRef, folder: Path) -> Path:
        """A verified local file of an object, never to be written to.

        A local store gives its own file, S3 a copy in ``folder``. Raises CorruptObject like ``read``.
        """
        own = self.backend.path(obj.key)
        path = own or folder / f"{obj.sha256}{Path(obj.key).suffix}"
        if self._files.holds(path, obj):
            return path
        if own is None:
            self._download(obj, path)
        if not self._files.holds(path, obj):
            raise quarantine(self.backend, obj, measure(self.backend, obj))
        return path

    def verify(self, manifest: Manifest) -> list[tuple[str, str]]:
        """Read all objects of an artifact: (key, what is wrong) of each that is missing or differs; recorded too."""
        problems = self._map(self._problem, {o.key: o for o in manifest.objects}.values())
        return [problem for problem in problems if problem is not None]

    # raw keys

    def load(self, key: str) -> bytes | None:
        """Content of a key, unverified; None when absent."""
        return self.backend.get(key)

    def create(self, key: str, data: bytes) -> None:
        """Write a key that must not exist. Equal content there already is success, other content CommitConflict."""
        found = self.backend.create(key, data)
        if found is not None and found != data:
            raise CommitConflict(
                f"{self.url(key)} exists with other content ({len(found)} bytes, not {len(data)}); "
                "another writer was first"
            )

    def keys(self, prefix: str) -> list[str]:
        """Keys below ``prefix``, a folder that ends in /. A hint: for discovery, never for truth."""
        return sorted(key for key, _ in self.backend.walk(prefix))

    def delete(self, key: str) -> None:
        """Remove one key, e.g. an outlived checkpoint's receipt and then its objects. Nothing asks who names it."""
        self.backend.delete(key)

    # artifacts

    @staticmethod
    def manifest_key(step: str, fingerprint: str) -> str:
        """Where a step's artifact is committed."""
        return check_key(f"manifests/{step}/{fingerprint}.json")

    def manifest_uri(self, step: str, fingerprint: str) -> str:
        """The URI of the same."""
        return self.url(self.manifest_key(step, fingerprint))

    def find(self, step: str, fingerprint: str) -> Manifest | None:
        """The committed artifact, its manifest verified; None when there is none. CorruptObject when damaged."""
        key = self.manifest_key(step, fingerprint)

        def parse(data: bytes) -> Manifest:
            manifest = Manifest.from_bytes(data, self.url(key))
            if (manifest.step, manifest.fingerprint) != (step, fingerprint):
                raise CorruptObject(f"{self.url(key)} is the manifest of {manifest.step} {manifest.fingerprint[:12]}")
            return manifest

        try:
            return self.parsed(key, parse)
        except CorruptObject as error:
            raise CorruptObject(
                f"{self.url(key)} is damaged; delete this file and run the step again (its finished pieces are reused), "
                "or restore it from a backup"
            ) from error

    def commit(self, manifest: Manifest) -> ArtifactRef:
        """Make an artifact exist, after a look at each of its objects.

        Success also when another writer committed equal work (``facts`` may differ); CommitConflict when its work
        differs; CorruptObject when an object is not there.
        """
        for obj in self.missing(manifest.objects):
            raise quarantine(self.backend, obj, measure(self.backend, obj))
        key = self.manifest_key(manifest.step, manifest.fingerprint)
        data = manifest.to_bytes()
        found = self.backend.create(key, data)
        if found is not None and found != data:
            other = self.find(manifest.step, manifest.fingerprint)
            if other is not None and not other.answers_to(manifest.sha256):
                raise CommitConflict(
                    f"{manifest.step} {manifest.fingerprint[:12]} is committed with other content "
                    f"({other.sha256[:12]}, not {manifest.sha256[:12]}): "
                    "the step is not deterministic, or its version was not raised when its meaning changed"
                )
        return manifest.ref(self.url(key))

    def artifacts(self) -> list[Known]:
        """Step and fingerprint of every artifact a listing shows, sorted."""
        return [Known(m[1], m[2]) for key in self.keys("manifests/") if (m := _MANIFEST.fullmatch(key))]

    # receipts

    @staticmethod
    def part_key(fingerprint: str, n: int) -> str:
        """Where the receipt of piece ``n`` is."""
        return check_key(f"parts/{fingerprint}/{n:06d}.json")

    def parts(self, fingerprint: str) -> dict[int, Part]:
        """The pieces of a step that are finished, by number. One whose receipt or objects are damaged is not."""
        numbers = [int(m[2]) for key in self.keys(f"parts/{fingerprint}/") if (m := _PART.fullmatch(key))]
        quarantined = frozenset(self.keys("quarantine/"))
        found = zip(numbers, self._map(lambda n: self._part(fingerprint, n, quarantined), numbers), strict=True)
        return {n: part for n, part in found if part is not None}

    def commit_part(self, fingerprint: str, n: int, part: Part) -> None:
        """Record a finished piece. Equal content there already is success, a damaged receipt is replaced.

        Raises CommitConflict when a sound receipt holds other content.
        """
        key = self.part_key(fingerprint, n)
        data = seal({"fingerprint": fingerprint, "n": n, "part": part.model_dump(mode="json")})
        found = self.backend.create(key, data)
        if found is None or found == data:
            return
        there = self._part(fingerprint, n, frozenset(self.keys("quarantine/")))
        if there == part:  # the first look was damaged on its way here
            return
        if there is not None:
            raise CommitConflict(
                f"{self.url(key)} exists with other content: "
                "the step is not deterministic, or two versions of it run at once"
            )
        self.backend.write(key, data)

    def named_by_receipt(self, key: str) -> set[str]:
        """Keys of the objects that a receipt names; none when it is damaged, for then the piece is made again."""
        try:
            body = self.parsed(key, lambda data: unseal(data, self.url(key)))
            return {o.key for o in Part.model_validate((body or {}).get("part", {})).objects}
        except (CorruptObject, ValidationError):
            return set()

    # names

    def refs(self) -> dict[str, str]:
        """Every sound name and the fingerprint it points at."""
        found = {}
        for key in self.keys("refs/"):
            name = key.removeprefix("refs/").removesuffix(".json")
            try:
                value = self.read_ref(name)
            except (CorruptObject, UsageError) as error:
                log.warning("%s", error)
                continue
            if value is not None:
                found[name] = value.fingerprint
        return found

    def read_ref(self, name: str) -> RefValue | None:
        """A name's record, None when there is none. CorruptObject when damaged, UsageError when it cannot be a name."""
        key = ref_key(name)
        return self.parsed(key, lambda data: parse_ref(name, data, self.url(key)))

    def set_ref(self, name: str, manifest: Manifest, *, note: str = "", expect: str | None = None) -> RefValue:
        """Point a name at an artifact; what it pointed at is kept. Concurrent changes follow each other, none is lost.

        ``expect``: the fingerprint the name must have now ("" = none yet), else CommitConflict.
        """
        return set_ref(self, name, manifest, note, expect)

    def rollback(self, name: str) -> RefValue:
        """Point a name at what it pointed at before. RefNotFound when there is nothing to go back to."""
        return rollback(self, name)

    def resolve(self, ref: str) -> Manifest:
        """The artifact called by a name, a fingerprint, four or more of its first digits, or its manifest's URI.

        RefNotFound lists what is near, or the candidates.
        """
        return resolve(self, ref)

    # the store itself

    def probe(self) -> StoreProbe:
        """Find out by trying what the store honours. Asked once per instance."""
        if self._probed is None:
            self._probed = StoreProbe(*self.backend.conditional())
        return self._probed

    def require_create_only(self) -> None:
        """UnsafeStore when two writers could overwrite each other here."""
        if not self.probe().create_only:
            raise UnsafeStore(
                f"{self.uri} ignores create-only writes, so several writers at once are refused; "
                "run one at a time, or use a store that honours If-None-Match"
            )

    def sweep(self, older_than_s: float = 86_400, dry_run: bool = False) -> SweepReport:
        """Remove what nobody names and what killed writers left, if older than that; see ``tasks.sweep``."""
        return sweep(self, older_than_s, dry_run)

    # internals

    def parsed(self, key: str, parse: Callable[[bytes], R]) -> R | None:
        """A small record, None when absent. CorruptObject when it is damaged, at every look."""
        pauses_s = list(self.backend.second_looks_s)
        while True:
            data = self.backend.get(key)
            if data is None:
                return None
            try:
                return parse(data)
            except CorruptObject:
                if not pauses_s:
                    raise
                time.sleep(pauses_s.pop(0))

    def _part(self, fingerprint: str, n: int, quarantined: frozenset[str]) -> Part | None:
        key = self.part_key(fingerprint, n)

        def parse(data: bytes) -> Part:
            body = unseal(data, self.url(key))
            if (body.get("fingerprint"), body.get("n")) != (fingerprint, n):
                raise CorruptObject(f"{self.url(key)} is the receipt of another piece")
            return Part.model_validate(body.get("part"))

        try:
            part = self.parsed(key, parse)
        except (CorruptObject, ValidationError):
            log.warning("%s is damaged; piece %d is made again", self.url(key), n)
            return None
        for obj in part.objects if part else ():
            if not is_present(self.backend, obj, quarantined):
                log.warning("%s names %s, which is gone or damaged; piece %d is made again", self.url(key), obj.key, n)
                return None
        return part

    def _download(self, obj: ObjectRef, path: Path) -> None:
        """Fill ``path`` with what the store has; nothing when that is not the object. Whole or not at all."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
        with local_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                for _ in (1, 2):  # damage may have happened on the way here
                    with temporary.open("wb") as file:
                        file.writelines(self.backend.blocks(obj.key, obj.bytes) or ())
                    if hash_file(temporary) == obj.sha256:
                        os.replace(temporary, path)
                        return
            finally:
                temporary.unlink(missing_ok=True)

    def _problem(self, obj: ObjectRef) -> tuple[str, str] | None:
        if is_sound(self.backend, obj):
            return None
        found = measure(self.backend, obj)
        quarantine(self.backend, obj, found)
        return obj.key, difference(obj, found)

    def _map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        items = list(items)
        if self.backend.workers == 1 or len(items) < 2:
            return [function(item) for item in items]
        with ThreadPoolExecutor(self.backend.workers) as pool:
            return list(pool.map(function, items))


def _open_s3(bucket: str, prefix: str, options: StoreOptions) -> S3Backend:
    if not bucket or "@" in bucket or ":" in bucket:  # the text is not repeated: it may hold a password
        raise UsageError(
            "an s3:// store is s3://bucket/prefix; credentials belong in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if prefix:
        check_key(prefix)
    found = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    endpoint = options.endpoint_url or found.get("AWS_ENDPOINT_URL_S3") or found.get("AWS_ENDPOINT_URL") or ""
    client, pacer = connection(options.model_copy(update={"endpoint_url": endpoint}), frozenset(found.items()))
    where = urlsplit(endpoint).netloc.rpartition("@")[2]
    return S3Backend(bucket, prefix, client, endpoint=where, pacer=pacer, patience_s=options.patience_s)


def _reopen(uri: str, options: StoreOptions) -> Store:
    return Store.open(uri, options=options)
