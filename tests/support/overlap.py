"""Two overlapping runs of a prompt set, killed again and again, against one undisturbed run.

Used by ``faults/test_exactly_once.py`` (a few prompts) and ``faults/exactly_once.py`` (a thousand, fifty kills).
"""

import io
import json
import math
import random
import time
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import pyarrow.parquet as pq
from support.in_process import steps_in_this_process
from support.processes import Driver
from support.tiny import TinyRun, quietly

from dalle_model.config import GenerateConfig
from tasks.settings import Settings
from tasks.stages import GENERATE
from tasks.store import Store

FIRST = "part.before_receipt:1"  # where both runs are struck first: neither has told the other of a picture by then
Pictures = dict[tuple[str, int, int], str]  # (prompt, seed, index) -> SHA-256 of the file


@dataclass
class Overlap:
    """What came of it: kills that struck, pictures of both runs, and what was wrong."""

    kills: int = 0
    pictures: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass
class _Run:
    """One of the two runs, started again after each kill. ``die_at``: when it is killed from outside."""

    driver: Driver
    done: bool = False
    aimed: bool = False
    die_at: float = math.inf

    def start(self, random_: random.Random, kills_left: bool, moment: str = "") -> None:
        """Every other kill strikes at a receipt, where a picture could be lost or made twice; the others at any moment."""
        self.aimed = kills_left and not self.aimed
        self.die_at = time.monotonic() + random_.uniform(0.5, 8.0) if kills_left and not self.aimed else math.inf
        moment = moment or f"part.{random_.choice(('before', 'after'))}_receipt:{random_.randint(1, 3)}"
        self.driver.start(**({"DALLE_FAULT": moment} if self.aimed else {}))


def prompt_file(path: Path, count: int) -> Path:
    """``count`` different prompts as jsonl."""
    things = ("heart", "clown face", "flag", "clock", "hand", "cat", "apple", "house", "star", "moon")
    lines = [json.dumps({"prompt": f"{things[n % 10]} number {n}", "tags": [f"t{n % 3}"]}) for n in range(count)]
    path.write_text("\n".join(lines))
    return path


def pictures_of(store: Store, fingerprint: str) -> tuple[Pictures, list[str]]:
    """Every picture of a committed batch, and those that are there twice."""
    manifest = store.find(GENERATE.name, fingerprint)
    assert manifest is not None, f"generate {fingerprint} is not committed"
    found: Pictures = {}
    twice = []
    for obj in manifest.objects_of("generations"):
        for row in pq.read_table(io.BytesIO(store.read(obj))).to_pylist():
            key = (row["prompt"], row["seed"], row["index"])
            if key in found:
                twice.append(f"{key} is there twice")
            found[key] = sha256(row["image"]).hexdigest()
    return found, twice


def overlap(
    tiny: TinyRun, folder: Path, *, prompts: int, grown: int, n: int, kills: int, rows: int, seed: int
) -> Overlap:
    """Draw ``prompts`` prompts in one run and ``prompts + grown`` in another at the same time, with kills in both."""
    result = Overlap()
    random_ = random.Random(seed)
    configs = [
        GenerateConfig(
            prompts_uri=str(prompt_file(folder / f"{count}.jsonl", count)), n=n, rows_per_shard=rows, batch_size=8
        )
        for count in (prompts, prompts + grown)
    ]
    inputs = tiny.inputs("generate")
    calm = Settings(store=str(tiny.copy(folder / "undisturbed", before="generate")))
    with steps_in_this_process():
        wanted = [quietly(GENERATE)(config, calm, **inputs).ref for config in configs]
    store = Store.open(tiny.copy(folder / "disturbed", before="generate"))
    settings = {"store": store.uri, "spool": str(folder / "spool"), "grace_s": 5.0}
    runs = [_Run(Driver("generate", config, inputs, settings)) for config in configs]
    for run in runs:
        run.start(random_, kills > 0, FIRST)
    if kills > 0:  # both are struck before either goes on: one alone could make all the pictures of the other
        for run in runs:
            _ended(run, result)
        for run in runs:
            if not run.done:
                run.start(random_, result.kills < kills)
    while not all(run.done for run in runs):
        for run in runs:
            _attend(run, result, random_, kills)
        time.sleep(0.05)
    for ref, config in zip(wanted, configs, strict=True):
        _compare(store, calm, ref.fingerprint, config.prompts_uri, result)
    return result


def _attend(run: _Run, result: Overlap, random_: random.Random, kills: int) -> None:
    """Kill a run whose time has come; start one again that a kill ended."""
    if run.done:
        return
    if run.driver.running:
        if time.monotonic() < run.die_at:
            return
        what = random_.choice(("all", "parent", "child"))
        run.driver.kill(what)
    _ended(run, result)
    if not run.done:
        run.start(random_, result.kills < kills)


def _ended(run: _Run, result: Overlap) -> None:
    """Wait for the end of a run, and count it as a kill unless it is a good one."""
    code, _, err = run.driver.wait()
    if left := run.driver.gone():
        result.problems.append(f"still running after a kill: {left}")
    run.done = code == 0
    result.kills += code != 0
    if code > 0 and "StepFailed" not in err:
        result.problems.append(f"exit code {code}: {err}")
        run.done = True


def _compare(store: Store, calm: Settings, fingerprint: str, name: str, result: Overlap) -> None:
    made, twice = pictures_of(store, fingerprint)
    wanted, _ = pictures_of(Store.open(calm.store), fingerprint)
    result.pictures += len(made)
    result.problems += twice
    if odd := [key for key in made.keys() | wanted.keys() if made.get(key) != wanted.get(key)]:
        result.problems.append(f"{len(odd)} pictures of {name} differ from the undisturbed run, e.g. {odd[:3]}")
