"""Lasting child processes of the command line: Prefect's server and worker."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from flows.guarded import end_tree

_LOG_LIMIT_BYTES = 20_000_000


@dataclass
class Child:
    """A child process in a session of its own, with its output in a file."""

    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    @property
    def returncode(self) -> int | None:
        """Exit code, negative for a signal, None while it runs."""
        return self.process.poll()

    def wait_for(self, ready: Callable[[], bool], deadline_s: float) -> bool:
        """Ask ``ready`` until it says yes, the child ends, or ``deadline_s`` seconds have passed."""
        give_up = time.monotonic() + deadline_s
        while self.alive and time.monotonic() < give_up:
            if ready():
                return True
            time.sleep(0.1)
        return False

    def last_line(self) -> str:
        """The line of its log that says why it ended: of a trace the error, else what it wrote last."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        told = [line.strip() for line in lines[-200:] if line.strip() and not line.startswith("Server stopped")]
        errors = [line for line in told if re.match(r"[\w.]+(Error|Exception|Warning|NotFound)\b", line)]
        return (errors or told or [""])[-1][:300]

    def stop(self, grace_s: float) -> None:
        """End it and everything it started: SIGTERM, ``grace_s`` seconds, SIGKILL. Returns when all are gone."""
        if self.alive:
            end_tree(psutil.Process(self.process.pid), grace_s)
        self.process.wait()


def start_prefect(*arguments: str, log: Path, environment: Mapping[str, str]) -> Child:
    """Start ``prefect ARGUMENTS`` as a child that ends when we do, even by SIGKILL.

    ``environment`` is laid over ours without PREFECT_API_URL: in a server's environment it would point the UI
    elsewhere; a worker is given its own.
    """
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PREFECT_API_URL", "PREFECT_UI_API_URL", "PREFECT_SERVER_UI_API_URL")
    }
    env |= {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", **environment}
    log.parent.mkdir(parents=True, exist_ok=True)
    mode = "wb" if log.exists() and log.stat().st_size > _LOG_LIMIT_BYTES else "ab"
    with log.open(mode) as sink:
        command = [sys.executable, "-m", "flows.guarded", str(os.getpid()), *arguments]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=env, start_new_session=True
        )
    return Child(process, log)
