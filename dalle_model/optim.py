"""Optimisers, step-size schedules and averaged weights, as small pieces that the training loop puts together."""

import inspect
import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from dalle_model.config import OptimConfig
from dalle_model.sharding import shard_like, whole


def lr_share(config: OptimConfig, step: int) -> float:
    """Step size of update ``step`` (from 0) over its peak: linear warm-up, then the schedule. A pure function."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - 1 - config.warmup_steps)
    progress = min(1.0, progress)
    low = config.final_lr_share
    if config.schedule == "dvae":  # 1.2 of 3 million updates (appendix A.2)
        progress = min(1.0, progress / 0.4)
    if config.schedule in ("cosine", "dvae"):
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))
    if config.schedule == "linear":
        return 1 - (1 - low) * progress
    if config.schedule == "wsd":
        return 1.0 if progress < 0.8 else 1 - (1 - low) * (progress - 0.8) / 0.2
    if config.schedule == "halving":
        return halved(progress)
    return 1.0


def unreached_peak(config: OptimConfig) -> str:
    """What to say of a run that ends inside its warm-up; empty if it does not."""
    if config.steps >= config.warmup_steps:
        return ""
    most = lr_share(config, config.steps - 1)
    return (
        f"the run ends after {config.steps} of {config.warmup_steps} updates of warm-up, at {most:.0%} of its peak step "
        "size; lower warmup_steps, or raise steps"
    )


def halved(progress: float, times: int = 5) -> float:
    """1, halved ``times`` times at even distances as ``progress`` goes from 0 to 1.

    The paper halved when the loss stood still, five times, to 1/32 in the end (appendix B.2). A plateau cannot be told
    from the step alone; even distances keep the number and the end, and a resumed run the same.
    """
    return 0.5 ** min(times, int(progress * (times + 1)))


def _orthogonalise(update: Tensor, dtype: torch.dtype, iterations: int = 5) -> Tensor:
    """[n, rows, cols] matrices -> the nearest semi-orthogonal ones, roughly: quintic Newton-Schulz in ``dtype``.

    Coefficients of Jordan et al. 2024 (Muon), tuned for a steep slope at zero instead of convergence to one.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x: Tensor = update.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.transpose(-2, -1) if tall else x


class _Eager(torch.optim.Optimizer):
    """An optimiser that leaves torch's compiler alone.

    torch wraps these methods to keep them out of compiled graphs, and the first call of a wrapper imports the compiler:
    2 s of a CPU in every process that trains. We compile blocks and never an optimiser, so the bare methods do the same.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)


class AdamW(_Eager, torch.optim.AdamW):
    """``torch.optim.AdamW``, whose wrapped ``step`` asks the compiler to break its graph around it."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class Muon(_Eager):
    """Momentum, orthogonalised (Jordan et al. 2024). Matrices of equal shape go through one batched product.

    ``torch.optim.Muon`` takes two-dimensional parameters one by one; this one also takes convolution kernels (as
    matrices [out, in * k * k]) and spends a third of the time on a small model.

    dtype: of the products that orthogonalise. bfloat16 is enough where the hardware multiplies it; a processor that
    emulates it took twice as long for these products as for a whole gradient in float32.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault((p.shape[0], p.numel() // p.shape[0]), []).append(p)
            for (rows, cols), params in by_shape.items():
                updates = []
                for p in params:
                    state = self.state[p]
                    if "momentum" not in state:
                        state["momentum"] = torch.zeros_like(p)
                    state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                    update = p.grad.lerp(state["momentum"], group["momentum"])  # type: ignore[union-attr]
                    updates.append(whole(update).reshape(rows, cols))  # of a sharded one each rank needs all of it
                directions = _orthogonalise(torch.stack(updates), self._dtype)
                scale = group["lr"] * math.sqrt(max(1.0, rows / cols))
                for p, direction in zip(params, directions, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(shard_like(direction.reshape(p.shape).to(p.dtype), p), alpha=-scale)


def build_optimizers(
    network: nn.Module,
    config: OptimConfig,
    dtype: torch.dtype = torch.float32,
    lr_shares: Mapping[str, float] = MappingProxyType({}),
) -> list[torch.optim.Optimizer]:
    """The optimisers of a network. Gains, biases and embeddings are never decayed; Muon takes the inner matrices only.

    A parameter counts as a matrix when it has two dimensions or more and its name does not hold ``embed`` or ``head``
    for Muon's purpose (those learn better with AdamW). ``dtype`` is that of Muon's products. ``lr_shares``: peak step
    size of parameters over that of ``config``, by the beginning of their name.
    """
    kinds = ("muon", "decay", "plain")
    parts: dict[tuple[str, float], list[nn.Parameter]] = {}
    for name, p in network.named_parameters():
        if not p.requires_grad:
            continue
        embedding = "embed" in name
        if config.optimizer == "muon" and p.dim() >= 2 and not embedding and "head" not in name:
            kind = "muon"
        else:
            kind = "decay" if p.dim() >= 2 and not embedding else "plain"
        share = next((value for start, value in lr_shares.items() if name.startswith(start)), 1.0)
        parts.setdefault((kind, share), []).append(p)
    groups: dict[bool, list[dict[str, Any]]] = {False: [], True: []}  # AdamW's and Muon's
    for (kind, share), params in sorted(parts.items(), key=lambda part: (kinds.index(part[0][0]), -part[0][1])):
        peak = share * (config.muon_lr if kind == "muon" else config.lr)
        decay = 0.0 if kind == "plain" else config.weight_decay
        groups[kind == "muon"].append({"params": params, "weight_decay": decay, "lr": peak, "peak_lr": peak})
    optimizers: list[torch.optim.Optimizer] = []
    if groups[False]:
        optimizers.append(AdamW(groups[False], lr=config.lr, betas=config.betas, eps=1e-8, fused=True))
    if groups[True]:
        optimizers.append(Muon(groups[True], lr=config.muon_lr, dtype=dtype))
    return optimizers


def set_lr(optimizers: Iterable[torch.optim.Optimizer], share: float) -> None:
    """Set every group's step size to ``share`` of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share


def average_decay(decay: float, step: int) -> float:
    """Decay of the averaged weights at update ``step`` (from 0): at most (1 + step) / (10 + step).

    The average then spans at most a tenth of the run so far, and forgets the initial weights: 0.999 from the first
    update on would end a run of 150 updates with 86 % of them. From step 9 / (1 - decay) on it is ``decay``, which is
    update 9,000 of the paper's 3,000,000.
    """
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(average: dict[str, Tensor], network: nn.Module, decay: float) -> None:
    """Move the averaged weights one step towards the network's: average = decay * average + (1 - decay) * weight."""
    for name, p in network.named_parameters():
        average[name].lerp_(p.detach().to(average[name].dtype), 1 - decay)
