"""Decoding children: order, limits, deaths. Children are real processes."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.bad_images import encoded, flat_png, photo, scan_bomb
from support.processes import LONG_S, send, wait_for

from dalle_model import decode_pool
from dalle_model.decode_pool import DecodePool, PoolLimits
from dalle_model.decoding import Decoded, DecodeSettings, Reason, Refused

GOOD = encoded(photo(), "JPEG")
SETTINGS = DecodeSettings(image_px=32, max_mpx=100)


def results(
    items: list[bytes | Refused], workers: int = 1, limits: PoolLimits | None = None
) -> list[Decoded | Refused]:
    with DecodePool[int](SETTINGS, workers, limits or PoolLimits()) as pool:
        found = list(pool.map(enumerate(items)))
    assert [tag for tag, _, _ in found] == list(range(len(items)))
    return [result for _, _, result in found]


def test_results_come_in_order_and_do_not_depend_on_the_number_of_children() -> None:
    items: list[bytes | Refused] = [encoded(photo(seed=n), "PNG" if n % 3 else "JPEG") for n in range(150)]
    items[7] = Refused(Reason.MISSING_FILE, "no such file")
    items[70] = b"rubbish"
    one = results(items, workers=1)
    assert one == results(items, workers=3)
    assert one[7] == items[7]
    assert isinstance(one[70], Refused)
    assert sum(isinstance(result, Decoded) for result in one) == 148


def test_a_file_is_read_and_digested_by_the_child_and_gives_what_its_bytes_give(tmp_path: Path) -> None:
    contents = {"good.jpg": GOOD, "rubbish": b"rubbish", "empty": b"", "na\udcffme": encoded(photo(seed=3), "PNG")}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "large").write_bytes(b"\xff\xd8\xff" + bytes(SETTINGS.max_bytes))
    os.mkfifo(tmp_path / "pipe")
    odd = [str(path) for path in (tmp_path / "pipe", tmp_path / "none", tmp_path, tmp_path / "large")]
    with DecodePool[int](SETTINGS, 2) as pool:
        files = list(pool.map(enumerate([*(str(tmp_path / name) for name in contents), *odd])))
        given = list(pool.map(enumerate(contents.values())))
    assert files[: len(contents)] == given
    assert [sha256 for _, sha256, _ in given] == [hashlib.sha256(data).digest() for data in contents.values()]
    reasons = [(sha256, result.reason) for _, sha256, result in files[len(contents) :] if isinstance(result, Refused)]
    assert reasons == [
        (b"", r) for r in (Reason.NOT_A_FILE, Reason.MISSING_FILE, Reason.NOT_A_FILE, Reason.TOO_MANY_BYTES)
    ]


def test_a_file_that_decodes_for_ever_has_its_digest_all_the_same(tmp_path: Path) -> None:
    bomb = scan_bomb(4000, 3000)
    (tmp_path / "bomb").write_bytes(bomb)
    with DecodePool[int](SETTINGS, 1, PoolLimits(cpu_s=0.2, wall_s=60)) as pool:
        found = list(pool.map([(0, str(tmp_path / "bomb")), (1, GOOD)]))
    assert found[0][1] == hashlib.sha256(bomb).digest()
    assert isinstance(found[0][2], Refused)
    assert found[0][2].reason == Reason.TOO_SLOW
    assert isinstance(found[1][2], Decoded)


def test_a_picture_that_decodes_for_ever_costs_itself_and_not_its_neighbours() -> None:
    found = results([GOOD, scan_bomb(4000, 3000), GOOD, GOOD], limits=PoolLimits(cpu_s=0.2, wall_s=60))
    assert [isinstance(r, Decoded) for r in found] == [True, False, True, True]
    assert isinstance(found[1], Refused)
    assert found[1].reason == Reason.TOO_SLOW


def test_the_wall_clock_stops_a_picture_too() -> None:
    # Alone on a busy machine the child may be starved; then the limit is prolonged, but not for ever.
    found = results([scan_bomb(4000, 3000), GOOD], limits=PoolLimits(cpu_s=60, wall_s=0.5))
    assert isinstance(found[0], Refused)
    assert found[0].reason == Reason.TOO_SLOW
    assert isinstance(found[1], Decoded)


def test_memory_is_limited_and_the_child_goes_on() -> None:
    found = results([GOOD, flat_png(9400, 9400), GOOD], limits=PoolLimits(memory_bytes=200_000_000))
    assert [isinstance(r, Decoded) for r in found] == [True, False, True]
    assert isinstance(found[1], Refused)
    assert found[1].reason == Reason.TOO_MUCH_MEMORY


def _children() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "dalle_model.decode_child" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:  # gone, or just going
            continue
    return found


def test_a_child_that_is_killed_from_outside_costs_nothing() -> None:
    with DecodePool[int](SETTINGS, 2) as pool:
        found = []
        for tag, _, result in pool.map(enumerate([GOOD] * 400)):
            if tag in (40, 150, 300):
                for child in _children():
                    send(child, signal.SIGKILL)
            found.append(result)
        assert pool.children_lost >= 1
    assert len(found) == 400
    assert all(isinstance(result, Decoded) for result in found)


def test_children_are_replaced_after_some_files_and_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    class Noted(decode_pool._Child):
        def __init__(self, *words: Any) -> None:
            super().__init__(*words)
            started.append(self.pid)

    monkeypatch.setattr(decode_pool, "_Child", Noted)
    with DecodePool[int](SETTINGS, 1, PoolLimits(files_per_child=64)) as pool:
        assert len(list(pool.map(enumerate([GOOD] * 200)))) == 200
        assert pool.children_lost == 0
        assert {child.pid for child in _children()} == {started[-1]}
    assert len(started) == len(set(started)) == 4  # in batches of 32
    assert not _children()


def test_leaving_early_ends_the_children_at_once() -> None:
    started = time.monotonic()
    with DecodePool[int](SETTINGS, 2, PoolLimits(cpu_s=600, wall_s=600)) as pool:
        items = [GOOD] * 200 + [scan_bomb(4000, 3000)] * 4
        stream = pool.map(enumerate(items))
        next(stream)
        assert _children()
    assert not _children()
    assert time.monotonic() - started < 500  # what one of the four would be given


def test_a_child_goes_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, signal\n"
        "from dalle_model.decode_pool import DecodePool\n"
        "from dalle_model.decoding import DecodeSettings\n"
        "pool = DecodePool(DecodeSettings(32), 1)\n"
        "next(pool.map(enumerate([b'x'] * 500)))\n"
        "print(*(child.pid for child in pool._all), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=LONG_S)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (child,) = map(int, done.stdout.split())
    assert wait_for(lambda: not _lives(child), 120), "the child outlived its parent"


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_child_loads_neither_torch_nor_numpy() -> None:
    code = "import dalle_model.decode_child, sys; print(*(m for m in ('torch', 'numpy', 'pyarrow', 'prefect') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LONG_S, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("workers", [1, 2])
def test_look_ahead_is_bounded(workers: int) -> None:
    taken = 0

    def endless() -> object:
        nonlocal taken
        while True:
            taken += 1
            yield taken, GOOD

    with DecodePool[int](SETTINGS, workers) as pool:
        stream = pool.map(endless())  # type: ignore[arg-type]
        for _ in range(100):
            next(stream)
        assert taken <= 100 + (2 * workers + 2) * 32
