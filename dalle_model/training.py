"""The one training loop, for every network.

Everything random is a pure function of (seed, step, rank), so a run resumed from a checkpoint equals the
undisturbed one bit for bit on a CPU with the same number of threads.

An objective may have a critic (see ``objectives.Objective``): a second network that is updated after the first one in
every step, by the same code, and saved in the same checkpoint.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dalle_model.blocks import blocks_of, treated_blocks
from dalle_model.checkpoint import TrainState, capture, restore
from dalle_model.config import OptimConfig
from dalle_model.divergence import diagnosis, suspicious_points
from dalle_model.errors import DataError, DeviceError, PreflightFailed, TrainingDiverged, UsageError
from dalle_model.objectives import Batch, Loss, Objective
from dalle_model.optim import average_decay, build_optimizers, lr_share, set_lr, update_average
from dalle_model.runtime import Runtime
from dalle_model.sharding import exchanging_gradients, sharded_copy, whole

_DROPOUT = 0xD120  # stream number under Runtime.seed
_LEARNT = 0.1  # share of its first loss that a batch repeated in the preflight must lose at least

Report = Callable[[dict[str, float]], None]
Save = Callable[[TrainState], None]
Observe = Callable[[int, nn.Module], None]


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
    """A network, its optimisers, and the loss of the objective that it lowers. Most runs have one, adversarial ones two.

    wrapped: what the loss calls, the network itself or the network replicated over ranks.
    """

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
    curve: list[dict[str, float]] = field(default_factory=list)
    saved_step: int = 0

    @property
    def network(self) -> nn.Module:
        """The network that is published, spread over ranks where training is."""
        return self.players[0].network

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Of all players."""
        return [optimizer for player in self.players for optimizer in player.optimizers]

    def exploding(self) -> int:
        """How many of the last points in a row show a loss that explodes; two networks at odds may wander at will."""
        return 0 if len(self.players) > 1 else suspicious_points(self.curve, self.players[0].optim.divergence_factor)


def fit(
    objective: Objective,
    optim: OptimConfig,
    runtime: Runtime,
    *,
    resume: TrainState | None = None,
    save: Save | None = None,
    report: Report | None = None,
    observe: Observe | None = None,
    should_stop: Callable[[], bool] | None = None,
    data: str = "",
) -> FitResult:
    """Train ``objective.network`` in place for ``optim.steps`` updates; with ``ema`` it ends with the averaged weights.

    resume: a state of an earlier run of the same configuration, at any number of ranks. save: called every
    ``checkpoint_every`` updates, at the end, and when stopped; on rank 0, or on every rank when the state is sharded.
    report: called every ``log_every`` updates with the point of the curve and the speed. observe: called on rank 0
    every ``sample_every`` updates with their number and the network as it would be published, in eval mode; whatever
    it draws at random changes nothing. should_stop: asked after each update (on one rank); when true the state is
    saved and TrainingStopped raised. data: digest of the training data; a checkpoint of other data is refused.

    Raises TrainingDiverged on a non-finite or exploding loss, PreflightFailed, DataError when ``resume`` does not
    belong here, DeviceError when not even one row fits into memory, UsageError for ranks that ``sharding`` refuses.
    """
    if resume is not None and resume.data != data:
        raise DataError(
            f"the checkpoint was trained on data {resume.data[:12]!r}, not {data[:12]!r}; start afresh or give it"
        )
    treatment = {"recompute": optim.activation_checkpointing, "compiled": optim.compile}
    with torch.random.fork_rng(devices=[]):
        run = _start(objective, optim, runtime, resume)
        first = resume.step if resume else 0
        with treated_blocks(run.network, **treatment):
            if optim.preflight and resume is None:
                _overfit_one_batch(objective, run, optim, runtime)
            started = mark = time.perf_counter()
            marked = first
            for step in range(first, optim.steps):
                terms = _update(objective, run, optim, runtime, step)
                done = step + 1
                if done % optim.log_every == 0 or done == optim.steps:
                    point = _log(objective, run, optim, step, terms)
                    now = time.perf_counter()
                    if report:
                        speed = (done - marked) * optim.batch_size / (now - mark)
                        report({**point, "rows_per_s": speed, "steps": float(optim.steps)})
                    mark, marked = now, done
                if observe and optim.sample_every and done % optim.sample_every == 0:
                    _show(objective, run, runtime, observe, done)
                stop = done < optim.steps and _any_rank(should_stop is not None and should_stop(), runtime)
                if save and (stop or done % optim.checkpoint_every == 0 or done == optim.steps):
                    _save(run, optim, runtime, save, done, data)
                if stop:
                    raise TrainingStopped(f"stopped after step {done} of {optim.steps}, saved")
        with torch.no_grad():
            _publish(objective, run)
        objective.network.eval()
    seconds = time.perf_counter() - started
    rate = (optim.steps - first) * optim.batch_size / seconds if seconds > 0 else 0.0
    return FitResult(optim.steps, run.curve, run.micro, seconds, rate)


def _any_rank(stop: bool, runtime: Runtime) -> bool:
    """Whether any rank wants to stop; all ranks must leave the loop at the same step."""
    if runtime.world == 1:
        return stop
    flag = torch.tensor(float(stop), device=runtime.device)
    torch.distributed.all_reduce(flag)
    return bool(flag > 0)


def _start(objective: Objective, optim: OptimConfig, runtime: Runtime, resume: TrainState | None) -> _Run:
    several = runtime.world > 1
    if several and optim.sharding == "none":
        raise UsageError(f"sharding none has one rank, but there are {runtime.world}; set sharding to ddp or fsdp2")
    sharded = several and optim.sharding == "fsdp2"
    network = objective.network
    if sharded:
        if objective.critic is not None:
            raise UsageError("sharding fsdp2 does not train a network with a critic; set sharding to ddp")
        network = sharded_copy(network, blocks_of(network), runtime)
    players = [_player(network, optim, objective.loss, runtime, objective.lr_shares)]
    whole_run = network
    if objective.critic is not None:
        players.append(_player(objective.critic, objective.critic_optim or optim, objective.critic_loss, runtime))
        whole_run = nn.ModuleDict({"network": objective.network, "critic": objective.critic})
    average = {n: p.detach().clone() for n, p in network.named_parameters()} if optim.ema else {}
    run = _Run(players, whole_run, average, min(optim.micro_batch_size or optim.batch_size, _rank_rows(optim, runtime)))
    if resume is not None:
        if resume.step > optim.steps:
            raise DataError(
                f"the checkpoint is at step {resume.step}, the run ends at {optim.steps}; raise optim.steps"
            )
        restore(resume, whole_run, run.optimizers, average)
        run.micro = min(run.micro, resume.micro_batch_size)
        run.curve, run.saved_step = list(resume.curve), resume.step
    for player in players:
        player.wrapped = DistributedDataParallel(player.network) if several and not sharded else player.network
    return run


def _player(
    network: nn.Module,
    optim: OptimConfig,
    loss: Callable[[nn.Module, Batch, int], Loss],
    runtime: Runtime,
    lr_shares: Mapping[str, float] = MappingProxyType({}),
) -> _Player:
    network.to(runtime.device).train()
    return _Player(network, network, build_optimizers(network, optim, runtime.dtype, lr_shares), optim, loss)


def _rank_rows(optim: OptimConfig, runtime: Runtime) -> int:
    return max(1, optim.batch_size // runtime.world)


def _log(objective: Objective, run: _Run, optim: OptimConfig, step: int, terms: dict[str, float]) -> dict[str, float]:
    """Append a point to the curve. Raises TrainingDiverged when it shows that the run is lost."""
    point = {"step": float(step + 1), "lr": lr_share(optim, step) * optim.lr, **terms, **objective.schedule(step)}
    run.curve.append(point)
    if run.exploding() >= optim.divergence_points:
        text = diagnosis(
            run.curve,
            lr=optim.lr,
            warmup_steps=optim.warmup_steps,
            clip_norm=optim.clip_norm,
            saved_step=run.saved_step,
        )
        raise TrainingDiverged(text)
    return point


def _save(run: _Run, optim: OptimConfig, runtime: Runtime, save: Save, done: int, data: str) -> None:
    """Hand the state over, unless the loss is exploding: then the last good checkpoint must stay the newest."""
    if run.exploding() and done < optim.steps:
        return
    facts = {"step": done, "data": data, "micro_batch_size": run.micro, "curve": list(run.curve)}
    state = capture(run.whole, run.optimizers, run.average, **facts)
    if runtime.rank == 0 or state.sharded:
        save(state)
    run.saved_step = done


def _show(objective: Objective, run: _Run, runtime: Runtime, observe: Observe, done: int) -> None:
    """Let rank 0 look at the network with its published weights, and put everything back as it was."""
    with torch.no_grad(), _published(objective, run) as network:
        if runtime.rank == 0:
            devices = [runtime.device] if runtime.device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices):
                observe(done, network)


@contextmanager
def _published(objective: Objective, run: _Run) -> Iterator[nn.Module]:
    """The whole network with the weights that it would be published with, in eval mode, for a while."""
    network = objective.network
    own = run.network is network
    kept = {n: v.detach().clone() for n, v in network.state_dict().items()} if own and run.average else {}
    _publish(objective, run)
    network.eval()
    try:
        yield network
    finally:
        now = network.state_dict()
        for name, value in kept.items():
            now[name].copy_(value)
        network.train()


def _publish(objective: Objective, run: _Run) -> None:
    """Write the averaged weights, or where there are none the trained ones, into the whole network. On all ranks."""
    network = objective.network
    own = run.network is network
    for name, p in run.network.named_parameters():
        if name in run.average or not own:
            network.get_parameter(name).copy_(whole(run.average.get(name, p)))
    if not own:
        for name, buffer in run.network.named_buffers():
            network.get_buffer(name).copy_(whole(buffer))
    if run.average:
        objective.settle(network)


def _overfit_one_batch(objective: Objective, run: _Run, optim: OptimConfig, runtime: Runtime) -> None:
    """Train on the first batch alone for ``preflight`` updates and put the weights back.

    Raises PreflightFailed when its loss does not fall: then neither data, loss nor step size can be right.
    """
    before = {name: value.detach().clone() for name, value in run.network.state_dict().items()}
    trial = replace(run.players[0], optimizers=build_optimizers(run.network, optim, runtime.dtype, objective.lr_shares))
    batch = objective.batch(0)
    losses = [_update_player(trial, run, runtime, batch, step=0, share=1.0)["loss"] for _ in range(optim.preflight)]
    run.network.load_state_dict(before)
    if min(losses) > losses[0] - _LEARNT * abs(losses[0]) and optim.preflight > 1:
        raise PreflightFailed(
            f"{optim.preflight} updates on one batch took the loss from {losses[0]:.4g} to {min(losses):.4g} at best, "
            f"not {_LEARNT:.0%} lower; check the data, try another lr than {optim.lr:g}, or set preflight to 0"
        )


def _update(objective: Objective, run: _Run, optim: OptimConfig, runtime: Runtime, step: int) -> dict[str, float]:
    """One optimiser update of each player; returns the logged terms."""
    batch = objective.batch(step)
    network, *critics = run.players
    for critic in critics:  # the gradient of the network passes through the critic and must not stay there
        critic.network.requires_grad_(False)
    terms = _update_player(network, run, runtime, batch, step=step, share=lr_share(optim, step))
    if run.average:
        update_average(run.average, run.network, average_decay(optim.ema, step))
    for critic in critics:
        critic.network.requires_grad_(True)
        if step >= objective.critic_from:
            theirs = _update_player(critic, run, runtime, batch, step=step, share=lr_share(critic.optim, step))
            terms |= {name if name.startswith("critic") else f"critic_{name}": v for name, v in theirs.items()}
    return terms


def _update_player(
    player: _Player, run: _Run, runtime: Runtime, batch: Batch, *, step: int, share: float
) -> dict[str, float]:
    """Gradient of one whole batch and one step of the optimisers at ``share`` of their peak step size."""
    while True:
        try:
            terms = _gradients(player, run.micro, runtime, batch, step)
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
    _refuse_non_finite(run, player.optim, step, "loss", terms["loss"])
    params = [p for p in player.network.parameters() if p.grad is not None]
    norm = float(whole(torch.nn.utils.clip_grad_norm_(params, player.optim.clip_norm or math.inf)))
    _refuse_non_finite(run, player.optim, step, "gradient norm", norm)
    set_lr(player.optimizers, share)
    for optimizer in player.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {**terms, "grad_norm": norm}


def _refuse_non_finite(run: _Run, optim: OptimConfig, step: int, what: str, value: float) -> None:
    if math.isfinite(value):
        return
    kept = f"the checkpoint at step {run.saved_step} is kept" if run.saved_step else "no checkpoint was made yet"
    raise TrainingDiverged(
        f"the {what} is {value} at step {step + 1}; "
        f"lower lr {optim.lr} or raise warmup_steps {optim.warmup_steps}; {kept}"
    )


def _gradients(player: _Player, micro: int, runtime: Runtime, batch: Batch, step: int) -> dict[str, float]:
    """Accumulate the gradient of one batch over its micro-batches; returns the terms summed over parts and ranks."""
    for p in player.network.parameters():
        p.grad = None
    # dropout masks depend on the step, not on what was drawn before: a resumed run draws the same
    torch.manual_seed(runtime.generator(_DROPOUT, step, runtime.rank).initial_seed())
    rows = next(len(v) for v in batch.values() if v.dim())
    totals: dict[str, Tensor] = {}
    for start in range(0, rows, micro):
        part = {
            k: (v[start : start + micro] if v.dim() else v).to(runtime.device, non_blocking=True)
            for k, v in batch.items()
        }
        with exchanging_gradients(player.wrapped, wanted=start + micro >= rows):  # after the last part of a batch
            with runtime.autocast():
                loss = player.loss(player.wrapped, part, step)
            (loss.total * runtime.world).backward()  # type: ignore[no-untyped-call]  # ranks are averaged, parts are summed
        for name, value in loss.terms.items():
            totals[name] = totals[name] + value if name in totals else value
    stacked = torch.stack([v.float() for v in totals.values()])
    if runtime.world > 1:
        torch.distributed.all_reduce(stacked)
    return dict(zip(totals, stacked.tolist(), strict=True))


def training_bytes(network: nn.Module, optim: OptimConfig, critic: nn.Module | None = None, *, world: int = 1) -> int:
    """Bytes that a rank holds whatever the batch: float32 weights, gradients, optimiser slots and average.

    With ``fsdp2`` a rank holds its share of them, and for a moment one block of the network whole. Activations are
    left out: they shrink with the micro-batch, which is halved until it fits.
    """
    values = sum(p.numel() for net in (network, critic) if net is not None for p in net.parameters())
    copies = 2 + (2 if optim.optimizer == "adamw" else 1.5) + (1 if optim.ema else 0)
    if world == 1 or optim.sharding != "fsdp2":
        return int(values * 4 * copies)
    blocks = [sum(p.numel() for p in network.get_submodule(name).parameters()) for name in blocks_of(network)]
    outside = values - sum(blocks)  # heads and embeddings stay gathered from the forward to the backward pass
    return int(4 * (values * copies / world + 2 * (max(blocks, default=0) + outside)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    text = str(error).lower()
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or "out of memory" in text
        or "can't allocate memory" in text
        or "cannot allocate memory" in text
    )
