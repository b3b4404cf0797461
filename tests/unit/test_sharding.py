"""Two ranks over gloo: replicated and sharded networks train as one rank does, and checkpoints change hands."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file
from support.processes import free_port
from support.tiny_training import dalle_objective, optim_of

from dalle_model.checkpoint import TrainState
from dalle_model.config import OptimConfig
from dalle_model.errors import CorruptObject, UsageError
from dalle_model.runtime import Runtime
from dalle_model.sharding import write_shards
from dalle_model.training import fit

pytestmark = pytest.mark.xdist_group("sharding")

STOP = 5  # the step after which the run changes hands


def _optim(sharding: str, kind: str = "muon", **changes: Any) -> OptimConfig:
    return optim_of(kind, sharding=sharding, **changes)


def _train(folder: Path, runtime: Runtime, optim: OptimConfig, resume: TrainState | None = None) -> TrainState:
    """Train to the end; what was saved at STOP lies in ``folder``. Returns weights and curve, whole."""
    objective = dalle_objective(optim, runtime, dropout=0.0)

    def save(state: TrainState) -> None:
        if state.step != STOP:
            return
        files = write_shards(state.tensors, folder) if state.sharded else []
        assert len(files) == (1 if state.sharded else 0)
        if runtime.rank == 0:
            folder.mkdir(exist_ok=True)
            state.shards = runtime.world if state.sharded else 0
            (folder / "state").write_bytes(state.to_bytes())

    result = fit(objective, optim, runtime, save=save, resume=resume, data="d")
    return TrainState(result.steps, dict(objective.network.state_dict()), "d", 1, result.curve)


def _load(folder: Path) -> TrainState:
    state = TrainState.from_bytes((folder / "state").read_bytes())
    state.folder = folder
    return state


def _rank(rank: int, world: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    runtime = Runtime(rank=rank, world=world, seed=3)
    runs = {
        "ddp": _train(folder / "ddp", runtime, _optim("ddp", micro_batch_size=2)),
        "fsdp2": _train(folder / "fsdp2", runtime, _optim("fsdp2", micro_batch_size=2, activation_checkpointing=True)),
        "adamw": _train(folder / "adamw", runtime, _optim("fsdp2", "adamw")),
    }
    torch.distributed.barrier()
    runs["one to fsdp2"] = _train(folder / "x", runtime, _optim("fsdp2"), _load(folder / "one"))
    runs["fsdp2 to ddp"] = _train(folder / "x", runtime, _optim("ddp"), _load(folder / "fsdp2"))
    runs["fsdp2 again"] = _train(folder / "x", runtime, _optim("fsdp2", micro_batch_size=2), _load(folder / "fsdp2"))
    if rank == 1:  # the rank that publishes nothing must hold the same
        for name, state in runs.items():
            (folder / f"{name}.end").write_bytes(state.to_bytes())
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, TrainState]]:
    """Where two ranks ended, and one; and the folder with what each saved at STOP."""
    folder = tmp_path_factory.mktemp("ranks")
    runtime = Runtime(seed=3)
    one = {"one": _train(folder / "one", runtime, _optim("fsdp2"))}
    one["one adamw"] = _train(folder / "one adamw", runtime, _optim("fsdp2", "adamw"))
    # Forked: two children that import torch again cost more than all that they train here.
    mp.start_processes(_rank, (2, free_port(), folder), nprocs=2, start_method="fork")  # type: ignore[no-untyped-call]
    one["fsdp2 to one"] = _train(folder / "x", runtime, _optim("fsdp2"), _load(folder / "fsdp2"))
    return folder, one | {p.stem: TrainState.from_bytes(p.read_bytes()) for p in folder.glob("*.end")}


@pytest.mark.parametrize(
    "name", ["ddp", "fsdp2", "adamw", "one to fsdp2", "fsdp2 to ddp", "fsdp2 again", "fsdp2 to one"]
)
def test_any_number_of_ranks_ends_where_one_rank_does(name: str, ends: tuple[Path, dict[str, TrainState]]) -> None:
    want, got = ends[1]["one adamw" if name == "adamw" else "one"], ends[1][name]
    assert len(got.curve) == len(want.curve)
    for x, y in zip(got.curve, want.curve, strict=True):
        assert x["loss"] == pytest.approx(y["loss"], rel=1e-4) and x["step"] == y["step"]
        assert x["grad_norm"] == pytest.approx(y["grad_norm"], rel=2e-2)
    for key, value in want.tensors.items():
        torch.testing.assert_close(got.tensors[key], value, rtol=0, atol=4e-3)


def test_a_sharded_run_that_goes_on_at_the_same_ranks_is_exact(ends: tuple[Path, dict[str, TrainState]]) -> None:
    straight, resumed = ends[1]["fsdp2"], ends[1]["fsdp2 again"]
    assert straight.curve == resumed.curve
    assert all(torch.equal(value, resumed.tensors[name]) for name, value in straight.tensors.items())


def test_each_shard_holds_its_share_and_a_missing_one_is_noticed(ends: tuple[Path, dict[str, TrainState]]) -> None:
    folder = ends[0] / "fsdp2"
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == 2
    parts = [load_file(f) for f in files]
    name = "optim.1.blocks.0.attention.qkv.weight.momentum"
    whole = TrainState.from_bytes((ends[0] / "one" / "state").read_bytes()).tensors
    assert all(2 * len(part[name]) == len(whole[name]) for part in parts)
    assert not any(key.startswith("model.") for key in _load(folder).tensors)
    state = _load(folder)
    files[1].rename(folder / "elsewhere")
    try:
        with pytest.raises(CorruptObject, match="2 shards, 1 are there"):
            fit(dalle_objective(_optim("fsdp2"), Runtime()), _optim("fsdp2"), Runtime(), resume=state, data="d")
    finally:
        (folder / "elsewhere").rename(files[1])


def test_sharding_none_refuses_more_than_one_rank() -> None:
    runtime = Runtime(rank=0, world=2)
    with pytest.raises(UsageError, match="there are 2"):
        fit(dalle_objective(_optim("none"), runtime), _optim("none"), runtime)
