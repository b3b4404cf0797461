"""The repeated parts of a network, treated one by one: computed again in the backward pass, compiled, sharded."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def blocks_of(network: nn.Module) -> list[str]:
    """Names of the repeated parts: the members of the outermost lists and chains of modules that hold parameters."""
    names: list[str] = []

    def walk(module: nn.Module, prefix: str) -> None:
        for name, child in module.named_children():
            if isinstance(module, nn.ModuleList | nn.Sequential):
                if any(True for _ in child.parameters()):
                    names.append(f"{prefix}{name}")
            else:
                walk(child, f"{prefix}{name}.")

    walk(network, "")
    return names


@contextmanager
def treated_blocks(network: nn.Module, *, recompute: bool, compiled: bool) -> Iterator[None]:
    """Within the block the network's repeated parts compute as asked; afterwards it is as it was.

    recompute: nothing inside a part is kept for the backward pass, it is computed again (Chen et al. 2016, "Training
    deep nets with sublinear memory cost"); dropout draws the same again. compiled: each part by ``torch.compile``,
    which compiles equal parts once.
    """
    parts = [network.get_submodule(name) for name in blocks_of(network)] if recompute or compiled else []
    for part in parts:
        forward = torch.compile(part.forward) if compiled else part.forward
        part.forward = partial(checkpoint, forward, use_reentrant=False) if recompute else forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        for part in parts:
            del part.forward
