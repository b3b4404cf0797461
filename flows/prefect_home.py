"""Where Prefect keeps its database on this machine, who is using it, and how to reach that server.

Imports no Prefect: the environment must be complete before Prefect is imported.
"""

import fcntl
import json
import os
import shutil
import tempfile
import tomllib
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO


def default_home() -> Path:
    """``PREFECT_HOME`` where it is set, else a folder of ours in the user's data folder."""
    if given := os.environ.get("PREFECT_HOME"):
        return Path(given).expanduser().absolute()
    home = Path(os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")) / "dalle" / "prefect"
    if home.is_absolute():  # a user without a home keeps the "~"
        with suppress(OSError):
            home.mkdir(parents=True, exist_ok=True)
    return (
        home
        if home.is_absolute() and os.access(home, os.W_OK)
        else Path(tempfile.gettempdir()) / f"dalle-prefect-{os.getuid()}"
    )


@dataclass
class HomeLease:
    """A home that this process alone uses: two servers on one SQLite file lock each other out."""

    home: Path
    lock: IO[str]
    temporary: bool = False

    def announce(self, api_url: str) -> None:
        """Let other commands of this user find the lasting server that lives here."""
        self.lock.truncate(0)
        self.lock.write(json.dumps({"pid": os.getpid(), "api_url": api_url}))
        self.lock.flush()

    def release(self) -> None:
        """Give the home back."""
        with suppress(OSError):
            self.lock.truncate(0)
        self.lock.close()
        if self.temporary:
            shutil.rmtree(self.home, ignore_errors=True)


def lease(home: Path) -> HomeLease | None:
    """The home, or None while another process uses it. The lock ends with the process, however that ends.

    Raises OSError when the folder cannot be made or written.
    """
    home.mkdir(parents=True, exist_ok=True)
    lock = (home / "dalle.lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    lock.seek(0)
    lock.truncate(0)
    return HomeLease(home, lock)


def throwaway() -> HomeLease:
    """A fresh home, removed on release."""
    home = Path(tempfile.mkdtemp(prefix="dalle-prefect-"))
    return HomeLease(home, (home / "dalle.lock").open("a+"), temporary=True)


def announced_api(home: Path) -> str:
    """API address of the ``dalle up`` that uses this home right now; empty when there is none."""
    try:
        with (home / "dalle.lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return ""  # nobody holds it: what is written there is old
            except BlockingIOError:
                url = json.loads(lock.read() or "{}").get("api_url", "")
    except (OSError, ValueError):
        return ""
    return str(url) if url and is_healthy(url) else ""


def profile_api() -> str:
    """API address of the active Prefect profile; empty when it names none."""
    # os.path.expanduser leaves the "~" of a user without a home, where Path.expanduser raises
    folder = os.path.expanduser(os.environ.get("PREFECT_HOME") or "~/.prefect")
    path = Path(os.path.expanduser(os.environ.get("PREFECT_PROFILES_PATH") or f"{folder}/profiles.toml"))
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, ValueError):
        return ""
    active = os.environ.get("PREFECT_PROFILE") or content.get("active", "")
    return str(content.get("profiles", {}).get(active, {}).get("PREFECT_API_URL", ""))


def is_healthy(api_url: str, timeout_s: float = 2.0) -> bool:
    """Whether a Prefect API answers there."""
    try:
        with urllib.request.urlopen(f"{api_url.rstrip('/')}/health", timeout=timeout_s) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)  # it answers; whether we may is another question
    except (OSError, ValueError):
        return False
