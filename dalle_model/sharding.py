"""Several ranks: a network replicated on each (DDP) or sharded over them (FSDP2), and checkpoints written in shards.

Sharded tensors are DTensors (torch's distributed tensors). A sharded checkpoint is one safetensors file per rank,
written and read by ``torch.distributed.checkpoint``; each file says which slices it holds, so any number of ranks
can read them. Nothing in it is pickled.

The modules of torch that shard are imported by the functions that do: they double the time that ``import torch`` takes,
and most processes have one rank.
"""

import copy
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dalle_model.errors import CorruptObject
from dalle_model.runtime import Runtime

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def _spread(value: object) -> "TypeGuard[DTensor]":
    """Whether a tensor is spread over ranks. Where nobody has imported DTensor there can be none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def whole(value: Tensor) -> Tensor:
    """A tensor as every rank would hold it alone; for a sharded one all ranks must call this."""
    return value.full_tensor() if _spread(value) else value


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """The whole tensor ``value``, which every rank holds, spread as ``like`` is. No communication."""
    if _spread(value) or not _spread(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import DTensor, Replicate

    replicated = DTensor.from_local(value.to(like.device), like.device_mesh, [Replicate()], run_check=False)
    return replicated.redistribute(placements=like.placements)


def sharded_copy(network: nn.Module, parts: Iterable[str], runtime: Runtime) -> nn.Module:
    """A copy of the network whose parameters are spread over all ranks (FSDP2), ``parts`` of it gathered one by one.

    network: whole, on any device, the same on every rank; it is left as it is. Raises what torch raises without a
    process group.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

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


@contextmanager
def exchanging_gradients(wrapped: nn.Module, *, wanted: bool) -> Iterator[None]:
    """A block whose backward pass gives ranks each other's gradients only if ``wanted``; without ranks it does nothing."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None and isinstance(wrapped, fsdp.FSDPModule):
        wrapped.set_requires_gradient_sync(wanted)
    quiet = wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) and not wanted else nullcontext()
    with quiet:
        yield


def is_sharded(tensors: Mapping[str, Tensor]) -> bool:
    """Whether any of the tensors is spread over ranks."""
    return any(_spread(t) for t in tensors.values())


def write_shards(tensors: Mapping[str, Tensor], folder: Path) -> list[Path]:
    """Write this rank's share of the sharded tensors into ``folder``; all ranks must call it. Returns this rank's files."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    folder.mkdir(parents=True, exist_ok=True)
    sharded = {name: t for name, t in tensors.items() if _spread(t)}
    save(sharded, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    mine = f"shard-{torch.distributed.get_rank() + 1:05d}-"
    return sorted(p for p in folder.glob("*.safetensors") if p.name.startswith(mine))


def read_shards(folder: Path, count: int, like: Callable[[str], Tensor | None]) -> dict[str, Tensor]:
    """All tensors of a sharded checkpoint, spread as ``like`` spreads the parameter of the same shape, else whole.

    folder: holds the files of all ranks. like: the parameter that a name of the checkpoint belongs to, None = of none.
    Each rank reads just the slices it needs. CorruptObject when files are missing or a name has gaps.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

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
        spread = _spread(param) and param.shape == about.size
        out[name] = torch.zeros_like(param) if spread else torch.empty(about.size, dtype=about.properties.dtype)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # no_dist says that already
        load(out, storage_reader=reader, no_dist=True)
    return out
