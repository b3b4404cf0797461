"""Kills, full disks, rot and order of writes on a local store."""

import contextlib
import errno
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.object_stores import artifact, shared
from support.processes import wait_for
from support.small_disk import mounted_disk

from dalle_model.errors import CorruptObject, StoreFull, StoreUnreachable
from tasks.artifacts import ObjectRef, Part
from tasks.backends import LocalBackend
from tasks.store import Store

WATCHED = ("open", "fsync", "link", "replace", "unlink", "utime")


class System:
    """The os module with something done before and after each call that changes the disk."""

    def __init__(self, act: Callable[[str, str, tuple[Any, ...]], None]) -> None:
        self._act = act

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in WATCHED:
            return real

        def call(*args: Any, **kwargs: Any) -> Any:
            self._act("before", name, args)
            result = real(*args, **kwargs)
            self._act("after", name, args)
            return result

        return call


def work(store: Store, name: str = "a") -> None:
    """All kinds of writes of a step."""
    manifest = artifact(store, name, rows=2)
    store.commit_part(manifest.fingerprint, 0, Part(objects=manifest.objects[:1]))
    store.commit(manifest)
    store.set_ref("production", manifest)


def check_whole(root: Path) -> None:
    """Everything visible under a key is whole, whoever died while writing it."""
    store = Store.open(root)
    for path in root.rglob("data/*/*.bin"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem
    for known in store.artifacts():
        manifest = store.find(*known)
        assert manifest is not None and store.verify(manifest) == []
    for path in root.glob("parts/*/*.json"):
        assert store.parts(path.parent.name)
    assert len(store.refs()) == len(store.keys("refs/"))
    assert not store.keys("quarantine/")


def in_child(action: Callable[[], None]) -> int:
    """Run in a forked process; its wait status."""
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            action()
            code = 0
        os._exit(code)
    return os.waitpid(pid, 0)[1]


def test_kill_before_and_after_every_system_call_leaves_only_whole_things(tmp_path: Path) -> None:
    calls: list[str] = []
    work(Store(LocalBackend(tmp_path / "count", System(lambda when, name, _: calls.append(f"{when} {name}")))))
    assert len(calls) > 40
    for fatal in range(len(calls)):
        root = tmp_path / str(fatal)
        passed = 0

        def act(when: str, name: str, args: tuple[Any, ...], fatal: int = fatal) -> None:
            nonlocal passed
            if passed == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            passed += 1

        status = in_child(lambda root=root, act=act: work(Store(LocalBackend(root, System(act)))))  # type: ignore[misc]
        assert os.WIFSIGNALED(status), calls[fatal]
        check_whole(root)
        work(Store.open(root))  # the next run is not disturbed by what was left
        check_whole(root)
        for torn in root.rglob(".tmp-*"):
            os.utime(torn, (0, 0))
        Store.open(root).sweep()
        assert not list(root.rglob(".tmp-*"))


def test_kill_at_random_moments_while_others_read(tmp_path: Path) -> None:
    chance = random.Random(0)
    reader = Store.open(tmp_path)
    for round_ in range(25):
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                for n in range(100):
                    work(Store.open(tmp_path), f"{round_}-{n}")
            os._exit(0)
        goal = len(reader.artifacts()) + chance.randint(1, 3)

        def come(goal: int = goal) -> bool:
            for known in reader.artifacts()[-3:]:
                manifest = reader.find(*known)
                assert manifest is not None and reader.verify(manifest) == []
            return len(reader.artifacts()) >= goal

        assert wait_for(come, 120, every_s=0)
        time.sleep(chance.uniform(0, 0.01))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    check_whole(tmp_path)
    assert len(reader.artifacts()) >= 25


def recorded(action: Callable[[Store], None], root: Path) -> list[tuple[str, str]]:
    """(call, file) in order; descriptors are given the names they were opened under."""
    calls: list[tuple[str, str]] = []

    def act(when: str, name: str, args: tuple[Any, ...]) -> None:
        if when == "after":
            file = (
                os.readlink(f"/proc/self/fd/{args[0]}")
                if name == "fsync"
                else os.fspath(args[-1 if name == "link" else 0])
            )
            calls.append((name, os.path.basename(file)))

    action(Store(LocalBackend(root, System(act))))
    return calls


def test_content_is_durable_before_it_has_a_name_and_the_name_before_success(tmp_path: Path) -> None:
    manifest = artifact(Store.open(tmp_path / "a"), rows=1)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    calls = recorded(lambda store: store.commit(manifest) and None, tmp_path / "b")
    names = [name for name, _ in calls]
    link = names.index("link")
    assert calls[link] == ("link", f"{manifest.fingerprint}.json")
    assert re.match(r"\.tmp-", calls[link - 1][1]) and names[link - 1] == "fsync"
    assert calls[link + 1] == ("fsync", "ingest")
    # the new folders are durable too, or the manifest could vanish with them
    assert ("fsync", "manifests") in calls[:link] and ("fsync", "b") in calls[:link]


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is missing; install it with: apt-get install strace")
def test_kernel_sees_fsync_before_link_and_folder_fsync_after_it(tmp_path: Path) -> None:
    code = "import sys; from tasks.store import Store; Store.open(sys.argv[1]).put(b'x' * 10000, ext='bin', role='x')"
    log = tmp_path / "trace"
    traced = "trace=fsync,fdatasync,link,linkat,rename,renameat,renameat2,unlink,unlinkat"
    command = ["strace", "-f", "-y", "-e", traced, "-o", str(log), sys.executable, "-c", code, str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if "ptrace" in done.stderr and done.returncode:
        pytest.skip(f"strace may not trace here: {done.stderr.strip().splitlines()[-1]}")
    lines = [line.split(None, 1)[1] for line in log.read_text().splitlines() if str(tmp_path) in line]
    link = next(i for i, line in enumerate(lines) if line.startswith("link"))
    assert lines[link - 1].startswith("fsync(") and "/.tmp-" in lines[link - 1]
    assert lines[link + 1].startswith("fsync(") and re.search(r"/data/[0-9a-f]{2}>\)", lines[link + 1])
    assert lines[link + 2].startswith("unlink") and "/.tmp-" in lines[link + 2]


def test_folder_without_hard_links_still_creates_exclusively(tmp_path: Path) -> None:
    def refuse(when: str, name: str, _: tuple[Any, ...]) -> None:
        if name == "link":
            raise OSError(errno.EPERM, "no links on this file system")

    store = Store(LocalBackend(tmp_path, System(refuse)))
    work(store)
    work(store)
    assert store.probe().create_only
    check_whole(tmp_path)


@pytest.mark.parametrize("name", ["open", "fsync", "link", "replace"])
def test_full_disk_at_any_call_is_one_line_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    full = True

    def refuse(when: str, called: str, _: tuple[Any, ...]) -> None:
        if full and called == name and when == "before":
            raise OSError(errno.ENOSPC, "No space left on device")

    work(Store.open(tmp_path), "before")
    store = Store(LocalBackend(tmp_path, System(refuse)))
    with pytest.raises(StoreFull, match=r"no space left at .*run the same command again"):
        work(store)
    assert not list(tmp_path.rglob(".tmp-*"))
    check_whole(tmp_path)
    full = False
    work(store)
    check_whole(tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    with mounted_disk(tmp_path / "small", "1m") as folder:
        yield folder


def test_store_on_a_full_disk_keeps_what_it_has_and_goes_on_when_space_is_freed(small_disk: Path) -> None:
    store = Store.open(small_disk / "artifacts")
    work(store)
    for n in range(30):
        ballast = small_disk / "ballast"
        free = shutil.disk_usage(small_disk).free
        ballast.write_bytes(b"\0" * max(0, free - 4096 * (n % 5)))
        with pytest.raises(StoreFull, match="no space left"):
            store.put(os.urandom(30_000), ext="bin", role="x")
        check_whole(small_disk / "artifacts")
        assert not list(small_disk.rglob(".tmp-*"))
        ballast.unlink()
        obj = store.put(os.urandom(30_000), ext="bin", role="x")
        assert len(store.read(obj)) == 30_000
        store.delete(obj.key)


@pytest.mark.server
def test_full_spool_is_said_when_an_object_is_fetched(small_disk: Path) -> None:
    store = shared("moto").store()
    obj = store.put(os.urandom(2_000_000), ext="bin", role="x")
    with pytest.raises(StoreFull, match=f"no space left at {small_disk}"):
        store.fetch(obj, small_disk / "spool")
    assert list((small_disk / "spool").iterdir()) == []


def test_folder_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    store = Store.open(tmp_path / "file")
    for use in (
        lambda: store.put(b"x", ext="bin", role="x"),
        lambda: store.create("notes/x", b"x"),
        lambda: store.find("ingest", "0" * 64),
        lambda: store.probe(),
    ):
        with pytest.raises(StoreUnreachable, match=r"cannot be used as a store \(Not a directory\)"):
            use()


def test_folder_without_permission_is_one_line(tmp_path: Path) -> None:
    def refuse(when: str, name: str, _: tuple[Any, ...]) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    with pytest.raises(StoreUnreachable, match=r"may not be used by this user.*change its permissions"):
        Store(LocalBackend(tmp_path, System(refuse))).put(b"x", ext="bin", role="x")


def rot(data: bytes, other: bytes, kind: str, chance: random.Random) -> bytes:
    """Content as it may look after years."""
    place = chance.randrange(len(data))
    if kind == "flip":
        return data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]
    if kind == "zero tail":
        return data[:place] + bytes(len(data) - place)
    return data[:place] if kind == "truncate" else other


@pytest.mark.parametrize("kind", ["flip", "zero tail", "truncate", "swap"])
def test_rot_is_found_at_first_use(tmp_path: Path, kind: str) -> None:
    """100 damages of each kind over objects, manifests, receipts and names; every one is found."""
    chance = random.Random(kind)
    store = Store.open(tmp_path)
    manifests = [artifact(store, name) for name in ("one", "two")]
    for manifest in manifests:
        store.commit(manifest)
        store.commit_part(manifest.fingerprint, 0, Part(objects=manifest.objects))
    store.set_ref("one-name", manifests[0])
    store.set_ref("two-name", manifests[1])
    one, two = manifests

    def found_in_object(obj: ObjectRef) -> bool:
        with pytest.raises(CorruptObject):
            store.read(obj)
        with pytest.raises(CorruptObject):
            Store.open(tmp_path).fetch(obj, tmp_path / "spool")
        return [key for key, _ in store.verify(one)] == [obj.key]

    def found_in_manifest(_: ObjectRef) -> bool:
        with pytest.raises(CorruptObject):
            store.find("ingest", one.fingerprint)
        return True

    def found_in_name(_: ObjectRef) -> bool:
        with pytest.raises(CorruptObject):
            store.read_ref("one-name")
        return True

    places: list[tuple[Callable[[ObjectRef], str], Callable[[ObjectRef], bool], str]] = [
        (lambda obj: obj.key, found_in_object, two.objects[0].key),
        (
            lambda _: store.manifest_key("ingest", one.fingerprint),
            found_in_manifest,
            store.manifest_key("ingest", two.fingerprint),
        ),
        (
            lambda _: store.part_key(one.fingerprint, 0),
            lambda _: store.parts(one.fingerprint) == {},
            store.part_key(two.fingerprint, 0),
        ),
        (lambda _: "refs/one-name.json", found_in_name, "refs/two-name.json"),
    ]
    for n in range(100):
        key_of, is_found, other = places[n % 4 if n % 20 else 0]
        obj = chance.choice(one.objects)
        path = tmp_path / key_of(obj)
        good = path.read_bytes()
        bad = rot(good, (tmp_path / other).read_bytes(), kind, chance)
        path.write_bytes(bad)
        assert bad == good or is_found(obj), f"{kind} in {path.name} was not found: {bad!r}"
        path.write_bytes(good)
        shutil.rmtree(tmp_path / "quarantine", ignore_errors=True)
    assert store.verify(one) == store.verify(two) == []
