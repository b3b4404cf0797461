"""Where this machine keeps and computes things. The only module that reads environment variables.

Nothing here enters a fingerprint: the same work on another store, device or number of workers is the same work.
"""

import os
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


def _default_spool() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if base.is_absolute() and os.access(base.parent, os.W_OK):  # a user without a home keeps the "~"
        return base / "dalle" / "spool"
    return Path(tempfile.gettempdir()) / f"dalle-spool-{os.getuid()}"  # another user's could not be written


class Settings(BaseSettings):
    """Settings of a process, from ``DALLE_*`` variables or given by name."""

    model_config = SettingsConfigDict(env_prefix="DALLE_", frozen=True, extra="forbid")

    store: str = Field("./artifacts", description="Artifact store: a folder or s3://bucket/prefix.")
    endpoint_url: str = Field("", description="S3 endpoint; empty = Amazon's, or AWS_ENDPOINT_URL.")
    spool: Path = Field(default_factory=_default_spool, description="Local folder for files being built.")
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, mps, cuda or cuda:N.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto = bfloat16 where the hardware has it."
    )
    threads: int = Field(0, ge=0, description="CPU threads of torch, 0 = one per core.")
    workers: int = Field(0, ge=0, description="Processes or threads for decoding, 0 = one per core.")
    ranks: int = Field(1, ge=1, description="Data-parallel processes of a training step on this machine (torchrun).")
    memory_fraction: float = Field(0.9, gt=0, le=1, description="Share of a GPU's memory that a step may take.")
    tensorboard: Path | None = Field(
        None, description="Folder that gets TensorBoard's event files while a network trains; empty = none."
    )
    deadline_s: float = Field(0.0, ge=0, description="Seconds after which a step is stopped, 0 = none.")
    grace_s: float = Field(20.0, ge=0, description="Seconds between SIGTERM and SIGKILL.")
    silence_s: float = Field(900.0, gt=0, description="Seconds without a sign of life after which a step is stopped.")
    lock_dir: Path = Field(
        Path(tempfile.gettempdir()), description="Folder of the GPU lock files, shared by all users of this machine."
    )
    gpu_wait_s: float = Field(3600.0, ge=0, description="Seconds to wait for a GPU that another process holds.")
    nodes: int = Field(1, ge=1, description="Machines that train together; the same command runs on each of them.")
    rendezvous: str = Field(
        "",
        pattern=r"^(|[^\s:]+:\d+|\[[0-9a-fA-F:]+\]:\d+)$",
        description="HOST:PORT where several machines meet: one of them, and a port that is free there.",
    )
    node_address: str = Field(
        "", description="Name or address by which the other machines reach this one; empty = its own host name."
    )
    group_s: float = Field(
        300.0, gt=0, description="Seconds within which all ranks must have met and finished a first collective."
    )

    shard_groups: int = Field(
        1, ge=1, le=4096, description="Groups of shards that ingest and encode share out over the flow's task runner."
    )
    task_runner: str = Field(
        "",
        pattern=r"^(|(dask|ray)(:\S+)?)$",
        description="Who works on shard groups: empty = the flow's own task runner; dask or ray = a cluster on this machine; dask:ADDRESS or ray:ADDRESS = that cluster.",
    )

    @property
    def num_workers(self) -> int:
        """Workers with the default filled in."""
        return self.workers or _num_cores()

    @property
    def num_threads(self) -> int:
        """Threads with the default filled in."""
        return self.threads or _num_cores()


def _num_cores() -> int:
    """Cores this process may run on (a container's share, not the machine's)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
