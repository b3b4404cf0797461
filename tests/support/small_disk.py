"""A small file system, to be filled."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.processes import wait_for


@contextmanager
def mounted_disk(folder: Path, size: str) -> Iterator[Path]:
    """``folder`` as a file system in memory of ``size`` (as mount takes it) until the block ends; skips without root."""
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        # It is busy until the last process that was killed has closed its files.
        assert wait_for(lambda: subprocess.run(["umount", str(folder)]).returncode == 0, 60, every_s=0.2)
