"""A real Prefect server with a process worker and all deployments, started as a person does: by ``dalle up``."""

import json
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from support.processes import DALLE, command_of, free_port, marked, marked_environment

FINAL = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})
START_S = 480.0  # about 20 s on a quiet machine with two cores
RUN_S = 900.0  # the chain takes about 45 s there
BUSY_S = 300.0
ANSWER_S = 300.0  # bounds a hang; on a crowded machine the server took more than a minute for an answer


class Refused(Exception):
    """The API's answer was an error; the text is what it said."""


@dataclass
class Up:
    """One ``dalle up``: its address, its folders, its processes."""

    folder: Path
    port: int = field(default_factory=free_port)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    process: "subprocess.Popen[bytes] | None" = None
    left_behind: list[str] = field(default_factory=list)  # what was still alive when it had ended

    @property
    def url(self) -> str:
        """Address of the UI; the API is below it."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def store(self) -> Path:
        """The artifact store of its runs."""
        return self.folder / "artifacts"

    @property
    def home(self) -> Path:
        """Prefect's folder."""
        return self.folder / "prefect"

    def output(self) -> str:
        """What it printed so far."""
        path = self.folder / "up.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self, *arguments: str) -> "Up":
        """Start it and return at once."""
        command = [
            *DALLE,
            "up",
            "--port",
            str(self.port),
            "--store",
            str(self.store),
            "--home",
            str(self.home),
            *arguments,
        ]
        # A worker of its own environment: pytest's thread limit must reach the steps, its PREFECT_HOME must not matter.
        environment = marked_environment(self.mark, DALLE_GRACE_S="10", DALLE_WORKERS="2")
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "up.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        return self

    def wait_ready(self) -> "Up":
        """Wait for the line with the address."""
        assert self.process is not None
        deadline = time.monotonic() + START_S
        while "ready: " not in self.output():
            assert self.process.poll() is None, (
                f"dalle up ended with {self.process.returncode}:\n{self.output()}{self.logs()}"
            )
            assert time.monotonic() < deadline, f"not ready after {START_S:.0f} s:\n{self.output()}{self.logs()}"
            time.sleep(0.2)
        return self

    def logs(self, last: int = 40) -> str:
        """The end of each log, for the message of a failed test."""
        parts = []
        for path in sorted(self.home.glob("*.log")):
            parts += [f"--- {path.name}", *path.read_text(errors="replace").splitlines()[-last:]]
        return "\n".join(parts)

    def processes(self) -> list[psutil.Process]:
        """Everything alive that it started, itself included."""
        return marked(self.mark)

    def stop(self, number: int = signal.SIGINT, within_s: float = 300.0) -> int:
        """Send a signal and wait for the end; the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(within_s)
        finally:
            self.left_behind = [f"{p.pid} {' '.join(command_of(p))}" for p in self.processes()] or self.left_behind
            for left in self.processes():
                with suppress(psutil.NoSuchProcess):
                    left.kill()

    def get(self, path: str) -> Any:
        """Ask the web server for JSON beside the API."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=ANSWER_S) as response:
            return json.loads(response.read())

    # the API ------------------------------------------------------------------------------------------------------

    def api(self, path: str, body: object = None, method: str = "") -> Any:
        """Ask Prefect's REST API. Raises Refused with its words."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.url}/api{path}", data=data, headers={"content-type": "application/json"}, method=method or None
        )
        deadline = time.monotonic() + BUSY_S
        while True:
            try:
                with urllib.request.urlopen(request, timeout=ANSWER_S) as response:
                    return json.loads(response.read() or b"null")
            except urllib.error.HTTPError as error:
                words = error.read().decode()
                if error.code != 503 or time.monotonic() > deadline:
                    raise Refused(words) from None
            time.sleep(0.5)  # its database is locked; Prefect's own client asks again, too

    def deployment(self, name: str) -> dict[str, Any]:
        """A deployment by ``flow/name``."""
        found: dict[str, Any] = self.api(f"/deployments/name/{name}")
        return found

    def submit(self, name: str, parameters: Mapping[str, Any]) -> str:
        """Start a run of a deployment; its id."""
        created = self.api(
            f"/deployments/{self.deployment(name)['id']}/create_flow_run", {"parameters": dict(parameters)}
        )
        return str(created["id"])

    def run(self, run_id: str) -> dict[str, Any]:
        """A flow run as it is now."""
        found: dict[str, Any] = self.api(f"/flow_runs/{run_id}")
        return found

    def wait_run(
        self,
        run_id: str,
        until: Callable[[dict[str, Any]], bool] = lambda run: run["state_type"] in FINAL,
        within_s: float = RUN_S,
    ) -> dict[str, Any]:
        """Wait for a flow run to end, or for something else about it."""
        deadline = time.monotonic() + within_s
        while True:
            run = self.run(run_id)
            if until(run):
                return run
            assert time.monotonic() < deadline, (
                f"run {run_id} is {run['state']} after {within_s:.0f} s:\n{self.log_of(run_id)}\n{self.logs()}"
            )
            time.sleep(0.5)

    def finish(self, name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Run a deployment to a good end."""
        run = self.wait_run(self.submit(name, parameters))
        assert run["state_type"] == "COMPLETED", f"{name}: {run['state']}\n{self.log_of(run['id'])}\n{self.logs()}"
        return run

    def log_of(self, run_id: str) -> str:
        """The log of a run as the UI shows it."""
        rows = self.api("/logs/filter", {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC"})
        return "\n".join(row["message"] for row in rows)

    def artifacts(self, run_id: str) -> dict[str, str]:
        """The artifacts of a run: key -> content."""
        rows = self.api("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run_id]}}, "limit": 200})
        return {row["key"]: str(row["data"]) for row in rows}

    def step_processes(self) -> list[psutil.Process]:
        """Processes that do a step's work."""
        return [p for p in self.processes() if "tasks.worker" in command_of(p)]

    def flow_processes(self) -> list[psutil.Process]:
        """Processes that run a flow."""
        return [p for p in self.processes() if re.search(r"prefect[. ](engine|flow-run)", " ".join(command_of(p)))]


@contextmanager
def running_up(folder: Path) -> Iterator[Up]:
    """A ready ``dalle up`` until the block ends; nothing of it is left then."""
    up = Up(folder).start()
    try:
        yield up.wait_ready()
    finally:
        up.stop()
