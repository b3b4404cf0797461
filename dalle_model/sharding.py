"""Several ranks: a network replicated on each (DDP) or sharded over them (FSDP2), and checkpoints written in shards.

Sharded tensors are DTensors (torch's distributed tensors). A sharded checkpoint is one safetensors file per rank,
written and read by ``torch.distributed.checkpoint``; each file says which slices it holds, so any number of ranks
can read them. Nothing in it is pickled.
"""

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.nn.parallel import DistributedDataParallel

from dalle_model.errors import CorruptObject
from dalle_model.runtime import Runtime


def whole(value: Tensor) -> Tensor:
    """A tensor as every rank would hold it alone; for a sharded one all ranks must call this."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """The whole tensor ``value``, which every rank holds, spread as ``like`` is. No communication."""
    if isinstance(value, DTensor) or not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    replicated = DTensor.from_local(value.to(like.device), like.device_mesh, [Replicate()], run_check=False)
    return replicated.redistribute(placements=like.placements)


def sharded_copy(network: nn.Module, parts: Iterable[str], runtime: Runtime) -> nn.Module:
    """A copy of the network whose parameters are spread over all ranks (FSDP2), ``parts`` of it gathered one by one.

    network: whole, on any device, the same on every rank; it is left as it is. Raises what torch raises without a
    process group.
    """
    copied = copy.deepcopy(network)
    mesh = init_device_mesh(runtime.device.type, (runtime.world,))
    for name in parts:
        part = copied.get_submodule(name)
        if any(True for _ in part.parameters()):
            fully_shard(part, mesh=mesh)
    # Not given back after the forward pass: the loss reads the heads' weights when that is over.
    fully_shard(copied, mesh=mesh, reshard_after_forward=False)
    return copied.to(runtime.device)


def plain(network: nn.Module) -> nn.Module:
    """The network itself behind what replicates it."""
    inner: nn.Module = network.module if isinstance(network, DistributedDataParallel) else network
    return inner


def is_sharded(tensors: Mapping[str, Tensor]) -> bool:
    """Whether any of the tensors is spread over ranks."""
    return any(isinstance(t, DTensor) for t in tensors.values())


def write_shards(tensors: Mapping[str, Tensor], folder: Path) -> list[Path]:
    """Write this rank's share of the sharded tensors into ``folder``; all ranks must call it. Returns this rank's files."""
    folder.mkdir(parents=True, exist_ok=True)
    sharded = {name: t for name, t in tensors.items() if isinstance(t, DTensor)}
    save(sharded, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    mine = f"shard-{torch.distributed.get_rank() + 1:05d}-"
    return sorted(p for p in folder.glob("*.safetensors") if p.name.startswith(mine))


def read_shards(folder: Path, count: int, like: Callable[[str], Tensor | None]) -> dict[str, Tensor]:
    """All tensors of a sharded checkpoint, spread as ``like`` spreads the parameter of the same shape, else whole.

    folder: holds the files of all ranks. like: the parameter that a name of the checkpoint belongs to, None = of none.
    Each rank reads just the slices it needs. CorruptObject when files are missing or a name has gaps.
    """
    found = len(list(folder.glob("*.safetensors")))
    if found != count:
        raise CorruptObject(f"the checkpoint has {count} shards, {found} are there; take an earlier one")
    reader = HuggingFaceStorageReader(str(folder))
    out: dict[str, Tensor] = {}
    for name, about in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(about, TensorStorageMetadata)
        held = sum(chunk.sizes.numel() for chunk in about.chunks)
        if held != about.size.numel():
            raise CorruptObject(
                f"the checkpoint's {name} has {held} of {about.size.numel()} values; take an earlier one"
            )
        param = like(name)
        spread = isinstance(param, DTensor) and param.shape == about.size
        out[name] = torch.zeros_like(param) if spread else torch.empty(about.size, dtype=about.properties.dtype)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # no_dist says that already
        load(out, storage_reader=reader, no_dist=True)
    return out
