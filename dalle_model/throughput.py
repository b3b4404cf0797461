"""How fast a machine multiplies matrices, measured: what a training step's speed is compared with."""

import time

import torch

from dalle_model.runtime import Runtime


def matmul_flops(runtime: Runtime, *, repeats: int = 5) -> float:
    """FLOP/s of square matrix products on the runtime's device in its type: the best of a few, a fraction of a second.

    The best, not the mean: other programs can only slow a product down. For the same reason one thread of a CPU is
    measured by its own time: on a crowded machine no product has a core to itself. On several ranks each measures its
    own share.
    """
    alone = runtime.device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter
    size = 1024 if runtime.device.type == "cpu" else 8192
    a = torch.ones(size, size, dtype=runtime.dtype, device=runtime.device)
    out = torch.empty_like(a)
    best = float("inf")
    for _ in range(repeats + 1):  # the first warms up
        _wait(runtime)
        started = clock()
        torch.mm(a, a, out=out)
        _wait(runtime)
        best = min(best, clock() - started)
    return 2 * size**3 / best


def _wait(runtime: Runtime) -> None:
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)
    elif runtime.device.type == "mps":
        torch.mps.synchronize()
