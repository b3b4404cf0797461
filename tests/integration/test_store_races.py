"""Two or eight writers of one artifact: one commit, and nobody is told a lie."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.object_stores import any_store, artifact, shared

from dalle_model.errors import CommitConflict
from tasks.artifacts import Manifest
from tasks.store import Store

ROUNDS = 20
STRICT = ["local", pytest.param("moto", marks=pytest.mark.server)]  # rclone is not: see the probe


def race(store: Store, manifests: list[Manifest]) -> list[str]:
    """Commit all at once, each with a store of its own; what became of each."""
    barrier = threading.Barrier(len(manifests))

    def commit(manifest: Manifest) -> str:
        mine = Store.open(store.uri, options=store.options)
        barrier.wait()
        try:
            mine.commit(manifest)
        except CommitConflict:
            return "conflict"
        return "committed"

    with ThreadPoolExecutor(len(manifests)) as pool:
        return list(pool.map(commit, manifests))


@pytest.mark.parametrize("kind", STRICT)
def test_equal_work_of_eight_threads_is_committed_once_and_all_succeed(kind: str, tmp_path: Path) -> None:
    store = any_store(kind, tmp_path)
    base = artifact(store, rows=1)
    for n in range(ROUNDS):
        mine = base.model_copy(update={"fingerprint": f"{n:064x}"})
        outcome = race(store, [mine.model_copy(update={"facts": {"writer": w}}) for w in range(8)])
        assert outcome == ["committed"] * 8
        found = store.find("ingest", f"{n:064x}")
        assert found is not None and found.sha256 == mine.sha256
    assert len(store.artifacts()) == ROUNDS


@pytest.mark.parametrize("kind", STRICT)
def test_different_work_has_one_winner_and_seven_conflicts(kind: str, tmp_path: Path) -> None:
    store = any_store(kind, tmp_path)
    base = artifact(store, rows=1)
    for n in range(ROUNDS):
        mine = [base.model_copy(update={"fingerprint": f"{n:064x}", "stats": {"writer": w}}) for w in range(8)]
        outcome = race(store, mine)
        assert sorted(outcome) == ["committed"] + ["conflict"] * 7
        found = store.find("ingest", f"{n:064x}")
        assert found is not None and found.stats == {"writer": outcome.index("committed")}


WRITER = """
import sys
from support.object_stores import artifact
from dalle_model.errors import CommitConflict
from tasks.store import Store

store = Store.open(sys.argv[1])
for line in sys.stdin:
    n, work = line.split()
    changes = {"fingerprint": f"{int(n):064x}", "stats": {"work": work}, "facts": {"writer": sys.argv[2]}}
    manifest = artifact(store, "shared", rows=1, **changes)
    try:
        store.commit(manifest)
        print("committed", flush=True)
    except CommitConflict:
        print("conflict", flush=True)
"""


@pytest.mark.parametrize("kind", STRICT)
def test_two_processes_race_for_objects_and_commit(kind: str, tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    uri = str(tmp_path / "artifacts")
    if kind != "local":
        env |= shared(kind).env()
        uri = shared(kind).uri()
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, uri, str(w)],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for w in range(2)
    ]
    try:
        for n in range(ROUNDS):
            for w, writer in enumerate(writers):
                assert writer.stdin is not None
                print(n, "same" if n % 2 else f"of-{w}", file=writer.stdin, flush=True)
            outcomes = sorted(writer.stdout.readline().strip() for writer in writers if writer.stdout)
            assert outcomes == (["committed"] * 2 if n % 2 else ["committed", "conflict"]), n
    finally:
        for writer in writers:
            writer.communicate(timeout=300)
    assert [writer.returncode for writer in writers] == [0, 0]
