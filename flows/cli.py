"""The command line: ``dalle run PRESET``, one command per stage, and commands to look at what was made.

Commands parse and print; what they do lives in ``flows.commands`` and below, and is imported only when it is needed.
"""

import atexit
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from dalle_model.errors import DalleError, ServerLost, UsageError
from flows.cli_app import app

__all__ = ["app", "main"]

# Importing a module registers its commands; this order is that of --help.
COMMANDS = (
    "flows.cli_steps",
    "flows.cli_drawing",
    "flows.cli_evaluation",
    "flows.cli_import",
    "flows.cli_artifacts",
    "flows.cli_forget",
    "flows.cli_server",
    "flows.cli_cost",
)
for name in COMMANDS:
    importlib.import_module(name)
INTERRUPTED = 130  # exit code, 128 + SIGINT


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Exit codes: 0 done, 1 failed with a named error, 2 wrong usage, 130 interrupted."""
    leave = _Leave()
    if arguments is None:  # registered before any import that matters, so it runs after all other handlers
        atexit.register(leave)
    own_process = arguments is None
    arguments = sys.argv[1:] if arguments is None else arguments
    code: object = 0
    lost = False
    try:
        with _sigterm_interrupts(leave if own_process else None):
            app(arguments, prog_name="dalle")  # ends by SystemExit, also when usage was wrong (2) or Ctrl-C came (130)
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        code = _report(error, "--debug" in arguments)
        lost = isinstance(error, ServerLost)
    if code == INTERRUPTED:
        leave.say_interrupted()
    leave.code = code if isinstance(code, int) else 0 if code is None else 1
    if lost and own_process:  # Prefect's exit handlers would offer the server that is gone each event, 7 s at a time
        from flows import temporary_server

        temporary_server.close()
        leave()
    raise SystemExit(code)


class _Leave:
    """The last exit handler: ends the process before C++ destructors run.

    Arrow's threads are now and then still being joined when its statics are destroyed; the process then aborts after
    its work is done ("terminate called without an active exception") and its exit code is lost.
    """

    code = 1
    said = False

    def __call__(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(self.code)

    def say_interrupted(self) -> None:
        """Say so, once."""
        if not self.said:
            self.said = True
            print("interrupted; run the same command again to go on", file=sys.stderr)

    def interrupted(self) -> None:
        """Leave at once after an interrupt: Prefect's server is silent, and nothing else is to be done."""
        from flows import temporary_server

        self.say_interrupted()
        self.code = INTERRUPTED
        temporary_server.close()
        self()


@contextmanager
def _sigterm_interrupts(leave: "_Leave | None" = None) -> Iterator[None]:
    """SIGTERM acts like Ctrl-C: a step saves a checkpoint and ends its processes instead of dying where it stands.

    SIGINT is set as well: a shell that starts us in the background has it ignored, and `kill -INT` would do nothing.
    ``leave`` ends the process where Prefect would go on waiting for a server that hangs.
    """
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return

    def interrupt(*_: object) -> None:
        if leave is not None and "flows.server_watch" in sys.modules:
            from flows.server_watch import leave_if_unheard

            leave_if_unheard(leave.interrupted)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(error: Exception, debug: bool) -> int:
    if isinstance(error, DalleError):
        print(f"error: {error}", file=sys.stderr)
    else:
        print(f"error: {type(error).__name__}: {error} (unexpected; --debug shows the trace)", file=sys.stderr)
    if debug:
        traceback.print_exception(error)
    return 2 if isinstance(error, UsageError) else 1
