"""Files that lie in an object store, with as much of a path's ways as sources need.

The store itself is behind a small protocol: this package knows no bucket, and a test may bring one of its own.
"""

import posixpath
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol


class Bucket(Protocol):
    """Objects to read. An object that is not there raises FileNotFoundError; a store that fails raises SourceError."""

    uri: str

    def list(self, prefix: str) -> Collection[str]:
        """The key of every object that starts with ``prefix``. Asked for once per prefix."""

    def size(self, key: str) -> int:
        """Bytes of an object."""

    def tag(self, key: str) -> str:
        """Another text whenever an object is written; "" where the store gives none."""

    def open(self, key: str) -> BinaryIO:
        """An object as a stream that can seek."""

    def read(self, key: str) -> bytes:
        """All of an object."""


@dataclass(frozen=True, slots=True)
class Remote:
    """One file or folder of a bucket. Unlike a local one it has no links, no pipes and no permissions."""

    bucket: Bucket
    key: str  # no slash at either end; "" is the bucket itself

    def __str__(self) -> str:
        return f"{self.bucket.uri}/{self.key}"

    def __truediv__(self, name: str) -> "Remote":
        # What leaves the bucket keeps its "..", so that it lies below nothing.
        joined = posixpath.normpath(posixpath.join(self.key, name) if not name.startswith("/") else f"../{name}")
        return Remote(self.bucket, joined.strip("/").removeprefix("./") if joined != "." else "")

    @property
    def name(self) -> str:
        """The last part of the key."""
        return PurePosixPath(self.key).name

    @property
    def suffix(self) -> str:
        """As of a path."""
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> "Remote":
        """The folder it is in."""
        return Remote(self.bucket, self.key.rpartition("/")[0])

    def with_suffix(self, suffix: str) -> "Remote":
        """As of a path."""
        return Remote(self.bucket, PurePosixPath(self.key).with_suffix(suffix).as_posix())

    def relative_to(self, other: Any) -> PurePosixPath:
        """As of a path. ValueError when it is not below ``other``."""
        return PurePosixPath("/" + self.key).relative_to("/" + other.key)

    def is_relative_to(self, other: Any) -> bool:
        """As of a path."""
        return not self.key.startswith("..") and PurePosixPath("/" + self.key).is_relative_to("/" + other.key)

    def is_file(self) -> bool:
        """Whether an object has this key."""
        try:
            self.bucket.size(self.key)
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Whether objects lie below this key."""
        return bool(self.bucket.list(self.key + "/" if self.key else ""))

    def is_symlink(self) -> bool:
        """Never."""
        return False

    def open(self, mode: str = "rb") -> BinaryIO:
        """For reading only."""
        return self.bucket.open(self.key)

    def walk(self, *, hidden: bool) -> Iterator["Remote"]:
        """Every object below, in the order of a walk through the same local folder."""
        prefix = self.key + "/" if self.key else ""
        keys = [key.removeprefix(prefix) for key in self.bucket.list(prefix) if not key.endswith("/")]
        for parts in sorted(key.split("/") for key in keys):
            if hidden or not any(part.startswith(".") for part in parts):
                yield Remote(self.bucket, prefix + "/".join(parts))


AnyPath = Path | Remote
