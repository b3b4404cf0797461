"""Sources that lie in an S3 bucket: objects to read, by the same endpoint and credentials as the store."""

import functools
import io
import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import urlsplit

from dalle_model.errors import SourceError
from dalle_model.sources.remote import Remote
from dalle_model.sources.telling import Tally, Tell, silent
from tasks.s3_client import StoreOptions, reading_filesystem
from tasks.settings import Settings

_T = TypeVar("_T")


class S3Bucket:
    """One bucket. Its listing is asked for once: a source is a snapshot, and its content is checked when it was read."""

    page_keys = 1000  # objects of one answer to a listing, the most that S3 gives

    def __init__(self, name: str, options: StoreOptions, tell: Tell = silent) -> None:
        self.uri = f"s3://{name}"
        self._name, self._options, self._tell = name, options, tell
        self._listed: dict[str, dict[str, tuple[int, str]]] = {}  # size and tag by key, by prefix
        self._fs: Any = None
        self._pid = 0

    def list(self, prefix: str) -> Collection[str]:
        if prefix not in self._listed:
            self._listed[prefix] = dict(self._pages(prefix))
        return self._listed[prefix]

    def _pages(self, prefix: str) -> Iterator[tuple[str, tuple[int, str]]]:
        """Page by page, as somebody waits who wants to know how far it is: a million objects are a thousand requests."""
        tally, more = Tally(self._tell, "objects listed"), dict[str, str]()
        while True:
            asked = {"Bucket": self._name, "Prefix": prefix, "MaxKeys": self.page_keys, **more}
            try:
                answer = self._ask("call_s3", "list_objects_v2", **asked)
            except FileNotFoundError:  # there is no such bucket
                return
            found = answer.get("Contents", ())
            yield from ((entry["Key"], _facts(entry["Size"], entry)) for entry in found)
            tally.add(len(found))
            tally.show()
            if not answer.get("IsTruncated"):
                tally.end()
                return
            more = {"ContinuationToken": answer["NextContinuationToken"]}

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
        return _facts(info["size"], info)

    def open(self, key: str) -> BinaryIO:
        self.size(key)
        raw = self._ask("open", self._path(key), "rb", block_size=1 << 22)
        return io.BufferedReader(raw, 1 << 16)  # s3fs's own readline knows no limit

    def read(self, key: str) -> bytes:
        # One request: with more at once than one it asks for the size before, which doubles the cost of small objects.
        return cast(bytes, self._ask("cat_file", self._path(key), max_concurrency=1))

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


def _facts(size: int, info: Mapping[str, Any]) -> tuple[int, str]:
    """Bytes of an object, and its tag: that of its content and the time at which it was written."""
    tag = info.get("ETag")
    return int(size), f"{tag} {info.get('LastModified', '')}" if tag else ""


def remote_opener(settings: Settings, tell: Tell = silent) -> functools.partial[Remote]:
    """A function from ``s3://bucket/key`` to the file or folder there, which tells how far the listing is."""
    return functools.partial(_remote, StoreOptions(endpoint_url=settings.endpoint_url), tell)


def _remote(options: StoreOptions, tell: Tell, uri: str) -> Remote:
    parts = urlsplit(uri)
    key = uri.removeprefix(f"s3://{parts.netloc}").strip("/")
    if not parts.netloc or "@" in parts.netloc:  # the text is not repeated: it may hold a password
        raise SourceError(
            "an S3 source is s3://bucket/prefix; credentials belong in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return Remote(S3Bucket(parts.netloc, options, tell), key)
