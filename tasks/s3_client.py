"""The connection to S3: how to reach it, one client per process, and the only place where s3fs is imported."""

import functools
import os
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from tasks.s3_backend import Pacer


class StoreOptions(BaseModel):
    """How to reach S3. Whatever is empty is found by botocore: AWS_* variables, profiles, instance roles."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint_url: str = Field(default="", description="http(s) URL of an S3 server other than Amazon's.")
    key: SecretStr = Field(default=SecretStr(""), description="Access key id.")
    secret: SecretStr = Field(default=SecretStr(""), description="Secret access key.")
    token: SecretStr = Field(default=SecretStr(""), description="Session token.")
    region: str = Field(default="", description="Region of the bucket.")
    patience_s: float = Field(
        default=600.0, ge=0, le=86_400, description="How long one request is tried again during an outage, s."
    )
    connect_timeout_s: float = Field(default=5.0, gt=0, le=600, description="Limit for opening a connection, s.")
    read_timeout_s: float = Field(
        default=60.0, gt=0, le=3600, description="Limit for silence on an open connection, s."
    )


class S3Filesystem:
    """Requests through s3fs, each sent once. The client is made anew in each process: it survives no fork."""

    def __init__(self, options: StoreOptions) -> None:
        self._options = options
        self._pid = 0
        self._fs: Any = None

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """One request, sent once. Raises what s3fs raises; a ``Body`` in the answer is read to its end."""
        from fsspec.asyn import sync  # type: ignore[import-untyped]

        fs = self._connected()
        answer: dict[str, Any] = sync(fs.loop, _send, fs, method, arguments)
        return answer

    def _connected(self) -> Any:
        if self._pid == os.getpid():
            return self._fs
        fs = _filesystem(
            self._options,
            connect_timeout=self._options.connect_timeout_s,
            read_timeout=self._options.read_timeout_s,
            retries={"total_max_attempts": 1, "mode": "standard"},
            request_checksum_calculation="when_required",  # uploads carry ours
        )
        fs.retries = 1  # the backend above tries again, and knows which failures are answers
        self._fs, self._pid = fs, os.getpid()
        return fs


def reading_filesystem(options: StoreOptions) -> Any:
    """A client for reading what is not ours: sources. It tries again by itself, and is made anew in each process."""
    return _filesystem(options)


def _filesystem(options: StoreOptions, **config: Any) -> Any:
    import s3fs  # type: ignore[import-untyped]

    return s3fs.S3FileSystem(
        key=options.key.get_secret_value() or None,
        secret=options.secret.get_secret_value() or None,
        token=options.token.get_secret_value() or None,
        endpoint_url=options.endpoint_url or None,
        client_kwargs={"region_name": options.region} if options.region else {},
        config_kwargs={
            "s3": {"addressing_style": "path"},
            "response_checksum_validation": "when_required",  # range reads from servers without checksums fail otherwise
            **config,
        },
        use_listings_cache=False,
        skip_instance_cache=True,
    )


async def _send(fs: Any, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = await fs._call_s3(method, **arguments)
    if (body := answer.get("Body")) is not None:
        async with body as stream:
            answer["Body"] = await stream.read()
    return answer


@functools.lru_cache(maxsize=16)
def connection(options: StoreOptions, found: frozenset[tuple[str, str]]) -> tuple[S3Filesystem, Pacer]:
    """One client per process and server: to make one takes half a second, and the pace is the process's.

    found: the AWS_* variables, which count for what the options leave empty.
    """
    return S3Filesystem(options), Pacer()
