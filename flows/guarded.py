"""Run Prefect's command line as a child that never outlives its parent: ``python -m flows.guarded PARENT_PID ARGS...``.

Prefect's own temporary server and workers stay behind when the process that started them is killed with -9. This
one looks at its parent twice a second; when the parent is gone it ends itself and everything it started.
"""

import os
import runpy
import signal
import sys
import threading
import time
from contextlib import suppress

import psutil

_GRACE_S = 10.0


def end_tree(root: psutil.Process, grace_s: float, *, include_root: bool = True) -> None:
    """End every descendant of ``root``, deepest sessions included: SIGTERM, ``grace_s`` seconds, then SIGKILL."""
    known: dict[int, psutil.Process] = {}
    for send, wait_s in ((psutil.Process.terminate, grace_s), (psutil.Process.kill, 5.0)):
        with suppress(psutil.NoSuchProcess):
            # Asked again before the kill: a process may have started another one in the meantime.
            known |= {child.pid: child for child in root.children(recursive=True)}
        targets = [process for process in known.values() if process.is_running()]
        targets += [root] if include_root and root.is_running() else []
        for process in targets:
            try:
                send(process)
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(targets, timeout=wait_s)


def _watch(parent_pid: int) -> None:
    try:
        parent = psutil.Process(parent_pid)
        while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.5)
    except psutil.NoSuchProcess:
        pass
    end_tree(psutil.Process(), _GRACE_S, include_root=False)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Watch the parent, then become ``prefect ARGS...``."""
    threading.Thread(target=_watch, args=(int(sys.argv[1]),), daemon=True).start()
    sys.argv = ["prefect", *sys.argv[2:]]
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
