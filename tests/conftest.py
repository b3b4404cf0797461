"""What all tests share: isolation from the machine they run on, the markers, and one undisturbed tiny run."""

import fcntl
import os
import shutil
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from support.prefect_server import Up
    from support.tiny import TinyRun

sys.path.insert(0, str(Path(__file__).parent))  # for `from support...`, also under --import-mode=importlib

# The same examples at every run, and no limit of time: neither luck nor a busy machine decides whether a test passes.
settings.register_profile("dalle", deadline=None, derandomize=True)
settings.load_profile("dalle")

_FOREIGN = ("DALLE_", "PREFECT_", "AWS_")  # settings of the person who runs the tests must not reach them


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--slow``."""
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


def pytest_configure(config: pytest.Config) -> None:
    """A home of our own for everything that is written outside a test's folder, before Prefect is imported."""
    for name in [n for n in os.environ if n.startswith(_FOREIGN)]:
        del os.environ[name]
    home = Path(tempfile.mkdtemp(prefix="dalle-tests-"))
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
    # Hundreds of children would each compile our modules again, and each test process the tests.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    os.environ |= {
        "PREFECT_HOME": str(home / "prefect"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_DATA_HOME": str(home / "data"),
        "XDG_CONFIG_HOME": str(home / "config"),
        "HF_HOME": str(home / "huggingface"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "DALLE_SPOOL": str(home / "spool"),
        # Bit-exact results are promised for one number of threads; one is fastest at these sizes on a shared machine.
        "DALLE_THREADS": "1",
        "OMP_NUM_THREADS": "1",  # torch in the test process, too: two threads on a shared core wait for each other
        "PYTHONSAFEPATH": "1",
    }


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """A few named files run in this process: starting others would cost more than they save.

    All of them run in one process more than there are cores: at any moment one waits for a server or for a child.
    """
    return 0 if config.args_source is pytest.Config.ArgsSource.ARGS else len(os.sched_getaffinity(0)) + 1


def _turn(item: pytest.Item) -> int:
    names = getattr(item, "fixturenames", ())
    return 2 if "machine" not in names else 1 if "machine_to_stop" in names else 0


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what belongs to long runs (counted as deselected), skip what this machine cannot do, with the reason.

    Tests that share a server go to one test process, which starts it once, and they go first: they wait for most of
    their time, so others run beside them. The one that stops it is the last of them.
    """
    for item in items:
        if "machine" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("machine"))
    items.sort(key=_turn)
    if not config.getoption("--slow"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
        if slow:
            config.hook.pytest_deselected(items=slow)
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu:
        import torch

        if not torch.cuda.is_available():
            for item in gpu:
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, and torch sees none"))


def pytest_sessionfinish() -> None:
    """End the object stores that tests shared."""
    if stores := sys.modules.get("support.object_stores"):
        stores.close_shared()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many tests were skipped for which reason: a skip is never silent."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[text.removeprefix("Skipped: ")] += 1
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"skipped {count}: {reason}")


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Connections leave this machine for no test; a try is an error that names the address."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else ""
        if host and host not in ("localhost", "::1") and not str(host).startswith("127."):
            raise PermissionError(f"a test tried to reach {host}; tests use no network")
        connect(self, address)  # type: ignore[arg-type]

    socket.socket.connect = guarded  # type: ignore[method-assign, assignment]
    yield
    socket.socket.connect = connect  # type: ignore[method-assign]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> "TinyRun":
    """The tiny chain, run once as plain functions and never disturbed. Nobody writes to its store: ``copy`` it.

    Test processes share one: whoever comes second waits for the first and then finds every artifact there.
    """
    from support.tiny import run_once

    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "tiny"
    shared.mkdir(exist_ok=True)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return run_once(shared / "artifacts")


@pytest.fixture(scope="module")
def steps_here() -> Iterator[None]:
    """For a module whose tests ask what steps make: they start no process of their own."""
    from support.in_process import steps_in_this_process

    with steps_in_this_process():
        yield


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Up"]:
    """A Prefect server with a process worker and all deployments, as ``dalle up`` starts them; one per session."""
    from support.prefect_server import running_up

    with running_up(tmp_path_factory.mktemp("machine")) as up:
        yield up


@pytest.fixture(scope="session")
def machine_to_stop(machine: "Up") -> "Up":
    """The same, for the one test that stops it: it comes after all others that use it."""
    return machine
