"""A Prefect API for commands: the configured one, a running ``dalle up``, or Prefect's server for as long as we run.

Imports no Prefect at the top: ``prepare_environment`` must run before Prefect is imported. The temporary server is
started by us and not by Prefect's client, because that one leaves its server behind when the command is killed,
waits its whole time-out for a server that already died, and prints the server's traces into the progress bars.
"""

import atexit
import logging
import os
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dalle_model.errors import DalleError, ServerError, ServerLost
from flows import prefect_home
from flows.children import Child, start_prefect
from flows.crash_detection import HEARTBEAT_S, TAG, close_dead_runs
from flows.prefect_home import HomeLease
from flows.server_watch import watched

START_DEADLINE_S = 180.0  # a fresh database takes 3 s to migrate on a quiet machine, 30 s on a busy one

_WHILE_SILENT = (
    "the step at work goes on, and what it finishes is kept; Ctrl-C ends the run, the same command goes on later"
)

# Nothing of these commands phones home.
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
}

# By default Prefect deletes old events only and keeps every run with its pictures for ever: 2 MB for one of the whole chain.
_VACUUM = "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED"


def server_environment(home: Path) -> dict[str, str]:
    """What a server of ours is told: its folder, and to forget runs after 90 days (the store keeps their artifacts)."""
    return QUIET | {"PREFECT_HOME": str(home), _VACUUM: os.environ.get(_VACUUM, "events,flow_runs")}


@dataclass
class _Temporary:
    """The temporary server of this process: planned (a port is held), then running."""

    held: socket.socket | None
    url: str
    lease: HomeLease | None = None
    child: Child | None = None

    def close(self) -> None:
        if self.held:
            self.held.close()
        if self.child:
            self.child.stop(grace_s=10.0)
        if self.lease:
            self.lease.release()


_planned: list[_Temporary] = []  # at most one per process: Prefect's settings are per process, too


def configured_api() -> str:
    """Address of the API that commands use; empty when they start a temporary server.

    The environment wins, then the active Prefect profile, then a ``dalle up`` of this user.
    """
    if _planned:
        return ""
    return (
        os.environ.get("PREFECT_API_URL")
        or prefect_home.profile_api()
        or prefect_home.announced_api(prefect_home.default_home())
    )


def api_is_configured() -> bool:
    """Whether commands have an API without starting one."""
    return bool(configured_api())


def prepare_environment(debug: bool) -> None:
    """Set what Prefect reads from the environment. Call it before Prefect is imported; a second call changes nothing.

    Unless ``debug``, Prefect is silent on the terminal: our own display and one-line errors speak. The log in the UI
    is complete either way.
    """
    for name, value in (QUIET | {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S)}).items():
        os.environ.setdefault(name, value)
    if not debug:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
        os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")  # of its services, when the server is away
        logging.raiseExceptions = False  # else each line of the log that does not reach the server says so here
    if _planned:
        return
    if url := configured_api():
        os.environ["PREFECT_API_URL"] = url
        return
    held = socket.socket()
    held.bind(("127.0.0.1", 0))  # held, not listening: the number stays ours until the server starts
    url = f"http://127.0.0.1:{held.getsockname()[1]}/api"
    os.environ["PREFECT_API_URL"] = url
    temporary = _Temporary(held, url)
    _planned.append(temporary)
    # Registered before Prefect is imported, so that it runs after Prefect has sent its last events and log lines.
    atexit.register(temporary.close)


@contextmanager
def prefect_api() -> Iterator[str]:
    """The address of an API that answers, for a block that runs flows; ``prepare_environment`` comes first.

    Raises ServerError in one line when the configured API does not answer or the temporary one does not start.
    """
    url = os.environ.get("PREFECT_API_URL", "")
    if _planned:
        _start(_planned[0])
    elif not prefect_home.is_healthy(url, timeout_s=10.0):
        raise ServerError(
            f"the Prefect API {url} does not answer; start it, e.g. with `dalle up`, or unset PREFECT_API_URL to run without a lasting server"
        )
    from prefect import tags

    try:
        with tags(TAG), watched(url, _WHILE_SILENT):
            yield url
    except DalleError:
        raise
    except Exception as error:
        if explained := in_words(error, url):
            raise explained from error
        raise


def in_words(error: Exception, url: str) -> ServerError | None:
    """One line for the ways in which a Prefect client fails for want of its API; None for any other error."""
    text = str(error)
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if status in (401, 403):
        return ServerError(
            f"the Prefect API {url} refuses us ({status}); set PREFECT_API_AUTH_STRING or PREFECT_API_KEY to its credentials"
        )
    if type(error).__name__ == "ObjectNotFound":  # Prefect's, of which the text is empty
        return ServerError(
            f"the Prefect API {url} does not know this run any more: its database was emptied or replaced; "
            "finished steps are kept, run the same command again"
        )
    if status >= 500:
        return ServerError(
            f"the Prefect API {url} fails ({status}), the server's log says why; finished steps are kept, run the same command again"
        )
    if "Failed to reach API" in text or type(error).__name__ in (
        "ConnectError",
        "ConnectTimeout",
        "ReadTimeout",
        "RemoteProtocolError",
    ):
        return ServerLost(
            f"the Prefect API {url} stopped answering ({type(error).__name__}); finished steps are kept, run the same command again"
        )
    return None


def close() -> None:
    """End the temporary server of this process, if there is one."""
    for temporary in _planned:
        temporary.close()


def _start(temporary: _Temporary) -> None:
    if temporary.child is not None and temporary.child.alive:
        return
    home = prefect_home.default_home()
    try:
        # While another command uses the home, this run is recorded in a throwaway one; its artifacts are as lasting.
        temporary.lease = temporary.lease or prefect_home.lease(home) or prefect_home.throwaway()
    except OSError as error:
        raise ServerError(
            f"Prefect's folder {home} cannot be written ({error.strerror}); set PREFECT_HOME to a folder that can"
        ) from None
    check_database(temporary.lease.home)
    if temporary.held:
        port = temporary.held.getsockname()[1]
        temporary.held.close()
        temporary.held = None
    else:
        port = int(temporary.url.rsplit(":", 1)[1].removesuffix("/api"))
    environment = server_environment(temporary.lease.home) | {
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT_SERVER_UI_ENABLED": "false",
    }
    log = temporary.lease.home / "temporary-server.log"
    temporary.child = start_prefect(
        "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui", log=log, environment=environment
    )
    wait_until_healthy(temporary.child, temporary.url, START_DEADLINE_S)
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        close_dead_runs(client)


def wait_until_healthy(child: Child, url: str, deadline_s: float) -> None:
    """Return when the server answers. Raises ServerError when it ends or ``deadline_s`` passes before."""
    healthy = child.wait_for(lambda: prefect_home.is_healthy(url), deadline_s)
    if healthy:
        return
    how = f"did not answer within {deadline_s:.0f} s" if child.alive else f"ended with exit code {child.returncode}"
    reason = child.last_line()
    child.stop(grace_s=5.0)
    raise ServerError(
        f"Prefect's server {how}{': ' + reason if reason else ''}; its log is {child.log}. `dalle doctor` checks the installation"
    )


def check_database(home: Path) -> None:
    """Raise ServerError when the home holds a file that is no database: the server would only say so in a long trace."""
    path = home / "prefect.db"
    if not path.exists() or os.environ.get("PREFECT_SERVER_DATABASE_CONNECTION_URL"):
        return
    try:
        with suppress(sqlite3.OperationalError):  # locked or busy is not damaged
            connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
            connection.execute("select count(*) from sqlite_master").fetchone()
            connection.close()
    except sqlite3.DatabaseError as error:
        raise ServerError(
            f"Prefect's database {path} is damaged ({error}); move it away, it holds the history of runs and no artifact"
        ) from None
