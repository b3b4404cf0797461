"""The one training loop: exact resume, accumulation, ranks, out-of-memory, divergence."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_training import SHAPE, dalle_objective, hex_curve, optim_of, token_rows, weights
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dalle_model.captions import CaptionTokenizer, train_bpe
from dalle_model.checkpoint import Checkpoints, TrainState
from dalle_model.config import ModelConfig, OptimConfig, TokenizerConfig, TrainConfig
from dalle_model.dalle import build_dalle
from dalle_model.errors import DataError, DeviceError, TrainingDiverged
from dalle_model.objectives import Batch, BpeDropout, DalleObjective, Loss, head_cross_entropy
from dalle_model.optim import Muon, lr_share, unreached_peak
from dalle_model.picture_objectives import tokenizer_objective
from dalle_model.runtime import Runtime
from dalle_model.token_batches import RowOrder, TokenRows, pad_text, rarity_weights
from dalle_model.tokenizers.registry import build_tokenizer
from dalle_model.training import fit


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize(
    "stops", [[0], [5], [2, 3], [3, 11, 12]]
)  # step 0; inside; twice in one epoch; epoch end, last
def test_resumed_run_equals_undisturbed_run_bit_for_bit(kind: str, stops: list[int]) -> None:
    runtime, optim = Runtime(seed=3), optim_of(kind)
    straight = dalle_objective(optim, runtime)
    expected = fit(straight, optim, runtime, data="d")

    state: TrainState | None = None
    for stop in stops:
        saved: list[bytes] = []

        def keep(new: TrainState, until: int = stop, saved: list[bytes] = saved) -> None:
            if new.step == until:
                saved.append(new.to_bytes())
                raise KeyboardInterrupt

        if stop > 0:
            with pytest.raises(KeyboardInterrupt):
                fit(dalle_objective(optim, runtime), optim, runtime, resume=state, save=keep, data="d")
            state = TrainState.from_bytes(saved[0])
            torch.rand(7)  # draws of others between the runs must not matter
    again = dalle_objective(optim, runtime)
    result = fit(again, optim, runtime, resume=state, data="d")
    assert hex_curve(result.curve) == hex_curve(expected.curve)
    assert weights(again) == weights(straight)


class _TypesOfResults(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen |= {t.dtype for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor)}
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_update_computes_in_the_type_of_the_runtime_alone(dtype: torch.dtype) -> None:
    """Products in bfloat16 took two thirds of an update on a processor that only emulates it."""
    optim, types = optim_of("muon", steps=1), _TypesOfResults()
    with types:
        fit(dalle_objective(optim, Runtime(dtype=dtype)), optim, Runtime(dtype=dtype))
    assert types.seen & {torch.bfloat16, torch.float16} == {dtype} - {torch.float32}


def test_muon_in_float32_moves_as_published() -> None:
    """Against torch's, which computes its products in bfloat16."""
    torch.manual_seed(0)
    matrix = torch.randn(24, 40)
    ours, theirs = nn.Parameter(matrix.clone()), nn.Parameter(matrix.clone())
    optimizers = [Muon([ours], lr=0.1), torch.optim.Muon([theirs], lr=0.1, weight_decay=0.0)]
    for grad in torch.randn(4, 24, 40):
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        before = ours.detach().clone()
        for optimizer in optimizers:
            optimizer.step()
        singular = torch.linalg.svdvals((ours.detach() - before) / 0.1)
        assert 0.6 < singular.min() <= singular.max() < 1.3
    torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0)


def test_a_short_run_publishes_what_it_learnt_not_where_it_began() -> None:
    """With a decay that spans more updates than the run has."""
    runtime = Runtime(seed=3)
    begun = [p.detach().clone() for p in dalle_objective(optim_of(), runtime).network.parameters()]
    published, trained = (dalle_objective(optim_of(), runtime) for _ in range(2))
    fit(published, optim_of(steps=12, ema=0.999), runtime)
    fit(trained, optim_of(steps=12, ema=0.0), runtime)
    norms = [
        sum(float((p.detach() - b).square().sum()) for p, b in zip(o.network.parameters(), begun, strict=True)) ** 0.5
        for o in (published, trained)
    ]
    assert norms[0] > 0.5 * norms[1] > 0


def test_training_leaves_the_callers_random_state_alone() -> None:
    optim, runtime = optim_of(steps=2), Runtime()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(dalle_objective(optim, runtime), optim, runtime)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("micro", [1, 3])
def test_accumulated_batch_equals_whole_batch(micro: int) -> None:
    runtime = Runtime()
    whole, parts = optim_of(steps=4, ema=0), optim_of(steps=4, ema=0, micro_batch_size=micro)
    a, b = dalle_objective(whole, runtime, dropout=0.0), dalle_objective(parts, runtime, dropout=0.0)
    curve_a, curve_b = fit(a, whole, runtime).curve, fit(b, parts, runtime).curve
    for x, y in zip(curve_a, curve_b, strict=True):
        assert x["loss"] == pytest.approx(y["loss"], rel=1e-5)
        assert x["grad_norm"] == pytest.approx(y["grad_norm"], rel=1e-4)


class _Crowded(DalleObjective):
    """Says out of memory above three rows per forward pass."""

    limit = 3
    message = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"

    def loss(self, network: torch.nn.Module, batch: Batch, step: int) -> Loss:
        if len(batch["image"]) > self.limit:
            raise RuntimeError(self.message)
        return super().loss(network, batch, step)


def crowded(optim: OptimConfig, limit: int) -> _Crowded:
    runtime = Runtime()
    model = build_dalle(ModelConfig(dim=32, depth=1, heads=2), SHAPE, runtime.generator(1))
    objective = _Crowded(model, token_rows(), TrainConfig(optim=optim), runtime)
    objective.limit = limit
    return objective


def test_out_of_memory_halves_the_micro_batch_and_goes_on() -> None:
    optim = optim_of(steps=3)
    result = fit(crowded(optim, 3), optim, Runtime())
    assert result.micro_batch_size == 2
    free = crowded(optim, 99)
    assert fit(free, optim, Runtime()).curve[-1]["loss"] == pytest.approx(result.curve[-1]["loss"], rel=1e-5)


def test_out_of_memory_with_one_row_is_a_device_error() -> None:
    optim = optim_of(steps=3)
    with pytest.raises(DeviceError, match="smaller network"):
        fit(crowded(optim, 0), optim, Runtime())


def test_other_runtime_errors_are_not_taken_for_out_of_memory() -> None:
    optim = optim_of(steps=3)
    objective = crowded(optim, 0)
    objective.message = "shapes cannot be multiplied"
    with pytest.raises(RuntimeError, match="shapes"):
        fit(objective, optim, Runtime())


def test_non_finite_loss_stops_with_the_step_and_a_remedy() -> None:
    optim, runtime = optim_of(), Runtime()
    objective = dalle_objective(optim, runtime)
    with torch.no_grad():
        next(objective.network.parameters()).fill_(math.nan)
    with pytest.raises(TrainingDiverged, match=r"step 1; lower lr"):
        fit(objective, optim, runtime)


def test_checkpoint_of_other_data_or_longer_run_is_refused() -> None:
    optim, runtime = optim_of(steps=2), Runtime()
    states: list[TrainState] = []
    fit(dalle_objective(optim, runtime), optim, runtime, save=states.append, data="a")
    with pytest.raises(DataError, match="trained on data 'a'"):
        fit(dalle_objective(optim, runtime), optim, runtime, resume=states[-1], data="b")
    with pytest.raises(DataError, match="run ends at 1"):
        fit(dalle_objective(optim, runtime), optim_of(steps=1), runtime, resume=states[-1], data="a")


def test_training_learns_the_rows_by_heart() -> None:
    runtime = Runtime()
    optim = optim_of("muon", steps=150, ema=0, batch_size=22, lr=5e-3, log_every=150)
    objective = dalle_objective(optim, runtime, dropout=0.0)
    result = fit(objective, optim, runtime)
    assert result.curve[-1]["loss_image"] < 0.5 * math.log(SHAPE.image_vocab)


@pytest.mark.parametrize("kind", ["fsq", "vq", "dvae"])
def test_tokenizer_training_is_deterministic_and_lowers_the_error(kind: str) -> None:
    pictures = np.zeros((16, 3, 16, 16), np.uint8)
    pictures[:, :, 4:12, 4:12] = np.random.default_rng(0).integers(0, 255, (16, 3, 1, 1))
    optim = OptimConfig(steps=40, batch_size=8, lr=3e-3, warmup_steps=5, log_every=1)
    config = TokenizerConfig.model_validate(
        {
            "kind": kind,
            "image_px": 16,
            "width": 8,
            "num_codes": 16,
            "blocks_per_group": 1,
            "optim": optim,
            "kl_weight": 0.1,
        }
    )
    curves = []
    for micro in (0, 0, 4):
        split = config.model_copy(update={"optim": optim.model_copy(update={"micro_batch_size": micro})})
        tokenizer = build_tokenizer(config, Runtime().generator(1))
        curves.append(fit(tokenizer_objective(tokenizer, pictures, split, Runtime()), split.optim, Runtime()).curve)
    assert hex_curve(curves[0]) == hex_curve(curves[1])
    assert curves[0][0]["loss"] == pytest.approx(curves[2][0]["loss"], rel=1e-5)
    assert curves[0][-1]["l2"] < 0.7 * curves[0][0]["l2"]


def test_chunked_cross_entropy_equals_torch() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(13, 8, requires_grad=True)
    head = torch.nn.Linear(8, 11, bias=False)
    targets = torch.randint(0, 11, (13,))
    (head_cross_entropy(hidden, head.weight, targets, Runtime(), chunk=4) / 13 * 3).backward()
    got = (hidden.grad.clone(), head.weight.grad.clone())
    hidden.grad = head.weight.grad = None
    (torch.nn.functional.cross_entropy(head(hidden), targets) * 3).backward()
    torch.testing.assert_close(got[0], hidden.grad)
    torch.testing.assert_close(got[1], head.weight.grad)


def test_step_size_schedules_at_their_corners() -> None:
    for schedule, end in (("cosine", 0.1), ("linear", 0.1), ("wsd", 0.1), ("constant", 1.0)):
        config = OptimConfig.model_validate(
            {"steps": 101, "warmup_steps": 10, "final_lr_share": 0.1, "schedule": schedule}
        )
        assert lr_share(config, 0) == pytest.approx(0.1)
        assert lr_share(config, 9) == lr_share(config, 10) == 1.0
        assert lr_share(config, 100) == pytest.approx(end)
    stable = OptimConfig(steps=101, warmup_steps=0, schedule="wsd", final_lr_share=0.0)
    assert lr_share(stable, 79) == 1.0 and lr_share(stable, 90) == pytest.approx(0.5)


def test_a_run_that_ends_inside_its_warm_up_is_told_how_far_it_comes() -> None:
    assert "50 of 200 updates of warm-up, at 25% of its peak" in unreached_peak(OptimConfig(steps=50, warmup_steps=200))
    assert unreached_peak(OptimConfig(steps=50, warmup_steps=50)) == "" != unreached_peak(OptimConfig(steps=49, warmup_steps=50))  # fmt: skip


def test_batches_cover_each_epoch_once_and_depend_on_the_step_only() -> None:
    order = RowOrder(10, 4, Runtime(seed=1))
    seen = np.concatenate([order.rows(s) for s in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert list(seen[:10]) != list(seen[10:])
    assert list(RowOrder(10, 4, Runtime(seed=1)).rows(3)) == list(seen[12:16])
    ranks = [RowOrder(10, 4, Runtime(seed=1, rank=r, world=2)) for r in range(2)]
    assert [list(o.rows(1)[o.part()]) for o in ranks] == [list(seen[4:6]), list(seen[6:8])]


def test_sample_weights_set_how_often_a_row_is_seen() -> None:
    weights = np.array([3, 1, 0, 0], np.float32)
    order = RowOrder(4, 4, Runtime(seed=1), weights)
    counts = np.bincount(np.concatenate([order.rows(s) for s in range(50)]), minlength=4)
    assert list(counts) == [150, 50, 0, 0]


def test_captions_of_rare_words_weigh_more() -> None:
    text = np.array([[1, 2, 0], [1, 2, 0], [1, 2, 0], [3, 0, 0]], np.uint16)
    weights = rarity_weights(text, 1.0)
    assert weights[0] == weights[1] == weights[2] < weights[3]
    assert weights.mean() == pytest.approx(1.0)
    # information of token 1 and of token 2: -ln(3/7); of token 3: -ln(1/7)
    assert weights[3] / weights[0] == pytest.approx(math.log(7) / math.log(7 / 3), rel=1e-5)
    assert (rarity_weights(text, 0.0) == 1).all()


def test_swapped_tokens_are_read_but_never_predicted() -> None:
    runtime, optim = Runtime(), optim_of()
    model = build_dalle(ModelConfig(dim=32, depth=1, heads=2), SHAPE, runtime.generator(1))
    batch = DalleObjective(model, token_rows(), TrainConfig(optim=optim, token_swap=0.5), runtime).batch(0)
    plain = DalleObjective(model, token_rows(), TrainConfig(optim=optim), runtime).batch(0)
    assert torch.equal(batch["image"], plain["image"]) and torch.equal(plain["read"], plain["image"])
    share = (batch["read"] != batch["image"]).float().mean().item()
    assert 0.2 < share < 0.6


def test_damaged_checkpoint_is_passed_over_loudly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = Checkpoints(tmp_path, keep=2)
    optim, runtime = optim_of(steps=3), Runtime()
    fit(dalle_objective(optim, runtime), optim, runtime, save=folder.save)
    assert [p.name for p in folder.paths()] == ["step-000000002.ckpt", "step-000000003.ckpt"]
    newest = folder.paths()[-1]
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged)
    state = folder.latest()
    assert state is not None and state.step == 2
    assert "step-000000003.ckpt is damaged" in caplog.text


def test_equal_states_have_equal_bytes() -> None:
    tensors = {f"t{i}": torch.arange(i + 1.0) for i in range(20)}
    first = TrainState(1, tensors, "d", 4, [{"loss": 0.1}]).to_bytes()
    assert first == TrainState(1, dict(reversed(tensors.items())), "d", 4, [{"loss": 0.1}]).to_bytes()


def test_bpe_dropout_reads_captions_in_other_pieces_at_each_step_and_the_same_at_a_repeat() -> None:
    captions = ["red apple red apple", "green apple", "red pear"] * 4
    words = CaptionTokenizer.from_json(train_bpe(captions, 300))
    text = pad_text([words.encode(c) for c in captions], SHAPE.max_text_tokens)
    rows = TokenRows(text, token_rows(12).image, np.ones(12, np.float32))
    runtime = Runtime(seed=3)
    config = TrainConfig(optim=optim_of(), condition_dropout=0.0, bpe_dropout=0.5)
    model = build_dalle(ModelConfig(dim=32, depth=1, heads=2), SHAPE, runtime.generator(1))
    objective = DalleObjective(model, rows, config, runtime, BpeDropout(words, captions, 0.5, runtime))
    first, again, later = objective.batch(0)["text"], objective.batch(0)["text"], objective.batch(3)["text"]
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    whole = DalleObjective(model, rows, config.model_copy(update={"bpe_dropout": 0.0}), runtime).batch(0)["text"]
    assert (first != 0).sum() > (whole != 0).sum()
    with pytest.raises(DataError, match="bpe_dropout"):
        DalleObjective(model, rows, config, runtime)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunked_cross_entropy_is_exact_for_targets_that_are_hopeless(dtype: torch.dtype) -> None:
    """Their probability is below what float32 holds; the loss is the gap of the logits all the same."""
    hidden = torch.eye(4).requires_grad_()
    head = (torch.eye(4) * 200).requires_grad_()
    targets = torch.tensor([1, 1, 2, 3])
    total = head_cross_entropy(hidden, head, targets, Runtime(dtype=dtype), chunk=2)
    assert float(total.detach()) == pytest.approx(200.0, rel=1e-6)
    total.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(head.grad, torch.tensor([[1.0, 0, 0, 0], [-1, 0, 0, 0], [0] * 4, [0] * 4]))
