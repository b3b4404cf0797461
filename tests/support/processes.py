"""One stage in processes of its own, to be killed; and a look at what is left of them."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from dalle_model.config import Section
from tasks.artifacts import ArtifactRef

DALLE = (sys.executable, "-c", "from flows.cli import main; main()")  # the console script, of this very environment
DRIVER = Path(__file__).with_name("driver.py")
LONG_S = 540.0  # bounds a hang, below the limit of a test; on a crowded machine a stage has taken minutes
_given: set[int] = set()
_MARK = "DALLE_TEST_MARK"  # inherited by everything a driver starts, so that all of it can be found


@dataclass
class Driver:
    """A process that runs one stage by ``tasks.step.run_step``, in a group of its own."""

    stage: str
    config: Section
    inputs: Mapping[str, ArtifactRef]
    settings: Mapping[str, Any]
    env: Mapping[str, str] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    process: "subprocess.Popen[str] | None" = field(default=None, repr=False)

    def start(self, **env: str) -> "Driver":
        """Start it; ``env`` is laid over the environment."""
        order = {
            "stage": self.stage,
            "config": self.config.model_dump(mode="json"),
            "inputs": {name: ref.model_dump() for name, ref in self.inputs.items()},
            "settings": dict(self.settings),
        }
        self.process = subprocess.Popen(
            [sys.executable, str(DRIVER), json.dumps(order)],
            env=os.environ | self.env | env | {_MARK: self.mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return self

    @property
    def running(self) -> bool:
        """Whether the driver itself runs."""
        return self.process is not None and self.process.poll() is None

    def wait(self, timeout_s: float = LONG_S) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        assert self.process is not None
        out, err = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, out, err

    def finish(self, timeout_s: float = LONG_S) -> dict[str, Any]:
        """Wait for a good end and return what it printed: reference and whether it was reused."""
        code, out, err = self.wait(timeout_s)
        assert code == 0, f"{self.stage} ended with {code}: {out}{err}"
        answer: dict[str, Any] = json.loads(out.splitlines()[-1])
        return answer

    def processes(self) -> list[psutil.Process]:
        """Everything alive that this driver started, itself included."""
        return marked(self.mark)

    def workers(self) -> list[psutil.Process]:
        """Its children that run the stage's work: ``python -m tasks.worker``."""
        return [p for p in self.processes() if "tasks.worker" in command_of(p)]

    def kill(self, what: str) -> None:
        """SIGKILL to ``all`` its processes at once, to the ``parent`` only, or to the ``child`` only.

        Before there is a child, all are killed: none would be, and the stage would come to its end undisturbed.
        """
        assert self.process is not None
        if what == "parent":
            self.process.kill()
            return
        for victim in (self.workers() if what == "child" else []) or self.processes():
            send(victim, signal.SIGKILL)

    def gone(self, within_s: float = 120.0) -> list[psutil.Process]:
        """Wait until nothing is left of it; returns what is left all the same."""
        assert self.process is not None
        if not wait_for(lambda: not self.processes(), within_s):
            return self.processes()
        self.process.communicate()
        return []


def free_port() -> int:
    """A port nobody listens on now, below those that the system gives to outgoing connections on its own.

    Of those, one can be taken by any connection of the many tests beside, in the seconds before a server listens there.
    For the same reason no port is given twice, and each process of pytest-xdist has ports of its own.
    """
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10
    while True:
        port = random.SystemRandom().randrange(10_000 + 2_200 * number, 12_200 + 2_200 * number)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A port on which nobody listens, and nobody can while the block lasts."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])


def send(process: psutil.Process, number: int) -> None:
    """A signal to a process that may just have ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def marked(mark: str) -> list[psutil.Process]:
    """Living processes whose environment carries a mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def marked_environment(mark: str, **env: str) -> dict[str, str]:
    """This environment with a mark, for processes that are not drivers."""
    return os.environ | env | {_MARK: mark}


def wait_for(ready: Callable[[], object], within_s: float, every_s: float = 0.05) -> bool:
    """Ask until the answer is true; False when time is up. Looking through all processes costs a CPU 10 ms."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if ready():
            return True
        time.sleep(every_s)
    return bool(ready())
