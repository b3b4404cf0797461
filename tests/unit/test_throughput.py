"""The rate of matrix products that a training's speed is compared with."""

import time

import pytest
import torch

from dalle_model import throughput
from dalle_model.runtime import Runtime


def test_waiting_for_a_core_does_not_lower_the_limit_of_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured by the clock it was far too low on a crowded machine: a training was said to run at an MFU of 1.4."""
    monkeypatch.setattr(torch, "mm", lambda a, b, out: time.sleep(0.01))
    assert torch.get_num_threads() == 1
    assert throughput.matmul_flops(Runtime()) > 2 * 1024**3 / 0.005
