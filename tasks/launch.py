"""Start a step's child process group, listen to it, and make sure that it ends: by itself, by deadline, or by us."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import psutil

from dalle_model import errors
from dalle_model.errors import DalleError, StepFailed, StepTimeout, UsageError
from tasks.job import JobSpec
from tasks.settings import Settings
from tasks.spool import spool_error, spool_folder

STACKS = signal.SIGUSR1  # asks a worker where it is: it writes the stack of each of its threads to standard error

Listener = Callable[[dict[str, Any]], None]

_STACKS_S = 10.0  # a machine with too much to do lets it wait; one that cannot answer is waited for no longer
_KILLED_S = 10.0  # within which a process that was killed has gone, unless the kernel holds it
_AGAIN = "; run it again to go on from its last finished piece"

# glibc returns every large tensor's pages to the system at once and faults them in again; keeping them makes a
# training step 1.1 to 1.5 times as fast on the CPU. Read by the C library when the child starts.
_KEEP_PAGES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647", "MALLOC_TOP_PAD_": "67108864"}


def _command(spec: JobSpec, settings: Settings, spec_path: Path, distributed: bool) -> list[str]:
    worker = ["-m", "tasks.worker", str(spec_path)]
    ranks, nodes = (settings.ranks, settings.nodes) if distributed else (1, 1)
    if ranks == nodes == 1:
        return [sys.executable, *worker]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--max-restarts", "0"]
    if nodes == 1:
        return [sys.executable, *torchrun, "--standalone", *worker]
    if not settings.rendezvous:
        raise UsageError(f"{nodes} machines need a place to meet; set DALLE_RENDEZVOUS to HOST:PORT, equal on all")
    # The fingerprint as name: only machines that do the same work meet.
    torchrun += ["--nnodes", str(nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", settings.rendezvous]
    torchrun += ["--rdzv-id", spec.fingerprint, "--rdzv-conf", f"join_timeout={settings.group_s:.0f}"]
    torchrun += ["--local-addr", settings.node_address] if settings.node_address else []
    return [sys.executable, *torchrun, *worker]


def _environment() -> dict[str, str]:
    env = dict(os.environ) | {k: v for k, v in _KEEP_PAGES.items() if k not in os.environ}
    env["PYTHONUNBUFFERED"] = "1"
    env["PYTHONSAFEPATH"] = "1"  # a `tasks` folder in the current directory must not win over ours
    return env


def _pump(stream: IO[str], sink: Callable[[str], None]) -> threading.Thread:
    def run() -> None:
        for line in stream:
            sink(line)
        sink("")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def stop_group(process: "subprocess.Popen[str]", grace_s: float) -> None:
    """SIGTERM, SIGKILL after ``grace_s`` seconds; returns when the group and all that it started are gone."""
    known: dict[int, psutil.Process] = {}
    for sent, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 30.0)):
        known |= _descendants(process.pid)
        if sent is signal.SIGKILL:
            _kill(known)  # the ranks of torchrun are in sessions of their own
        try:
            os.killpg(process.pid, sent)
        except (ProcessLookupError, PermissionError):
            break
        try:
            process.wait(wait_s)
            break
        except subprocess.TimeoutExpired:
            continue
    # The leader may be gone while a grandchild holds on.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    _kill(known)
    process.wait()
    deadline = time.monotonic() + _KILLED_S  # nobody tells us when a grandchild has gone
    while any(map(lives, known.values())) and time.monotonic() < deadline:
        time.sleep(0.01)


def lives(process: psutil.Process) -> bool:
    """Whether it is still this process, whatever the wall clock does: ``create_time`` moves when the clock is set."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _descendants(pid: int) -> dict[int, psutil.Process]:
    try:
        return {child.pid: child for child in psutil.Process(pid).children(recursive=True)}
    except psutil.NoSuchProcess:
        return {}


def _dump_stacks(pid: int, said: deque[str]) -> None:
    """Have the workers of the group write where each of their threads is, and wait until it is in ``said``."""
    workers = [p for p in _descendants(pid).values() if _is_worker(p)]
    with contextlib.suppress(psutil.NoSuchProcess):
        workers += [p for p in [psutil.Process(pid)] if _is_worker(p)]
    for worker in workers:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.send_signal(signal.SIGCONT)  # one that was stopped writes nothing
            worker.send_signal(STACKS)
    before: list[str] = []
    end = time.monotonic() + _STACKS_S
    while workers and time.monotonic() < end:
        time.sleep(0.3)
        now = list(said)
        if now == before and sum("most recent call first" in line for line in now) >= len(workers):
            return
        before = now


def _is_worker(process: psutil.Process) -> bool:
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    return "tasks.worker" in command and "torch.distributed.run" not in command


def _kill(processes: dict[int, psutil.Process]) -> None:
    for child in processes.values():
        try:
            child.kill()  # does nothing to another process that got its number
        except psutil.NoSuchProcess:
            continue


def _error_of(event: dict[str, Any], stderr: str) -> DalleError:
    """The child's error as the same type here; unexpected ones become StepFailed with the trace attached."""
    kind = getattr(errors, str(event["kind"]), None)
    if isinstance(kind, type) and issubclass(kind, DalleError):
        again = str(event.get("again", ""))
        return kind(str(event["text"]).removesuffix(again), again)
    error = StepFailed(f"{event['kind']}: {event['text']} (unexpected; --debug shows the trace)")
    error.add_note((event.get("trace") or "") + stderr)
    return error


def launch(spec: JobSpec, settings: Settings, listener: Listener, *, distributed: bool = False) -> None:
    """Run one job to its end in its own process group; ``distributed`` ones on as many ranks as the settings say.

    Returns after the child committed its manifest; of several machines that of rank 0 does. Raises the child's own
    error, StepTimeout after ``settings.deadline_s``, StepFailed when it died without a word or was silent for
    ``settings.silence_s``, UsageError when several machines have no place to meet.
    Whatever ends this call, KeyboardInterrupt and cancellation included, no process of the group is left.
    """
    with spool_folder(settings.spool, spec.fingerprint) as folder:
        spec_path = folder / "spec.json"
        try:
            spec_path.write_text(spec.model_dump_json())
        except OSError as error:
            raise spool_error(settings.spool, error) from error
        process = subprocess.Popen(
            _command(spec, settings, spec_path, distributed),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=_environment(),
            start_new_session=True,
        )
        try:
            _listen(process, spec, settings, listener, alone=not distributed or settings.nodes == 1)
        finally:
            stop_group(process, settings.grace_s)


def _listen(
    process: "subprocess.Popen[str]", spec: JobSpec, settings: Settings, listener: Listener, *, alone: bool
) -> None:
    lines: queue.Queue[str] = queue.Queue()
    tail: deque[str] = deque(maxlen=120)
    assert process.stdout is not None and process.stderr is not None
    _pump(process.stdout, lines.put)
    stderr = _pump(process.stderr, tail.append)
    started = heard = time.monotonic()
    failure: dict[str, Any] | None = None
    finished = False
    while True:
        try:
            line = lines.get(timeout=0.5)
        except queue.Empty:
            line = None
        now = time.monotonic()
        if line == "":
            break
        if line is not None:
            heard = now
            event = _parse(line)
            if event["event"] == "error" and failure is None:
                failure = event
            finished = finished or event["event"] == "done"
            listener(event)
        late: DalleError | None = None
        if settings.deadline_s and now - started > settings.deadline_s:
            late = StepTimeout(
                f"step {spec.stage} passed its deadline of {settings.deadline_s:.0f} s; finished pieces are kept, run it again with a longer --deadline to go on"
            )
        elif now - heard > settings.silence_s:
            late = StepFailed(f"step {spec.stage} gave no sign of life for {settings.silence_s:.0f} s", _AGAIN)
        if late is not None:
            _dump_stacks(process.pid, tail)
            late.add_note("Where its threads were, as far as they said:\n" + "".join(tail))
            raise late
    code = process.wait()
    stderr.join(5)
    if failure is not None:
        raise _error_of(failure, "".join(tail))
    if code != 0 or (alone and not finished):
        how = f"was killed by signal {-code} (out of memory?)" if code < 0 else f"ended with exit code {code}"
        error = StepFailed(f"step {spec.stage} {how} before its result was committed", _AGAIN)
        error.add_note("".join(tail))
        raise error


def _parse(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
        return event if isinstance(event, dict) and "event" in event else {"event": "log", "text": line.rstrip()}
    except ValueError:
        return {"event": "log", "text": line.rstrip()}
