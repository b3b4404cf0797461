"""Server, worker and deployments on this machine, until Ctrl-C: what ``dalle up`` does."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO

import psutil

from dalle_model.errors import ServerError
from flows import prefect_home
from flows.children import Child, start_prefect
from flows.deployments import POOL, absolute, deploy
from flows.prefect_home import HomeLease
from flows.server_watch import watched
from flows.temporary_server import QUIET, START_DEADLINE_S, check_database, server_environment, wait_until_healthy

FLOW_GRACE_S = 30.0  # a step that is told to stop saves its checkpoint first
SERVER_GRACE_S = 10.0
_WORKER_ASKS_S = "2"  # for runs to start; Prefect's 10 s spare a server of many workers, and a person waits for them
_RESTART_S = (1.0, 2.0, 5.0, 15.0, 30.0)


class _Stop(Exception):
    """SIGINT, SIGTERM or SIGHUP arrived."""


@contextmanager
def _stop_signals() -> Iterator[None]:
    """The first signal raises _Stop; later ones are ignored, for the clean-up has its own deadline."""
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def handle(number: int, frame: FrameType | None) -> None:
        for name in names:
            signal.signal(name, signal.SIG_IGN)
        raise _Stop

    before = {name: signal.signal(name, handle) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def up(*, host: str = "127.0.0.1", port: int = 4200, store: str = "./artifacts", home: Path | None = None) -> None:
    """Run Prefect's server and a worker with all deployments until SIGINT, SIGTERM or SIGHUP.

    Returns when every process is gone. Raises ServerError when the port or the home is taken, or the server dies.
    """
    lease = _lease(home or prefect_home.default_home())
    try:
        _check_port(host, port)
        check_database(lease.home)
        with _stop_signals():
            _Machine(host, port, absolute(store), lease).run()
    finally:
        lease.release()


def _lease(home: Path) -> HomeLease:
    try:
        lease = prefect_home.lease(home)
    except OSError as error:
        raise ServerError(
            f"Prefect's folder {home} cannot be written ({error.strerror}); name another with --home"
        ) from None
    if lease is not None:
        return lease
    if url := prefect_home.announced_api(home):
        raise ServerError(
            f"`dalle up` is already running: {url.removesuffix('/api')}; use that one, or name another folder with --home and another --port"
        )
    raise ServerError(
        f"Prefect's folder {home} is in use by a `dalle` command that is still running; wait for its end, or name another folder with --home"
    )


def _check_port(host: str, port: int) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, socket.AF_UNSPEC, socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (socket.gaierror, OverflowError):
        raise ServerError(
            f"cannot listen on {host}:{port}: no such address or port; use --host 127.0.0.1 and a --port between 1 and 65535"
        ) from None
    except OSError as error:
        if prefect_home.is_healthy(f"http://{_reachable(host)}:{port}/api"):
            raise ServerError(
                f"a Prefect server already answers on port {port}; put the deployments there with "
                f"`PREFECT_API_URL=http://{_reachable(host)}:{port}/api dalle deploy`, or choose another --port"
            ) from None
        raise ServerError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another --port, e.g. --port {port + 1 if port < 65535 else 4200}"
        ) from None


def _reachable(host: str) -> str:
    """The address under which this machine itself reaches a server on ``host``."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)


class _Machine:
    """The server, the worker, and every process that the worker ever started."""

    def __init__(self, host: str, port: int, store: str, lease: HomeLease) -> None:
        self._host, self._port, self._store, self._lease = host, port, store, lease
        self._address = f"http://{_reachable(host)}:{port}"
        self._server: Child | None = None
        self._worker: Child | None = None
        self._workers_log: IO[str] | None = None
        self._offspring: set[psutil.Process] = set()

    def run(self) -> None:
        try:
            self._start()
            advice = f"steps at work go on; its log is {self._lease.home / 'server.log'}, Ctrl-C stops everything"
            with watched(f"{self._address}/api", advice, say=lambda line: print(line, flush=True)):
                self._watch()
        except _Stop:
            print("stopping: running steps save what they have; they go on when they are run again", flush=True)
        finally:
            self._stop()
        print("stopped", flush=True)

    def _start(self) -> None:
        environment = (
            server_environment(self._lease.home)
            | {
                "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(self._lease.home / "ui"),
                "PREFECT_SERVER_UI_API_URL": "/api",  # where the page came from; the default is port 4200, whatever --port says
            }
        )
        print(f"starting Prefect's server on {self._address} ...", flush=True)
        log = self._lease.home / "server.log"
        self._server = start_prefect(
            "server", "start", "--host", self._host, "--port", str(self._port), log=log, environment=environment
        )
        wait_until_healthy(self._server, f"{self._address}/api", START_DEADLINE_S)
        os.environ["PREFECT_HOME"] = str(self._lease.home)
        for line in deploy(store=self._store, api_url=f"{self._address}/api"):
            print(f"  {line}", flush=True)
        self._start_worker()
        self._lease.announce(f"{self._address}/api")
        print(f"\nready: {self._address}\nCtrl-C stops server and worker.\n", flush=True)

    def _start_worker(self) -> None:
        log = self._lease.home / "worker.log"
        environment = QUIET | {
            "PREFECT_HOME": str(self._lease.home),
            "PREFECT_API_URL": f"{self._address}/api",
            "DALLE_STORE": self._store,
            "PREFECT_WORKER_QUERY_SECONDS": os.environ.get("PREFECT_WORKER_QUERY_SECONDS", _WORKER_ASKS_S),
        }
        self._worker = start_prefect(
            "worker",
            "start",
            "--pool",
            POOL,
            "--type",
            "process",
            "--name",
            f"up-{os.getpid()}",
            log=log,
            environment=environment,
        )
        if self._workers_log is None:
            self._workers_log = log.open(errors="replace")
            self._workers_log.seek(0, os.SEEK_END)

    def _watch(self) -> None:
        deaths = 0
        assert self._server is not None
        while True:
            assert self._worker is not None
            self._remember(self._worker)
            self._show_log()
            if not self._server.alive:
                raise ServerError(
                    f"Prefect's server ended with exit code {self._server.returncode}; its log is {self._server.log}"
                )
            if not self._worker.alive:
                pause_s = _RESTART_S[min(deaths, len(_RESTART_S) - 1)]
                deaths += 1
                print(
                    f"the worker ended with exit code {self._worker.returncode}; starting it again in {pause_s:.0f} s",
                    flush=True,
                )
                time.sleep(pause_s)
                self._start_worker()
            time.sleep(0.5)

    def _remember(self, worker: Child) -> None:
        """Keep track of the flows' processes: they outlive a worker that is killed, and must not outlive us."""
        with suppress(psutil.NoSuchProcess):
            self._offspring |= set(psutil.Process(worker.process.pid).children(recursive=True))
        self._offspring = {process for process in self._offspring if process.is_running()}

    def _show_log(self) -> None:
        if self._workers_log is not None and (text := self._workers_log.read()):
            print(text, end="", flush=True)

    def _stop(self) -> None:
        """Flows and worker first, while the server can still record how they ended."""
        if self._worker is not None:
            self._remember(self._worker)
            self._worker.stop(FLOW_GRACE_S)
        for process in [p for p in self._offspring if p.is_running()]:
            process.terminate()
        _, left = psutil.wait_procs(list(self._offspring), timeout=FLOW_GRACE_S)
        for process in left:
            process.kill()
        self._show_log()
        if self._server is not None:
            self._server.stop(SERVER_GRACE_S)
        if self._workers_log is not None:
            self._workers_log.close()
