"""Ranks that train together: how they meet, and what is said when they do not."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout

from dalle_model.errors import DeviceError
from dalle_model.runtime import Runtime

# Of a single collective while training: rank 0 may store a large checkpoint while the others wait.
_PATIENCE = timedelta(hours=1)


@contextmanager
def process_group(runtime: Runtime, *, deadline_s: float) -> Iterator[None]:
    """The ranks of torchrun as one group, proved by a first collective; DeviceError when that takes too long.

    A rank that is missing, a port that is closed or a cable that is cut would else be seen as a run that hangs.
    """
    backend = "nccl" if runtime.device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=deadline_s))
        _meet(runtime, deadline_s)
    except (RuntimeError, TimeoutError) as error:  # torch's DistError is a RuntimeError
        where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        raise DeviceError(
            f"rank {runtime.rank} of {runtime.world} did not finish a first collective with the others over {backend} "
            f"in {deadline_s:g} s; check that every machine runs the same command and reaches {where}, or raise DALLE_GROUP_S"
        ) from error
    _set_pg_timeout(_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _meet(runtime: Runtime, deadline_s: float) -> None:
    """All ranks add up a one. Raises TimeoutError; asked again and again, because a lost peer blocks every other wait."""
    ones = torch.ones(1, device=runtime.device)
    handle = dist.all_reduce(ones, async_op=True)
    assert handle is not None
    deadline = time.monotonic() + deadline_s
    while not handle.is_completed():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no answer after {deadline_s:g} s")
        time.sleep(0.01)
    handle.wait()
    if int(ones) != runtime.world:
        raise RuntimeError(f"{int(ones)} ranks answered, {runtime.world} were started")
