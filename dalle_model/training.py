"""The one training loop, for every network.

Everything random is a pure function of (seed, step, rank), so a run resumed from a checkpoint equals the
undisturbed one bit for bit on a CPU with the same number of threads.

An objective may have a critic (see ``objectives.Objective``): a second network that is updated after the first one in
every step, by the same code, and saved in the same checkpoint.
"""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dalle_model.checkpoint import TrainState, capture, restore
from dalle_model.config import OptimConfig
from dalle_model.errors import DataError, DeviceError, TrainingDiverged
from dalle_model.objectives import Batch, Loss, Objective
from dalle_model.optim import build_optimizers, lr_share, set_lr, update_average
from dalle_model.runtime import Runtime

_DROPOUT = 0xD120  # stream number under Runtime.seed

Report = Callable[[dict[str, float]], None]
Save = Callable[[TrainState], None]


class TrainingStopped(BaseException):
    """Training was asked to stop and saved its state. Not an Exception: no handler for failures may swallow it."""


@dataclass(frozen=True)
class FitResult:
    """curve: logged points, no times. micro_batch_size: what fitted. seconds, rows_per_s: of the call."""

    steps: int
    curve: list[dict[str, float]]
    micro_batch_size: int
    seconds: float
    rows_per_s: float


@dataclass
class _Player:
    """A network, its optimisers, and the loss of the objective that it lowers. Most runs have one, adversarial ones two."""

    network: nn.Module
    wrapped: nn.Module
    optimizers: list[torch.optim.Optimizer]
    optim: OptimConfig
    loss: Callable[[nn.Module, Batch, int], Loss]


@dataclass
class _Run:
    """What changes while training. ``whole``: all networks, as a checkpoint names them."""

    players: list[_Player]
    whole: nn.Module
    average: dict[str, Tensor]
    micro: int

    @property
    def network(self) -> nn.Module:
        """The network that is published."""
        return self.players[0].network

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Of all players."""
        return [optimizer for player in self.players for optimizer in player.optimizers]


def fit(
    objective: Objective,
    optim: OptimConfig,
    runtime: Runtime,
    *,
    resume: TrainState | None = None,
    save: Save | None = None,
    report: Report | None = None,
    should_stop: Callable[[], bool] | None = None,
    data: str = "",
) -> FitResult:
    """Train ``objective.network`` in place for ``optim.steps`` updates; with ``ema`` it ends with the averaged weights.

    resume: a state of an earlier run of the same configuration. save: called on rank 0 every ``checkpoint_every``
    updates, at the end, and when stopped. report: called every ``log_every`` updates with the point of the curve and the speed.
    should_stop: asked after each update (on one rank); when true the state is saved and TrainingStopped raised.
    data: digest of the training data; a checkpoint of other data is refused.

    Raises TrainingDiverged on a non-finite loss or gradient, DataError when ``resume`` does not belong here,
    DeviceError when not even one row fits into memory.
    """
    if resume is not None and resume.data != data:
        raise DataError(
            f"the checkpoint was trained on data {resume.data[:12]!r}, not {data[:12]!r}; start afresh or give it"
        )
    with torch.random.fork_rng(devices=[]):
        run = _start(objective, optim, runtime, resume)
        curve: list[dict[str, float]] = list(resume.curve) if resume else []
        first = resume.step if resume else 0
        started = mark = time.perf_counter()
        marked = first
        for step in range(first, optim.steps):
            terms = _update(objective, run, optim, runtime, step)
            done = step + 1
            if done % optim.log_every == 0 or done == optim.steps:
                point = {
                    "step": float(done),
                    "lr": lr_share(optim, step) * optim.lr,
                    **terms,
                    **objective.schedule(step),
                }
                curve.append(point)
                now = time.perf_counter()
                if report:
                    report(
                        {
                            **point,
                            "rows_per_s": (done - marked) * optim.batch_size / (now - mark),
                            "steps": float(optim.steps),
                        }
                    )
                mark, marked = now, done
            stop = done < optim.steps and _any_rank(should_stop is not None and should_stop(), runtime)
            if save and runtime.rank == 0 and (stop or done % optim.checkpoint_every == 0 or done == optim.steps):
                facts = {"step": done, "data": data, "micro_batch_size": run.micro, "curve": list(curve)}
                save(capture(run.whole, run.optimizers, run.average, **facts))
            if stop:
                raise TrainingStopped(f"stopped after step {done} of {optim.steps}, saved")
        _publish_average(run)
    seconds = time.perf_counter() - started
    rate = (optim.steps - first) * optim.batch_size / seconds if seconds > 0 else 0.0
    return FitResult(optim.steps, curve, run.micro, seconds, rate)


def _any_rank(stop: bool, runtime: Runtime) -> bool:
    """Whether any rank wants to stop; all ranks must leave the loop at the same step."""
    if runtime.world == 1:
        return stop
    flag = torch.tensor(float(stop), device=runtime.device)
    torch.distributed.all_reduce(flag)
    return bool(flag > 0)


def _start(objective: Objective, optim: OptimConfig, runtime: Runtime, resume: TrainState | None) -> _Run:
    players = [_player(objective.network, optim, objective.loss, runtime)]
    whole = objective.network
    if objective.critic is not None:
        players.append(_player(objective.critic, objective.critic_optim or optim, objective.critic_loss, runtime))
        whole = nn.ModuleDict({"network": objective.network, "critic": objective.critic})
    average = {n: p.detach().clone() for n, p in objective.network.named_parameters()} if optim.ema else {}
    run = _Run(players, whole, average, min(optim.micro_batch_size or optim.batch_size, _rank_rows(optim, runtime)))
    if resume is not None:
        if resume.step > optim.steps:
            raise DataError(
                f"the checkpoint is at step {resume.step}, the run ends at {optim.steps}; raise optim.steps"
            )
        restore(resume, whole, run.optimizers, average)
        run.micro = min(run.micro, resume.micro_batch_size)
    for player in players:
        player.wrapped = DistributedDataParallel(player.network) if runtime.world > 1 else player.network
    return run


def _player(
    network: nn.Module, optim: OptimConfig, loss: Callable[[nn.Module, Batch, int], Loss], runtime: Runtime
) -> _Player:
    network.to(runtime.device).train()
    return _Player(network, network, build_optimizers(network, optim), optim, loss)


def _rank_rows(optim: OptimConfig, runtime: Runtime) -> int:
    return max(1, optim.batch_size // runtime.world)


def _update(objective: Objective, run: _Run, optim: OptimConfig, runtime: Runtime, step: int) -> dict[str, float]:
    """One optimiser update of each player; returns the logged terms."""
    whole = objective.batch(step)
    network, *critics = run.players
    for critic in critics:  # the gradient of the network passes through the critic and must not stay there
        critic.network.requires_grad_(False)
    terms = _update_player(network, run, runtime, whole, step)
    if run.average:
        update_average(run.average, run.network, optim.ema)
    for critic in critics:
        critic.network.requires_grad_(True)
        if step >= objective.critic_from:
            theirs = _update_player(critic, run, runtime, whole, step)
            terms |= {name if name.startswith("critic") else f"critic_{name}": v for name, v in theirs.items()}
    return terms


def _update_player(player: _Player, run: _Run, runtime: Runtime, whole: Batch, step: int) -> dict[str, float]:
    optim = player.optim
    while True:
        try:
            terms = _gradients(player, run.micro, runtime, whole, step)
            break
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if run.micro <= 1 or runtime.world > 1:  # another rank would wait for ever in its all-reduce
                remedy = "use a smaller network or picture" if run.micro <= 1 else "set a smaller micro_batch_size"
                raise DeviceError(
                    f"out of memory on {runtime.device} with {run.micro} rows per forward pass; {remedy}"
                ) from error
            run.micro = max(1, run.micro // 2)
            if runtime.device.type == "cuda":
                torch.cuda.empty_cache()
    if not math.isfinite(terms["loss"]):
        raise TrainingDiverged(
            f"the loss is {terms['loss']} at step {step + 1}; "
            f"lower lr {optim.lr} or raise warmup_steps {optim.warmup_steps}"
        )
    params = [p for p in player.network.parameters() if p.grad is not None]
    norm = float(torch.nn.utils.clip_grad_norm_(params, optim.clip_norm or math.inf))
    if not math.isfinite(norm):
        raise TrainingDiverged(
            f"the gradient norm is {norm} at step {step + 1}; "
            f"lower lr {optim.lr} or raise warmup_steps {optim.warmup_steps}"
        )
    set_lr(player.optimizers, lr_share(optim, step))
    for optimizer in player.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {**terms, "grad_norm": norm}


def _gradients(player: _Player, micro: int, runtime: Runtime, whole: Batch, step: int) -> dict[str, float]:
    """Accumulate the gradient of one batch over its micro-batches; returns the terms summed over parts and ranks."""
    for p in player.network.parameters():
        p.grad = None
    # dropout masks depend on the step, not on what was drawn before: a resumed run draws the same
    torch.manual_seed(runtime.generator(_DROPOUT, step, runtime.rank).initial_seed())
    rows = next(len(v) for v in whole.values() if v.dim())
    totals: dict[str, Tensor] = {}
    for start in range(0, rows, micro):
        part = {
            k: (v[start : start + micro] if v.dim() else v).to(runtime.device, non_blocking=True)
            for k, v in whole.items()
        }
        last = start + micro >= rows
        quiet = (
            nullcontext()
            if last or not isinstance(player.wrapped, DistributedDataParallel)
            else player.wrapped.no_sync()
        )
        with quiet:
            with runtime.autocast():
                loss = player.loss(player.wrapped, part, step)
            (loss.total * runtime.world).backward()  # type: ignore[no-untyped-call]  # ranks are averaged, parts are summed
        for name, value in loss.terms.items():
            totals[name] = totals[name] + value if name in totals else value
    stacked = torch.stack([v.float() for v in totals.values()])
    if runtime.world > 1:
        torch.distributed.all_reduce(stacked)
    return dict(zip(totals, stacked.tolist(), strict=True))


@torch.no_grad()
def _publish_average(run: _Run) -> None:
    for name, p in run.network.named_parameters():
        if name in run.average:
            p.copy_(run.average[name])
    run.network.eval()


def training_bytes(network: nn.Module, optim: OptimConfig, critic: nn.Module | None = None) -> int:
    """Bytes that training holds whatever the batch: float32 weights, gradients, optimiser slots, average, one checkpoint.

    Activations are left out: they shrink with the micro-batch, which is halved until it fits.
    """
    values = sum(p.numel() for net in (network, critic) if net is not None for p in net.parameters())
    copies = 2 + (2 if optim.optimizer == "adamw" else 1.5) + (1 if optim.ema else 0)
    return int(values * 4 * copies)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    text = str(error).lower()
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or "out of memory" in text
        or "can't allocate memory" in text
        or "cannot allocate memory" in text
    )
