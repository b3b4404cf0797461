"""Is an object what its manifest says? Reading, comparing, and remembering what was found damaged."""

import hashlib
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from dalle_model.config import canonical_json
from dalle_model.errors import CorruptObject, StoreFull, StoreUnreachable
from tasks.artifacts import ObjectRef
from tasks.backends import Backend, hash_file, local_errors

log = logging.getLogger(__name__)


class Found(NamedTuple):
    """What the store holds under an object's key; ``bytes`` is None when nothing, ``sha256`` empty when not read."""

    bytes: int | None
    sha256: str = ""


def measure(backend: Backend, obj: ObjectRef) -> Found:
    """Read an object to its end, a few MB at a time."""
    blocks = backend.blocks(obj.key, obj.bytes)
    if blocks is None:
        return Found(None)
    digest, size = hashlib.sha256(), 0
    for block in blocks:
        digest.update(block)
        size += len(block)
    return Found(size, digest.hexdigest())


def is_sound(backend: Backend, obj: ObjectRef) -> bool:
    """Whether the store holds the object's very bytes. Read twice before no is said: the way here may be at fault."""
    return any(measure(backend, obj) == (obj.bytes, obj.sha256) for _ in (1, 2))


def difference(obj: ObjectRef, found: Found) -> str:
    """In words, what is wrong."""
    if found.bytes is None:
        return "is missing"
    if found.bytes != obj.bytes:
        return f"has {found.bytes} bytes, expected {obj.bytes}"
    return f"hashes to {found.sha256[:12] or 'nothing'}, expected {obj.sha256[:12]}"


def record_key(obj: ObjectRef) -> str:
    """Where the finding is kept that an object is damaged."""
    return f"quarantine/{obj.sha256}.json"


def quarantine(backend: Backend, obj: ObjectRef, found: Found) -> CorruptObject:
    """Record a damaged object, so that the next look-up of its artifact makes it again. Returns the error to raise."""
    record = {
        "key": obj.key,
        "role": obj.role,
        "expected_bytes": obj.bytes,
        "expected_sha256": obj.sha256,
        "found_bytes": found.bytes,
        "found_sha256": found.sha256,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        backend.write(record_key(obj), canonical_json(record))
    except (StoreUnreachable, StoreFull) as error:  # a read-only or full store: the finding itself is what matters
        log.warning("the damage of %s is not recorded: %s", obj.key, error)
    return CorruptObject(
        f"{backend.uri}/{obj.key} ({obj.role}) {difference(obj, found)}; "
        "run the step that made it again and it is made anew, or restore it from a backup"
    )


def is_present(backend: Backend, obj: ObjectRef, quarantined: frozenset[str]) -> bool:
    """Whether an object is there with its size, and not known to be damaged. A record that a cure voided is removed."""
    stat = backend.stat(obj.key)
    if stat is None or stat.bytes != obj.bytes:
        return False
    if record_key(obj) not in quarantined:
        return True
    if not is_sound(backend, obj):
        return False
    backend.delete(record_key(obj))
    return True


class VerifiedFiles:
    """Files this process has hashed; one is read again only when its size, time or inode changes."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[int, int, int, str]] = {}

    def holds(self, path: Path, obj: ObjectRef) -> bool:
        """Whether the file has the object's bytes."""
        with local_errors(path):
            try:
                stat = path.stat()
            except FileNotFoundError:
                return False
            seen = (stat.st_size, stat.st_mtime_ns, stat.st_ino, obj.sha256)
            if self._seen.get(path) == seen:
                return True
            if stat.st_size != obj.bytes or hash_file(path) != obj.sha256:
                return False
        self._seen[path] = seen
        return True
