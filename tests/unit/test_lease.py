"""The lease of a device: one holder, a second one waits, and it is free the instant its holder dies."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dalle_model.errors import DeviceError
from tasks.devices import lease

HOLD = "import sys, time; from pathlib import Path; from tasks.devices import lease; held = lease('gpu-a', Path(sys.argv[1]), wait_s=60, log=print); print('held', flush=True); time.sleep(600)"


@pytest.fixture
def holder(tmp_path: Path):  # type: ignore[no-untyped-def]
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_device_that_is_held_is_refused_with_its_holder(holder: "subprocess.Popen[str]", tmp_path: Path) -> None:
    log: list[str] = []
    with pytest.raises(
        DeviceError, match=rf"device gpu-a is held by process {holder.pid} for over 0 s; .* DALLE_GPU_WAIT_S"
    ):
        lease("gpu-a", tmp_path, wait_s=0.3, log=log.append)
    assert log == [f"waiting for device gpu-a, held by process {holder.pid}"]
    lease("gpu-b", tmp_path, wait_s=0, log=log.append).release()


def test_a_waiter_gets_the_device_after_its_holder_was_killed(holder: "subprocess.Popen[str]", tmp_path: Path) -> None:
    log: list[str] = []

    def kill(text: str) -> None:  # when it says that it waits
        log.append(text)
        holder.kill()

    held = lease("gpu-a", tmp_path, wait_s=300, log=kill)
    assert log == [f"waiting for device gpu-a, held by process {holder.pid}"]
    assert (tmp_path / "dalle-device-gpu-a.lock").read_text() == f"process {os.getpid()}"
    held.release()
    lease("gpu-a", tmp_path, wait_s=0, log=lambda _: None).release()
