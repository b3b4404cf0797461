"""Steps in the process of the test, for tests that ask what a step makes and not how its process lives and dies.

A child's start costs more than all the work of a tiny step, most of it ``import torch``. The work function, the store,
the receipts and the commit are the product's own.
"""

import json
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dalle_model.errors import DalleError, StepFailed
from tasks import reproduce, step, worker
from tasks.job import Events, JobSpec
from tasks.launch import Listener
from tasks.settings import Settings
from tasks.spool import spool_folder


class _ToListener:
    """The stream between child and parent, without the pipe."""

    def __init__(self, listener: Listener) -> None:
        self.write: Callable[[str], None] = lambda line: listener(json.loads(line))

    def flush(self) -> None:
        pass


def _launch(spec: JobSpec, settings: Settings, listener: Listener, *, distributed: bool = False) -> None:
    """What ``tasks.launch.launch`` promises, but for processes: deadline, silence and ranks."""
    assert settings.ranks == settings.nodes == 1 and "DALLE_FAULT" not in os.environ
    events: Any = Events(_ToListener(listener))  # type: ignore[arg-type]
    said = worker._WarningsToParent(events)
    loggers = [logging.getLogger(package) for package in ("tasks", "dalle_model")]
    handler = signal.getsignal(signal.SIGTERM)
    for logger in loggers:
        logger.addHandler(said)
    try:
        with spool_folder(settings.spool, spec.fingerprint):
            worker._run(spec, events)
    except DalleError:
        raise
    except Exception as error:
        raise StepFailed(f"{type(error).__name__}: {error} (unexpected; --debug shows the trace)") from error
    finally:
        signal.signal(signal.SIGTERM, handler)
        for logger in loggers:
            logger.removeHandler(said)


@contextmanager
def steps_in_this_process() -> Iterator[None]:
    """A block in which steps start no process."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (step, reproduce):
            patch.setattr(module, "launch", _launch)
        yield
