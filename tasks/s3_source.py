"""Sources that lie in an S3 bucket: objects to read, by the same endpoint and credentials as the store."""

import functools
import io
import os
from collections.abc import Collection, Mapping
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import urlsplit

from dalle_model.errors import SourceError
from dalle_model.sources.remote import Remote
from tasks.settings import Settings
from tasks.store import StoreOptions, reading_filesystem

_T = TypeVar("_T")


class S3Bucket:
    """One bucket. Its listing is asked for once: a source is a snapshot, and its content is checked when it was read."""

    def __init__(self, name: str, options: StoreOptions) -> None:
        self.uri = f"s3://{name}"
        self._name, self._options = name, options
        self._listed: dict[str, dict[str, tuple[int, str]]] = {}  # size and tag by key, by prefix
        self._fs: Any = None
        self._pid = 0

    def list(self, prefix: str) -> Collection[str]:
        if prefix not in self._listed:
            found = self._ask("find", self._path(prefix), detail=True, withdirs=False)
            start = len(self._name) + 1
            self._listed[prefix] = {
                path[start:]: _facts(info) for path, info in found.items() if path[start:].startswith(prefix)
            }
        return self._listed[prefix]

    def size(self, key: str) -> int:
        return self._info(key)[0]

    def tag(self, key: str) -> str:
        return self._info(key)[1]

    def _info(self, key: str) -> tuple[int, str]:
        for prefix, keys in self._listed.items():
            if key.startswith(prefix):
                if key in keys:
                    return keys[key]
                raise FileNotFoundError(key)
        info = self._ask("info", self._path(key))
        if info.get("type") != "file":
            raise FileNotFoundError(key)
        return _facts(info)

    def open(self, key: str) -> BinaryIO:
        self.size(key)
        raw = self._ask("open", self._path(key), "rb", block_size=1 << 22)
        return io.BufferedReader(raw, 1 << 16)  # s3fs's own readline knows no limit

    def read(self, key: str) -> bytes:
        return cast(bytes, self._ask("cat_file", self._path(key)))

    def _path(self, key: str) -> str:
        return f"{self._name}/{key}"

    def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        if self._pid != os.getpid():  # a client survives no fork
            self._fs, self._pid = reading_filesystem(self._options), os.getpid()
        try:
            return getattr(self._fs, method)(*args, **kwargs)
        except FileNotFoundError:
            raise
        except Exception as error:  # botocore, aiohttp and s3fs have a type for each of many troubles
            words = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
            raise SourceError(
                f"{self.uri} cannot be read ({type(error).__name__}: {words}); check the bucket, AWS_ENDPOINT_URL and the credentials"
            ) from error


def _facts(info: Mapping[str, Any]) -> tuple[int, str]:
    """Bytes of an object, and its tag: that of its content and the time at which it was written."""
    tag = info.get("ETag")
    return int(info["size"]), f"{tag} {info.get('LastModified', '')}" if tag else ""


def remote_opener(settings: Settings) -> functools.partial[Remote]:
    """A function from ``s3://bucket/key`` to the file or folder there."""
    return functools.partial(_remote, StoreOptions(endpoint_url=settings.endpoint_url))


def _remote(options: StoreOptions, uri: str) -> Remote:
    parts = urlsplit(uri)
    key = uri.removeprefix(f"s3://{parts.netloc}").strip("/")
    if not parts.netloc or "@" in parts.netloc:  # the text is not repeated: it may hold a password
        raise SourceError(
            "an S3 source is s3://bucket/prefix; credentials belong in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return Remote(S3Bucket(parts.netloc, options), key)
