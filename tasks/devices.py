"""Which device a step computes on: resolved by the process that does the work, at the moment it starts.

A GPU is leased by an operating-system lock on a file named after its UUID: the lock is free the instant its holder
dies, whatever happens to servers and their slots.
"""

import fcntl
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

from dalle_model.errors import DeviceError
from dalle_model.runtime import Runtime
from tasks.place import Place


@dataclass(frozen=True)
class DevicePolicy:
    """What the user asked for. See ``tasks.settings.Settings`` for the meaning of each field."""

    device: str = "auto"
    dtype: str = "auto"
    threads: int = 1
    memory_fraction: float = 0.9


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX-512 BF16, AMX, or Arm BF16); emulation is slower than float32."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False  # no such file outside Linux: float32 is always right
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def resolve_device(name: str, rank: int = 0) -> torch.device:
    """``auto`` prefers cuda, then mps, then cpu. Raises DeviceError when the named device is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(name.partition(":")[2] or rank)
        if index >= count:
            raise DeviceError(f"device {name!r} needs GPU {index}, but {count} are visible; use --device cpu or auto")
        return torch.device("cuda", index)
    if name == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device 'mps' is not available on this machine; use --device cpu or auto")
    return torch.device(name)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 where the hardware multiplies it, else float32."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if device.type == "cpu" and cpu_has_bfloat16() else torch.float32


def resolve(policy: DevicePolicy, place: Place = Place()) -> Runtime:  # noqa: B008 - frozen
    """The Runtime of this process. Sets torch's thread count, the one process-wide setting torch leaves no choice about."""
    device = resolve_device(policy.device, place.local_rank)
    threads = max(1, policy.threads // place.local_world)
    torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.set_per_process_memory_fraction(policy.memory_fraction, device)
    dtype = resolve_dtype(policy.dtype, device)
    return Runtime(device=device, dtype=dtype, rank=place.rank, world=place.world, threads=threads)


@dataclass
class Lease:
    """A held lock; released by ``release`` or by the death of the process."""

    path: Path
    file: IO[str]

    def release(self) -> None:
        """Give the device back."""
        fcntl.flock(self.file, fcntl.LOCK_UN)
        self.file.close()


def lease(name: str, folder: Path, *, wait_s: float, log: Callable[[str], None]) -> Lease:
    """Hold the lock of one device, waiting up to ``wait_s`` seconds. Raises DeviceError when it stays taken."""
    path = folder / f"dalle-device-{name}.lock"
    # The file is never unlinked: a second file of the same name would be a second lock.
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    file = os.fdopen(fd, "r+")
    deadline = time.monotonic() + wait_s
    told = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            holder = path.read_text().strip() or "another process"
            if time.monotonic() >= deadline:
                file.close()
                raise DeviceError(
                    f"device {name} is held by {holder} for over {wait_s:.0f} s; wait, choose another --device, or raise DALLE_GPU_WAIT_S"
                ) from None
            if not told:
                log(f"waiting for device {name}, held by {holder}")
                told = True
            time.sleep(0.2)
    file.seek(0)
    file.truncate()
    file.write(f"process {os.getpid()}")
    file.flush()
    return Lease(path, file)


def lease_for(runtime: Runtime, folder: Path, *, wait_s: float, log: Callable[[str], None]) -> Lease | None:
    """Lease the GPU of a runtime; None on devices that are shared freely (cpu, mps)."""
    if runtime.device.type != "cuda":
        return None
    uuid = str(torch.cuda.get_device_properties(runtime.device).uuid)
    return lease(uuid, folder, wait_s=wait_s, log=log)


def free_memory_bytes(runtime: Runtime) -> int:
    """Bytes that a step may still allocate on its device."""
    if runtime.device.type == "cuda":
        return int(torch.cuda.mem_get_info(runtime.device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def preflight(runtime: Runtime, need_bytes: int, what: str) -> None:
    """Refuse work that cannot fit before it starts. Raises DeviceError naming both figures and the remedy."""
    free = free_memory_bytes(runtime)
    if need_bytes > free:
        raise DeviceError(
            f"{what} needs about {need_bytes / 1e9:.1f} GB on {runtime.device}, but {free / 1e9:.1f} GB are free; "
            "use a smaller batch, micro-batch or model, or another device"
        )
