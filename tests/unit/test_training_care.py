"""What watches over a training run: preflight, divergence, looks at the network, memory; none changes the result."""

import math
from collections.abc import Callable

import pytest
import torch
from support.tiny_training import dalle_objective, hex_curve, optim_of, weights
from torch.utils._python_dispatch import TorchDispatchMode

from dalle_model.blocks import blocks_of, treated_blocks
from dalle_model.checkpoint import TrainState
from dalle_model.config import OptimConfig
from dalle_model.divergence import suspicious_points
from dalle_model.errors import PreflightFailed, TrainingDiverged
from dalle_model.objectives import Batch, DalleObjective, Loss, head_cross_entropy
from dalle_model.runtime import Runtime
from dalle_model.training import fit

RUNTIME = Runtime(seed=3)


def test_looking_at_the_network_changes_nothing_and_shows_what_would_be_published() -> None:
    optim = optim_of(steps=6, sample_every=2)
    plain, seen = dalle_objective(optim, RUNTIME), dalle_objective(optim, RUNTIME)
    looks: dict[int, bytes] = {}

    def observe(step: int, network: torch.nn.Module) -> None:
        assert not network.training
        torch.rand(5)
        looks[step] = weights(seen)["blocks.0.attention.qkv.weight"]

    expected = fit(plain, optim, RUNTIME)
    result = fit(seen, optim, RUNTIME, observe=observe)
    assert hex_curve(result.curve) == hex_curve(expected.curve)
    assert weights(seen) == weights(plain)
    assert list(looks) == [2, 4, 6]
    assert looks[6] == weights(plain)["blocks.0.attention.qkv.weight"]  # averaged, as at the end
    assert len(set(looks.values())) == 3


def test_preflight_leaves_the_run_as_it_would_be_without() -> None:
    optim = optim_of(steps=4, lr=5e-3)
    plain, tried = dalle_objective(optim, RUNTIME), dalle_objective(optim, RUNTIME)
    expected = fit(plain, optim, RUNTIME)
    result = fit(tried, optim.model_copy(update={"preflight": 20}), RUNTIME)
    assert hex_curve(result.curve) == hex_curve(expected.curve)
    assert weights(tried) == weights(plain)


def test_preflight_refuses_a_step_size_that_learns_nothing() -> None:
    optim = optim_of(steps=4, lr=1e-9, preflight=20)
    with pytest.raises(PreflightFailed, match=r"20 updates on one batch took the loss from .* another lr than 1e-09"):
        fit(dalle_objective(optim, RUNTIME), optim, RUNTIME)


class _Poisoned(DalleObjective):
    """From step 6 on the loss has the wrong sign and is steep: the run explodes."""

    def loss(self, network: torch.nn.Module, batch: Batch, step: int) -> Loss:
        loss = super().loss(network, batch, step)
        return loss if step < 6 else Loss(-50 * loss.total, loss.terms)


def test_a_run_that_explodes_stops_with_a_diagnosis_and_keeps_the_last_good_checkpoint() -> None:
    optim = optim_of(steps=400, lr=1e-2, ema=0.0, clip_norm=0.0, divergence_factor=1.5, divergence_points=4)
    base = dalle_objective(optim, RUNTIME, dropout=0.0)
    objective = _Poisoned(base.model, base._rows, base._config, RUNTIME)
    saved: list[TrainState] = []
    with pytest.raises(
        TrainingDiverged,
        match=r"the loss is .* after .* lower lr 0.01 .*set clip_norm 1; the checkpoint at step \d+ is kept",
    ) as stop:
        fit(objective, optim, RUNTIME, save=saved.append)
    newest = saved[-1]
    assert f"checkpoint at step {newest.step} is kept" in str(stop.value)
    assert suspicious_points(newest.curve, 1.5) == 0
    assert newest.step < 400


@pytest.mark.parametrize(
    ("losses", "count"),
    [
        ([8, 4, 2, 1, 3.1, 3.2], 0),  # thrice the best, but most of what was learnt is still there
        ([8, 4, 2, 1, 5, 6], 2),
        ([8, 4, 2, 1, 5, 1, 6], 1),  # in a row
        ([8, 0.001, 0.01, 0.02], 0),  # near zero a multiple says nothing
        ([-1, -5, -4], 0),  # a log density may be negative
        ([-1, -5, 9], 1),
        ([8], 0),
    ],
)
def test_what_counts_as_exploding(losses: list[float], count: int) -> None:
    assert suspicious_points([{"loss": loss} for loss in losses], 3.0) == count
    assert suspicious_points([{"loss": loss} for loss in losses], 0.0) == 0


def _kept_bytes(objective: DalleObjective, *, recompute: bool) -> tuple[int, dict[str, torch.Tensor]]:
    """Bytes of distinct activations kept for the backward pass, and the gradients."""
    kept: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    own = {p.untyped_storage().data_ptr() for p in objective.network.parameters()}
    torch.manual_seed(1)
    with treated_blocks(objective.network, recompute=recompute, compiled=False):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = objective.loss(objective.network, objective.batch(0), 0)
        size = sum(kept.values())
        loss.total.backward()  # type: ignore[no-untyped-call]
    return size, {n: p.grad.clone() for n, p in objective.network.named_parameters() if p.grad is not None}


def test_activation_checkpointing_keeps_less_and_gives_the_same_gradients() -> None:
    optim = optim_of()
    make: Callable[[], DalleObjective] = lambda: dalle_objective(optim, RUNTIME, dropout=0.2)  # noqa: E731
    whole, expected = _kept_bytes(make(), recompute=False)
    less, got = _kept_bytes(make(), recompute=True)
    assert less < 0.5 * whole
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    network = make().network
    assert blocks_of(network) == ["blocks.0", "blocks.1"]
    with treated_blocks(network, recompute=True, compiled=False):
        assert "forward" in vars(network.get_submodule("blocks.0"))
    assert "forward" not in vars(network.get_submodule("blocks.0"))


@pytest.mark.slow
def test_compiled_training_follows_the_plain_one() -> None:
    optim = optim_of(steps=5)
    plain, compiled = dalle_objective(optim, RUNTIME, dropout=0.0), dalle_objective(optim, RUNTIME, dropout=0.0)
    expected = fit(plain, optim, RUNTIME)
    result = fit(compiled, optim.model_copy(update={"compile": True}), RUNTIME)
    for x, y in zip(result.curve, expected.curve, strict=True):
        assert x["loss"] == pytest.approx(y["loss"], rel=1e-4)


class _Largest(TorchDispatchMode):
    """The largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, torch.Tensor):
                self.numel = max(self.numel, value.numel())
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_never_holds_more_logits_than_a_chunk(dtype: torch.dtype) -> None:
    rows, dim, vocab, chunk = 512, 8, 256, 64
    hidden = torch.randn(rows, dim, requires_grad=True)
    head = torch.randn(vocab, dim, requires_grad=True)
    targets = torch.randint(0, vocab, (rows,))
    with _Largest() as largest:
        head_cross_entropy(hidden, head, targets, Runtime(dtype=dtype), chunk=chunk).backward()  # type: ignore[no-untyped-call]
    assert chunk * vocab <= largest.numel < 2 * chunk * vocab < rows * vocab


def test_flops_of_a_row_are_those_that_the_counter_sees_without_what_causality_saves() -> None:
    optim = OptimConfig(batch_size=2)
    objective = dalle_objective(optim, RUNTIME)
    shape, config = objective.model.shape, objective.model.config
    length = shape.max_text_tokens + shape.num_image_tokens
    per_token = 3 * config.dim**2 + config.dim**2 + 3 * config.dim * config.hidden
    heads = config.dim * (shape.max_text_tokens * shape.text_vocab + shape.num_image_tokens * shape.image_vocab)
    by_hand = 6 * (config.depth * (length * per_token + length**2 * config.dim) + heads)
    assert objective.flops_per_row() == by_hand
    assert objective.references() == {"loss_image": math.log(32), "loss_text": math.log(20)}
