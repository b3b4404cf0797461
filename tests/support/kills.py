"""Kill one stage again and again, at random and at aimed moments, and restart it until it is done.

Used by ``faults/test_kill_anywhere.py`` (a few kills) and ``faults/kill_many.py`` (hundreds).
"""

import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.processes import LONG_S, Driver, wait_for
from support.tiny import TinyRun, section_of

from tasks.spool import spool_folder
from tasks.store import Store

START_S = 3.0  # what a driver and its worker take to import on a quiet machine; the undisturbed run started neither
TRAINED = ("fit-tokenizer", "fit")
SHARDED = ("ingest", "encode", "generate")

# Moments that matter, as DALLE_FAULT takes them: the k-th time a file of the store is open and not yet linked (a data
# object, a checkpoint, a receipt, at last the manifest), around receipts and checkpoints, and around the commit.
_EVERYWHERE = ("store.file_open:{k}", "publish.before_manifest", "publish.after_manifest")
_OF_SHARDS = ("part.before_receipt:{k}", "part.after_receipt:{k}")
_OF_TRAINING = ("checkpoint.before_object:{k}", "checkpoint.after_receipt:{k}")


@dataclass
class Tally:
    """What happened while one stage was killed."""

    stage: str
    seed: int
    kills: int = 0
    by_way: dict[str, int] = field(default_factory=dict)
    rounds: int = 0
    problems: list[str] = field(default_factory=list)

    def struck(self, way: str) -> None:
        """Count one kill."""
        self.kills += 1
        name = way.partition(":")[0]
        self.by_way[name] = self.by_way.get(name, 0) + 1

    def line(self, goal: int) -> str:
        """``NAME measured goal PASS|FAIL`` with the seed."""
        verdict = "PASS" if self.kills >= goal and not self.problems else "FAIL"
        detail = f"seed={self.seed} rounds={self.rounds} " + " ".join(
            f"{k}={v}" for k, v in sorted(self.by_way.items())
        )
        return (
            f"kill.{self.stage} {self.kills}-kills-{len(self.problems)}-wrong {goal}-kills-0-wrong {verdict} {detail}"
        )


def aimed_moments(stage: str) -> tuple[str, ...]:
    """The fault points that a stage passes."""
    trains = stage in (*TRAINED, "evaluate")  # an evaluation trains its judge
    return (*_EVERYWHERE, *(_OF_SHARDS if stage in SHARDED else ()), *(_OF_TRAINING if trains else ()))


def _ways(stage: str, random_: random.Random) -> Iterator[str]:
    """Endless: a random moment, then an aimed one, and so on; all aimed ones before any comes again."""
    while True:
        moments = list(aimed_moments(stage))
        if stage == "ingest":
            moments.append("spool")
        random_.shuffle(moments)
        for moment in moments:
            yield moment.format(k=random_.choice((1, 1, 2, 3, 4)))
            yield "random:" + random_.choice(("all", "parent", "child"))


def kill_stage(tiny: TinyRun, stage: str, folder: Path, *, kills: int, seed: int, **env: str) -> Tally:
    """Kill a stage ``kills`` times; each time it comes to its end, compare and begin anew in an empty place."""
    tally = Tally(stage, seed)
    random_ = random.Random(f"{seed} {stage}")
    ways = _ways(stage, random_)
    spool = folder / "spool"
    duration_s = START_S + tiny.results[stage].seconds
    while True:
        tally.rounds += 1
        shutil.rmtree(folder / "artifacts", ignore_errors=True)
        store = Store.open(tiny.copy(folder / "artifacts", before=stage))
        driver = Driver(
            stage,
            section_of(stage, tiny.config),
            tiny.inputs(stage),
            {"store": store.uri, "spool": str(spool), "grace_s": 5.0},
            env,
        )
        done = False
        while not done and tally.kills < kills:
            way = next(ways)
            done = _strike(driver, way, spool, random_.uniform(0, duration_s), tally)
            _check_between(tiny, stage, store, driver, tally, way)
        if not done:
            driver.start().finish()
        _check_end(tiny, stage, store, spool, tally)
        if tally.kills >= kills:
            return tally


def _strike(driver: Driver, way: str, spool: Path, after_s: float, tally: Tally) -> bool:
    """Run the driver into one kill. True when the stage came to its end before: then nothing was struck."""
    if way.startswith(("random:", "spool")):
        driver.start()
        ready: Callable[[], Any] = (lambda: _spool_file_open(spool)) if way == "spool" else lambda: False
        wait_for(lambda: ready() or not driver.running, LONG_S if way == "spool" else after_s, every_s=0.01)
        if driver.running:
            driver.kill("all" if way == "spool" else way.removeprefix("random:"))
    else:
        driver.start(DALLE_FAULT=way)
    code, _, err = driver.wait()
    if left := driver.gone():
        tally.problems.append(f"{way}: still running: {left}")
    if code == 0:
        return True
    tally.struck(way)
    # A killed worker is a named error of its parent; a killed parent says nothing.
    if code > 0 and "StepFailed" not in err:
        tally.problems.append(f"{way}: exit code {code}: {err}")
    return False


def _spool_file_open(spool: Path) -> bool:
    return any(f.name != ".lock" and f.name != "spec.json" for f in spool.glob("spool-*/*"))


def _check_between(tiny: TinyRun, stage: str, store: Store, driver: Driver, tally: Tally, way: str) -> None:
    """After a kill the manifest is there whole or not at all, and no other one is."""
    want = tiny.manifest(stage)
    found = store.find(want.step, want.fingerprint)  # raises when half written
    if found is not None and found.sha256 != want.sha256:
        tally.problems.append(f"{way}: committed {found.sha256[:12]}, undisturbed {want.sha256[:12]}")
    stray = {known.fingerprint for known in store.artifacts()} - {r.ref.fingerprint for r in tiny.results.values()}
    if stray:
        tally.problems.append(f"{way}: stray manifests {stray}")


def _check_end(tiny: TinyRun, stage: str, store: Store, spool: Path, tally: Tally) -> None:
    """The artifact is the undisturbed one byte for byte, and nothing is left over that a sweep does not take."""
    want = tiny.manifest(stage)
    found = store.find(want.step, want.fingerprint)
    if found is None or found.sha256 != want.sha256:
        tally.problems.append(f"ended with {found and found.sha256}, undisturbed {want.sha256}")
        return
    if damaged := store.verify(found):
        tally.problems.append(f"damaged objects: {damaged}")
    with spool_folder(spool, want.fingerprint):
        pass  # what a process left that died after the last run had looked goes with the next one
    if left := list(spool.glob("spool-*")):  # a new-* is one that was killed before it had a lock, and goes in an hour
        tally.problems.append(f"left in the spool: {left}")
    time.sleep(0.01)
    store.sweep(older_than_s=0.0)
    if torn := store.backend.leftovers(0.0, time.time() + 1, True):
        tally.problems.append(f"left in the store after a sweep: {torn}")
    if damaged := store.verify(found):
        tally.problems.append(f"a sweep took what an artifact names: {damaged}")
