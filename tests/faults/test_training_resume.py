"""A training that was killed equals one that was not, bit for bit; a damaged checkpoint is passed over, loudly."""

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.in_process import steps_in_this_process
from support.processes import Driver
from support.tiny import TinyRun, section_of

from tasks.artifacts import Manifest
from tasks.settings import Settings
from tasks.stages import STAGES
from tasks.step import run_step
from tasks.store import Store


def _driver(tiny: TinyRun, stage: str, store: Path, spool: Path) -> Driver:
    return Driver(stage, section_of(stage, tiny.config), tiny.inputs(stage), {"store": str(store), "spool": str(spool)})


def _hex_curve(store: Store, manifest: Manifest) -> list[dict[str, str]]:
    table = pq.read_table(io.BytesIO(store.read(manifest.object_of("curve"))))
    return [{k: "none" if v is None else float(v).hex() for k, v in row.items()} for row in table.to_pylist()]


def _same(tiny: TinyRun, stage: str, store: Store) -> None:
    want = tiny.manifest(stage)
    made = store.find(want.step, want.fingerprint)
    assert made is not None
    assert _hex_curve(store, made) == _hex_curve(tiny.store, want)
    assert store.read(made.object_of("weights")) == tiny.store.read(want.object_of("weights"))
    assert made.stats == want.stats
    assert made.sha256 == want.sha256


# One loop trains every network; test_adversarial resumes tokenizers, test_families kills the training of a GAN.
@pytest.mark.parametrize("stage", [pytest.param("fit-tokenizer", marks=pytest.mark.slow), "fit"])
def test_killed_after_each_checkpoint_the_curve_and_the_weights_are_the_same(
    stage: str, tiny_run: TinyRun, tmp_path: Path
) -> None:
    store = tiny_run.copy(tmp_path / "artifacts", before=stage)
    driver = _driver(tiny_run, stage, store, tmp_path / "spool")
    fingerprint = tiny_run.results[stage].ref.fingerprint
    for expected in ([3], [3, 6]):
        code, _, err = driver.start(DALLE_FAULT="checkpoint.after_receipt").wait()
        assert code == 1 and "was killed by signal 9" in err
        assert sorted(Store.open(store).parts(fingerprint)) == expected
    answer = driver.start().finish()
    assert "goes on from the checkpoint at step 6 of 9" in answer["log"]
    _same(tiny_run, stage, Store.open(store))


def test_killed_in_the_middle_of_its_judges_training_an_evaluation_goes_on_and_has_the_same_bytes(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    store = tiny_run.copy(tmp_path / "artifacts", before="evaluate")
    driver = _driver(tiny_run, "evaluate", store, tmp_path / "spool")
    want = tiny_run.manifest("evaluate")
    code, _, err = driver.start(DALLE_FAULT="checkpoint.before_object:2").wait()  # after update 2 of 3
    assert code == 1 and "was killed by signal 9" in err
    assert sorted(Store.open(store).parts(want.fingerprint)) == [1]
    answer = driver.start().finish()
    assert "goes on from the checkpoint at step 1 of 3" in answer["log"]
    made = Store.open(store).find(want.step, want.fingerprint)
    assert made is not None and made.stats == want.stats
    for role in ("judge.weights", "metrics", "values", "drawings", "report"):
        assert made.object_of(role).sha256 == want.object_of(role).sha256, role
    assert made.sha256 == want.sha256


ALSO = [("fit-tokenizer", "flipped bit"), ("fit", "cut short"), ("fit", "zero tail")]


@pytest.mark.parametrize(
    ("stage", "damage"),
    [
        ("fit", "flipped bit"),
        *(pytest.param(*also, marks=pytest.mark.slow) for also in ALSO),  # the same hash refuses them
    ],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    stage: str, damage: str, tiny_run: TinyRun, tmp_path: Path
) -> None:
    folder = tiny_run.copy(tmp_path / "artifacts", before=stage)
    fingerprint = tiny_run.results[stage].ref.fingerprint
    driver = _driver(tiny_run, stage, folder, tmp_path / "spool")
    code, _, _ = driver.start(DALLE_FAULT="checkpoint.after_receipt:2").wait()
    assert code == 1
    store = Store.open(folder)
    newest = store.parts(fingerprint)[6].objects[0]
    path = folder / newest.key
    data = bytearray(path.read_bytes())
    if damage == "flipped bit":
        data[len(data) // 2] ^= 1
    elif damage == "zero tail":
        data[-4096:] = bytes(4096)
    else:
        del data[-100:]
    path.write_bytes(data)
    log: list[str] = []
    settings = Settings(store=str(folder), spool=tmp_path / "spool")
    with steps_in_this_process():
        run_step(
            STAGES[stage],
            section_of(stage, tiny_run.config),
            tiny_run.inputs(stage),
            settings,
            lambda e: log.append(str(e.get("text", ""))),
        )
    said = "\n".join(log)
    assert "goes on from the checkpoint at step 3 of 9" in said
    assert "step 6 is damaged and is passed over" in said or "piece 6 is made again" in said, said
    _same(tiny_run, stage, Store.open(folder))
