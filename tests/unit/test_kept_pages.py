"""The allocator setting of the launcher acts: memory that was freed is used again without faulting its pages in."""

import os
import subprocess
import sys

from tasks.launch import _environment

_PROBE = """
import resource
import numpy as np
np.ones(8_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(8_000_000)  # 64 MB, as the logits of a step: the C library maps and unmaps it each time by default
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(env: dict[str, str]) -> int:
    run = subprocess.run([sys.executable, "-c", _PROBE], env=env, capture_output=True, text=True, check=True)
    return int(run.stdout)


def test_a_child_faults_its_pages_in_once() -> None:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    assert _faults(_environment()) < 0.1 * _faults(plain)


def test_a_setting_of_the_person_who_starts_it_stays(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "7")
    assert _environment()["MALLOC_MMAP_MAX_"] == "7"
