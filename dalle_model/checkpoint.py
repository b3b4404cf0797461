"""Checkpoints: all that training needs to go on as if nothing had happened, as safetensors with a JSON header."""

import hashlib
import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from dalle_model.errors import CorruptObject, DataError
from dalle_model.sharding import is_sharded, read_shards, shard_like

_LOG = logging.getLogger(__name__)
_FORMAT = "dalle-train-state-1"


@dataclass
class TrainState:
    """Where a training run stands after ``step`` updates.

    tensors: ``model.*``, ``average.*``, ``optim.<i>.<parameter>.<slot>``, ``rng.torch``; data: digest of what is
    trained on; curve: logged points so far; micro_batch_size: what fitted into memory.
    shards: number of files that hold the sharded tensors (see ``dalle_model.sharding``), 0 = all are in ``tensors``;
    folder: where those files are, set by who reads them.
    """

    step: int
    tensors: dict[str, Tensor]
    data: str
    micro_batch_size: int
    curve: list[dict[str, float]] = field(default_factory=list)
    shards: int = 0
    folder: Path | None = None

    @property
    def sharded(self) -> bool:
        """Whether some tensors are spread over ranks, so that every rank must write its share."""
        return is_sharded(self.tensors)

    def to_bytes(self) -> bytes:
        """One safetensors file after the SHA-256 of its bytes. Sharded tensors are left out: ``write_shards``."""
        header = {
            "format": _FORMAT,
            "step": self.step,
            "data": self.data,
            "micro_batch_size": self.micro_batch_size,
            "curve": self.curve,
            **({"shards": self.shards} if self.shards else {}),
        }
        # one header key only: safetensors writes several in the order of a hash map that differs from run to run
        body = save_tensors(
            {k: v.detach().cpu().contiguous() for k, v in sorted(self.tensors.items()) if not is_sharded({k: v})},
            {"state": json.dumps(header, sort_keys=True)},
        )
        return hashlib.sha256(body).digest() + body

    @classmethod
    def from_bytes(cls, data: bytes) -> "TrainState":
        """The inverse of ``to_bytes``. CorruptObject when a byte differs, DataError when the format is another."""
        digest, body = data[:32], data[32:]
        if hashlib.sha256(body).digest() != digest:
            raise CorruptObject("the checkpoint's bytes differ from its own hash; take an earlier one")
        size = int.from_bytes(body[:8], "little")
        header = json.loads(json.loads(body[8 : 8 + size])["__metadata__"]["state"])
        if header.pop("format") != _FORMAT:
            raise DataError(f"the checkpoint is not of format {_FORMAT}; use the release that wrote it")
        return cls(tensors=load_tensors(body), **header)


def capture(
    network: nn.Module, optimizers: list[torch.optim.Optimizer], average: dict[str, Tensor], **facts: Any
) -> TrainState:
    """The state of a run; tensors are shared with it, so write it before the next update."""
    names = {id(p): name for name, p in network.named_parameters()}
    tensors = {f"model.{k}": v for k, v in network.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.items()}
    for i, optimizer in enumerate(optimizers):
        for p, slots in optimizer.state.items():
            tensors |= {f"optim.{i}.{names[id(p)]}.{slot}": v for slot, v in slots.items() if isinstance(v, Tensor)}
    tensors["rng.torch"] = torch.get_rng_state()
    return TrainState(tensors=tensors, **facts)


@torch.no_grad()
def restore(
    state: TrainState, network: nn.Module, optimizers: list[torch.optim.Optimizer], average: dict[str, Tensor]
) -> None:
    """Put a captured state back, bit for bit, spread over ranks as the network is now.

    DataError when it belongs to another network or optimiser, CorruptObject when shards are missing.
    """
    params = dict(network.named_parameters())
    tensors = dict(state.tensors)
    if state.shards:
        assert state.folder is not None
        tensors |= read_shards(state.folder, state.shards, lambda name: params.get(_parameter_of(name)))
    try:
        network.load_state_dict(
            {k[6:]: shard_like(v, params.get(k[6:], v)) for k, v in tensors.items() if k.startswith("model.")}
        )
    except RuntimeError as error:
        raise DataError(
            f"the checkpoint is of another network: {str(error).splitlines()[0]}; remove it or use its config"
        ) from error
    for name, value in average.items():
        value.copy_(shard_like(tensors[f"average.{name}"], value))
    for i, optimizer in enumerate(optimizers):
        prefix = f"optim.{i}."
        for key in (k for k in tensors if k.startswith(prefix)):
            name, slot = key[len(prefix) :].rsplit(".", 1)
            value = tensors[key].to("cpu" if slot == "step" else params[name].device)
            optimizer.state[params[name]][slot] = shard_like(value, params[name]).clone()
    torch.set_rng_state(tensors["rng.torch"])


def _parameter_of(key: str) -> str:
    """Name of the parameter that a tensor of a state belongs to: model.NAME, average.NAME, optim.I.NAME.SLOT."""
    kind, _, name = key.partition(".")
    return name.partition(".")[2].rpartition(".")[0] if kind == "optim" else name


class Checkpoints:
    """A folder of checkpoints ``step-<n>.ckpt``; each is written whole or not at all, the newest ``keep`` stay."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def paths(self) -> list[Path]:
        """Checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*.ckpt"))

    def save(self, state: TrainState) -> None:
        """Write a checkpoint durably, then drop the oldest beyond ``keep``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / f"step-{state.step:09d}.ckpt"
        spool = target.with_suffix(".tmp")
        with spool.open("wb") as file:
            file.write(state.to_bytes())
            file.flush()
            os.fsync(file.fileno())
        spool.replace(target)
        for old in self.paths()[: -self.keep]:
            old.unlink(missing_ok=True)

    def latest(self) -> TrainState | None:
        """The newest undamaged checkpoint or None. A damaged one is named in the log and passed over."""
        for path in reversed(self.paths()):
            try:
                return TrainState.from_bytes(path.read_bytes())
            except CorruptObject:
                _LOG.warning("checkpoint %s is damaged; going back to the one before", path.name)
        return None
