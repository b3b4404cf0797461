"""Real S3 servers for tests, each on a free port of this machine.

moto    complete and strict about conditions; keeps everything in memory; asks for no valid key
rclone  checks keys, keeps its data in a folder over kill and restart; ignores conditions

Both come from ``infra/install-test-tools.sh``. A test whose server is missing is skipped with that command, but fails
when CI=true.
"""

import contextlib
import functools
import hashlib
import os
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from support.processes import free_port

from tasks.artifacts import Manifest
from tasks.s3_client import StoreOptions
from tasks.store import Store

TOOLS = Path(__file__).resolve().parents[2] / ".tools"
INSTALL = "infra/install-test-tools.sh"
KEY, SECRET = "test-access-key", "canary-secret-key-0123456789"
BUCKET = "artifacts"


def need(tool: str) -> Path:
    """Path of a tool below ``.tools``. Skips the test when it is missing; fails it on CI, where nothing is skipped."""
    path = TOOLS / tool
    if not path.exists():
        reason = f"{path} is missing; install it with {INSTALL}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@dataclass
class Server:
    """One S3 server process."""

    command: list[str]
    port: int
    folder: Path  # rclone's data, moto's nothing
    log: Path
    process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """Endpoint."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, timeout_s: float = 300.0) -> None:
        """Start (again) and return when it accepts connections."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:  # before the port is asked: another program may have taken it
                break
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.05)
        raise RuntimeError(f"{self.command[0]} did not start: {self.log.read_text()[-2000:]}")

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def options(self, **changes: Any) -> StoreOptions:
        """How to reach it, with a short patience so that a defect shows as a failure and not as a wait."""
        given = {"endpoint_url": self.url, "key": SecretStr(KEY), "secret": SecretStr(SECRET), "patience_s": 30.0}
        return StoreOptions(**(given | changes))

    def env(self) -> dict[str, str]:
        """The same as environment variables, for child processes."""
        return {"AWS_ENDPOINT_URL": self.url, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}

    def uri(self) -> str:
        """A fresh place in the bucket."""
        return f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}"

    def store(self, uri: str = "", **options: Any) -> Store:
        """A store in a fresh place, or at ``uri``."""
        return Store.open(uri or self.uri(), options=self.options(**options))


@contextlib.contextmanager
def moto() -> Iterator[Server]:
    """A moto server with an empty bucket."""
    program = need("moto/bin/moto_server").with_name("python")
    with tempfile.TemporaryDirectory(prefix="moto-") as folder:
        port = free_port()
        command = [str(program), str(Path(__file__).with_name("moto_server.py")), "-H", "127.0.0.1", "-p", str(port)]
        server = Server(command, port, Path(folder), Path(folder) / "log")
        server.start()
        try:
            client = Store.open(f"s3://{BUCKET}", options=server.options()).backend
            client._client.call("create_bucket", Bucket=BUCKET)  # type: ignore[attr-defined]
            yield server
        finally:
            server.kill()


@contextlib.contextmanager
def rclone() -> Iterator[Server]:
    """An rclone server over a folder with an empty bucket. ``kill`` and ``start`` keep the data."""
    program = need("rclone")
    with tempfile.TemporaryDirectory(prefix="rclone-") as folder:
        port = free_port()
        data = Path(folder) / "data"
        (data / BUCKET).mkdir(parents=True)
        command = [
            *(str(program), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}"),
            # by default it writes to its cache and uploads 5 s later: a kill would lose what it said it has
            *("--vfs-cache-mode", "off", "--config", os.devnull, "--cache-dir", str(Path(folder) / "cache"), str(data)),
        ]
        server = Server(command, port, data, Path(folder) / "log")
        server.start()
        try:
            yield server
        finally:
            server.kill()


_running = contextlib.ExitStack()


@functools.cache
def shared(name: str) -> Server:
    """One server of a kind for the whole test run, for tests that do not harm it."""
    return _running.enter_context({"moto": moto, "rclone": rclone}[name]())


def close_shared() -> None:
    """End them. Called when the tests have ended: a process of pytest-xdist leaves without what atexit was told."""
    _running.close()


def any_store(kind: str, folder: Path, **options: Any) -> Store:
    """An empty store of a kind: ``local`` (in ``folder``), ``moto`` or ``rclone``."""
    return Store.open(folder / "artifacts") if kind == "local" else shared(kind).store(**options)


def artifact(store: Store, name: str = "a", *, rows: int = 3, **changes: Any) -> Manifest:
    """An uncommitted artifact of three small objects whose content follows from ``name``; they are in the store."""
    objects = tuple(
        store.put(f"{name}/{n} ".encode() * 500, ext="bin", role="piece" if n else "head", rows=1) for n in range(rows)
    )
    given = {
        "kind": "pairs",
        "step": "ingest",
        "step_version": 1,
        "fingerprint": hashlib.sha256(name.encode()).hexdigest(),
        "config": {"name": name},
        "inputs": (),
        "objects": objects,
        "rows": rows,
        "stats": {"mean": 0.5},
    }
    return Manifest(**(given | changes))
