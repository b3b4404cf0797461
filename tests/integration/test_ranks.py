"""Two ranks of one training over gloo on the CPU, started and stopped by the step."""

import uuid
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.in_process import steps_in_this_process
from support.processes import Driver, free_port, marked
from support.tiny import TinyRun, section_of, tiny_config

from dalle_model.errors import DeviceError, UsageError
from dalle_model.runtime import Runtime
from tasks.artifacts import Manifest
from tasks.ranks import process_group
from tasks.settings import Settings
from tasks.stages import STAGES
from tasks.step import plan, run_step
from tasks.store import Store


def _manifest(store: Path, answer: dict[str, Any]) -> Manifest:
    found = Store.open(store).find("fit", answer["ref"]["fingerprint"])
    assert found is not None
    return found


@pytest.mark.slow  # by default two machines do, below, and each update of two ranks is that of one in test_sharding
def test_two_ranks_train_to_the_loss_of_one(tiny_run: TinyRun, tmp_path: Path) -> None:
    store = tiny_run.copy(tmp_path / "artifacts", before="fit")
    settings = {"store": str(store), "spool": str(tmp_path / "spool"), "ranks": 2, "dtype": "float32"}
    two = _manifest(store, Driver("fit", tiny_run.config.fit, tiny_run.inputs("fit"), settings).start().finish())
    alone = tiny_run.copy(tmp_path / "alone", before="fit")
    with steps_in_this_process():
        by_itself = Settings(**(settings | {"store": str(alone), "ranks": 1}))
        ref = run_step(STAGES["fit"], tiny_run.config.fit, tiny_run.inputs("fit"), by_itself).ref
    one = _manifest(alone, {"ref": ref.model_dump()})
    assert two.facts["ranks"] == 2 and one.facts["ranks"] == 1
    losses = [name for name in one.stats if "loss" in name]
    assert losses
    for name in losses:
        assert two.stats[name] == pytest.approx(one.stats[name], rel=2e-3), name
    assert list((tmp_path / "spool").iterdir()) == []


def test_an_interrupt_ends_both_ranks_with_a_checkpoint(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun puts its ranks into sessions of their own: signalling one process group would miss them."""
    store = tiny_run.copy(tmp_path / "artifacts", before="fit")
    mark = uuid.uuid4().hex
    monkeypatch.setenv("DALLE_TEST_MARK", mark)
    config = section_of("fit", tiny_config("train.steps=100000", "train.checkpoint_every=100000"))
    settings = Settings(store=str(store), spool=tmp_path / "spool", ranks=2, grace_s=200.0)
    seen: list[int] = []

    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            seen.append(_ranks(mark))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_step(STAGES["fit"], config, tiny_run.inputs("fit"), settings, interrupt)
    assert seen == [2]
    assert marked(mark) == []
    fingerprint = plan(STAGES["fit"], config, tiny_run.inputs("fit"), settings).fingerprint
    assert len(Store.open(store).parts(fingerprint)) == 1
    assert list((tmp_path / "spool").iterdir()) == []


def _ranks(mark: str) -> int:
    count = 0
    for process in marked(mark):
        try:
            count += process.environ().get("WORLD_SIZE") == "2"
        except psutil.Error:
            continue
    return count


@pytest.mark.slow  # by default the ranks of the sharded training are killed, and one goes on
def test_killed_ranks_are_a_named_error_and_the_next_run_goes_on(tiny_run: TinyRun, tmp_path: Path) -> None:
    store = tiny_run.copy(tmp_path / "artifacts", before="fit")
    settings = {"store": str(store), "spool": str(tmp_path / "spool"), "ranks": 2, "grace_s": 3.0}
    driver = Driver("fit", tiny_run.config.fit, tiny_run.inputs("fit"), settings).start(
        DALLE_FAULT="checkpoint.after_receipt"
    )
    code, _, err = driver.wait()
    assert code == 1 and "StepFailed" in err, err
    assert driver.gone() == []
    log: list[str] = []
    run_step(
        STAGES["fit"],
        tiny_run.config.fit,
        tiny_run.inputs("fit"),
        Settings(**settings),
        lambda e: log.append(str(e.get("text", ""))),
    )
    assert "goes on from the checkpoint at step 3 of 9" in log


def test_killed_ranks_are_a_named_error_and_their_sharded_checkpoint_goes_on_with_one(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    store = tiny_run.copy(tmp_path / "artifacts", before="fit")
    config = section_of("fit", tiny_config("train.sharding=fsdp2"))
    settings = {"store": str(store), "spool": str(tmp_path / "spool"), "dtype": "float32", "grace_s": 3.0}
    driver = Driver("fit", config, tiny_run.inputs("fit"), settings | {"ranks": 2})
    code, _, err = driver.start(DALLE_FAULT="checkpoint.after_receipt").wait()
    assert code == 1 and "StepFailed" in err, err
    assert driver.gone() == []
    fingerprint = plan(STAGES["fit"], config, tiny_run.inputs("fit"), Settings(**settings)).fingerprint
    (part,) = Store.open(store).parts(fingerprint).values()
    roles = [o.role for o in part.objects]
    assert roles == ["checkpoint", "checkpoint.shard", "checkpoint.shard", "training.samples"]
    log: list[str] = []
    with steps_in_this_process():
        ref = run_step(
            STAGES["fit"],
            config,
            tiny_run.inputs("fit"),
            Settings(**settings),
            lambda e: log.append(str(e.get("text", ""))),
        ).ref
    assert "goes on from the checkpoint at step 3 of 9" in log
    curve = _manifest(store, {"ref": ref.model_dump()}).stats
    whole = tiny_run.manifest("fit").stats  # in the machine's own type, so near and not equal
    assert curve["final_loss"] == pytest.approx(whole["final_loss"], rel=2e-2)


def test_two_machines_meet_and_train_to_the_loss_of_one(tiny_run: TinyRun, tmp_path: Path) -> None:
    """Two launchers on one machine: each starts its own torchrun with one rank, they meet on the loopback."""
    store = tiny_run.copy(tmp_path / "artifacts", before="fit")
    meeting = f"127.0.0.1:{free_port()}"
    common = {"store": str(store), "nodes": 2, "rendezvous": meeting, "node_address": "127.0.0.1"}
    launchers = [
        Driver("fit", tiny_run.config.fit, tiny_run.inputs("fit"), common | {"spool": str(tmp_path / f"spool {i}")})
        for i in range(2)
    ]
    for launcher in launchers:
        launcher.start()
    first, second = (launcher.finish() for launcher in launchers)
    assert first["ref"] == second["ref"]
    made = _manifest(store, first)
    assert made.facts["ranks"] == 2
    assert made.stats["final_loss"] == pytest.approx(tiny_run.manifest("fit").stats["final_loss"], rel=2e-2)


def test_a_machine_that_nobody_meets_is_a_named_error(tiny_run: TinyRun, tmp_path: Path) -> None:
    settings = Settings(store=str(tiny_run.folder), nodes=2, spool=tmp_path)
    config = section_of("fit", tiny_config("train.steps=7"))
    with pytest.raises(UsageError, match="DALLE_RENDEZVOUS"):
        run_step(STAGES["fit"], config, tiny_run.inputs("fit"), settings)


def test_a_rank_that_is_missing_is_a_named_error_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(DeviceError, match="rank 0 of 2 did not finish a first collective"),
        process_group(Runtime(rank=0, world=2), deadline_s=1.0),
    ):
        raise AssertionError("entered without the other rank")
