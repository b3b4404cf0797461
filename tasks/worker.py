"""The child process of a step: ``python -m tasks.worker SPEC.json`` (or under torchrun, one per rank).

Events go to standard output as JSON lines; whatever libraries print goes to standard error. The process ends itself
when its parent is gone, so a killed step leaves nothing running.
"""

import errno
import faulthandler
import gc
import logging
import os
import platform
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import IO, Any

import psutil
import pyarrow as pa

from dalle_model.errors import DalleError
from tasks.faults import fault_point
from tasks.job import Events, Job, JobSpec, StopRequested
from tasks.launch import STACKS, lives
from tasks.place import Place
from tasks.s3_client import StoreOptions
from tasks.settings import Settings
from tasks.spool import is_full, make_spool, spool_error
from tasks.stages import stage_named
from tasks.step import load_dotted
from tasks.store import Store

_peak_rss = 0  # of the whole process tree, sampled by the watcher for the manifest's facts
STOPPED = 143  # 128 + SIGTERM, what a shell reports of a terminated process
FAILED = 1


def _open_event_stream() -> IO[str]:
    """Keep the real standard output for events and point descriptor 1 at standard error for everybody else."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return events


class _WarningsToParent(logging.Handler):
    """What the store and the model library warn of (a damaged receipt, a slow server) is said where a person reads."""

    def __init__(self, events: Events) -> None:
        super().__init__(logging.WARNING)
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        self._events.send("log", text=record.getMessage())


def _watch_parent(parent_pid: int, events: Events) -> None:
    """Heartbeats while the parent lives; the end of this process when it does not."""
    try:
        parent = psutil.Process(parent_pid)
    except psutil.NoSuchProcess:
        os._exit(STOPPED)
    global _peak_rss
    while True:
        time.sleep(0.5)
        if not lives(parent):
            os.killpg(os.getpgid(0), signal.SIGKILL)
        rss = _tree_rss()
        _peak_rss = max(_peak_rss, rss)
        events.send("alive", rss_bytes=rss)


def _tree_rss() -> int:
    """Resident bytes of this process and its children."""
    me = psutil.Process()
    total = 0
    for process in [me, *me.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


class _NoPandas:
    """An import finder that says that pandas is not there."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("pandas is left alone", name=name)


def _spare_pandas() -> None:
    """Let pyarrow conclude that there is no pandas, which it imports at its first array to look for data frames.

    That is half a second of a CPU. No step makes a data frame; only readers of the package datasets do, in ingest.
    """
    finder: Any = _NoPandas()
    sys.meta_path.insert(0, finder)
    pa.array([0])
    sys.meta_path.remove(finder)


def _imported(dotted: str) -> Any:
    """The work function, and torch with it, without a look for garbage.

    What an import makes stays; to go through its 170,000 objects again and again took a tenth of it, 0.4 s of a CPU.
    """
    gc.disable()
    try:
        return load_dotted(dotted)
    finally:
        gc.enable()


def _run(spec: JobSpec, events: Events) -> None:
    stage = stage_named(spec.stage)
    settings = Settings.model_validate(spec.settings)
    place = Place.of_torchrun(os.environ)
    store = Store.open(settings.store, options=StoreOptions(endpoint_url=settings.endpoint_url))
    spool, lock = make_spool(settings.spool, spec.fingerprint)
    started, clock = time.time(), time.monotonic()
    try:
        job = Job(spec, stage.config.model_validate(spec.config), settings, store, spool, events, place=place)
        signal.signal(signal.SIGTERM, lambda *_: job.request_stop())
        outcome = _imported(spec.work)(job)
        if spec.pieces is not None:
            events.send("done")  # the pieces have their receipts; whoever shared them out commits
        elif place.rank == 0:
            facts = {
                "started_at": started,
                "seconds": time.monotonic() - clock,  # the wall clock may be set meanwhile
                "host": platform.node(),
                "python": platform.python_version(),
                "writer": f"{platform.node()}:{os.getpid()}",
                "decision": spec.decision,
                "peak_rss_bytes": max(_peak_rss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024),
                **job.device_facts(),
            }
            fault_point("publish.before_manifest")
            store.commit(job.manifest(outcome, facts))
            fault_point("publish.after_manifest")
            events.send("done")
    finally:
        shutil.rmtree(spool, ignore_errors=True)
        lock.close()


def main() -> int:
    """Run one job; the exit code tells the parent how it went, the last event tells why."""
    events = Events(_open_event_stream(), Place.of_torchrun(os.environ).spoken_events)
    faulthandler.enable()  # a crash of native code leaves the Python stack, too
    faulthandler.register(STACKS)
    spec = JobSpec.model_validate_json(Path(sys.argv[1]).read_bytes())
    if spec.stage != "ingest":
        _spare_pandas()
    for package in ("tasks", "dalle_model"):
        logging.getLogger(package).addHandler(_WarningsToParent(events))
    threading.Thread(target=_watch_parent, args=(spec.parent_pid, events), daemon=True).start()
    try:
        _run(spec, events)
        return 0
    except StopRequested:
        events.send("stopped")
        return STOPPED
    except Exception as error:  # every failure crosses the process border as one event
        if isinstance(error, OSError) and (is_full(error) or error.errno == errno.EROFS):
            error = spool_error(Path(error.filename or spec.settings["spool"]), error)
        trace = "" if isinstance(error, DalleError) else traceback.format_exc()
        again = error.again if isinstance(error, DalleError) else ""
        events.send("error", kind=type(error).__name__, text=str(error) or repr(error), again=again, trace=trace)
        return FAILED


if __name__ == "__main__":
    # os._exit: nothing is left to clean up, and threads of libraries must not keep a finished worker alive.
    code = main()
    sys.stderr.flush()
    os._exit(code)
