"""What a preset costs: counted from shapes, and the same as what the networks do."""

import re

import pytest
import torch
from support.commands import dalle
from torch.utils.flop_counter import FlopCounterMode

from dalle_model.config import ModelConfig, OptimConfig
from dalle_model.cost import build_on_meta, cost_of, forward_flops, visible_pairs
from dalle_model.dalle import Dalle, DalleShape
from dalle_model.optim import lr_share
from flows.large_presets import LARGE_PRESETS
from flows.presets import quickstart


@pytest.mark.parametrize("name", LARGE_PRESETS)
def test_docstrings_tell_the_true_number_of_parameters(name: str) -> None:
    config = LARGE_PRESETS[name]()
    told = re.search(r"([\d,]+) parameters in the transformer", LARGE_PRESETS[name].__doc__ or "")
    cost = cost_of(config.fit, config.tokenizer, config.encode)
    assert told is not None and int(told[1].replace(",", "")) == cost.parameters
    assert "Not run." in (LARGE_PRESETS[name].__doc__ or "")


def test_the_twelve_billion_are_the_papers() -> None:
    """64 layers of width 3968: 12 d² weights a layer in the trunk; the dVAE has 53.8 and 43.8 million."""
    config = LARGE_PRESETS["dalle-12b"]()
    one, many = (cost_of(config.fit, config.tokenizer, config.encode, n) for n in (1, 256))
    assert one.parameters == pytest.approx(12 * 64 * 3968**2, rel=0.02)
    assert one.tokenizer_parameters == pytest.approx(97.6e6, rel=0.01)
    assert one.sequence == 1280 and config.fit.model.dim // config.fit.model.heads == 64
    assert one.state_bytes == one.parameters * 4 * 5  # weights, gradients, two moments, average in float32
    assert many.state_bytes < one.state_bytes / 20 and many.train_flops == one.train_flops
    # twice the weights for each of 1,280 positions, and attention's small share
    assert one.draw_flops_per_image == pytest.approx(2 * 12.1e9 * 1280, rel=0.03)


@pytest.mark.parametrize("mode", ["modern", "paper"])
def test_flops_are_those_of_the_forward_pass(mode: str) -> None:
    shape = DalleShape(text_vocab=50, max_text_tokens=7, image_vocab=64, grid=4)
    model = Dalle(ModelConfig.model_validate({"dim": 32, "depth": 4, "heads": 2, "mode": mode}), shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        hidden = model(torch.zeros(1, 7, dtype=torch.long), torch.zeros(1, 16, dtype=torch.long))
        model.text_logits(hidden)
        model.image_logits(hidden)
    dense = 4 * 32 * 23**2 * 4  # the small model computes the whole square of scores; the count takes what is admitted
    admitted = sum(4 * 32 * pairs for pairs in visible_pairs(model))
    assert forward_flops(model) - admitted + dense == counter.get_total_flops()
    assert admitted < dense


def test_guidance_and_checkpointing_cost_what_they_do() -> None:
    config = quickstart()
    plain = config.fit.model_copy(update={"sampler": config.fit.sampler.model_copy(update={"guidance": 1.0})})
    guided, alone = (cost_of(fit, config.tokenizer, config.encode) for fit in (config.fit, plain))
    assert guided.draw_flops_per_image == 2 * alone.draw_flops_per_image
    optim = config.fit.train.optim.model_copy(update={"activation_checkpointing": True})
    kept = config.fit.model_copy(update={"train": config.fit.train.model_copy(update={"optim": optim})})
    again = cost_of(kept, config.tokenizer, config.encode)
    assert again.activation_bytes < guided.activation_bytes / 3
    assert again.train_flops == guided.train_flops * 4 / 3
    built = build_on_meta(config.fit, DalleShape(text_vocab=9, max_text_tokens=4, image_vocab=9, grid=2))
    assert {p.device.type for p in built.parameters()} == {"meta"}


def test_command_prices_the_paper_without_memory() -> None:
    said = dalle("cost", "dalle-12b", "--gpus", "256")
    assert said.code == 0 and "12,291,804,544 in the transformer" in said.out and "per picture drawn" in said.out
    payload = dalle("cost", "dalle-12b", "--gpus", "8", "--set", "train.micro_batch_size=1", "--json").payload
    assert payload["gpus"] == 8 and payload["rows_per_pass"] == 1
    assert payload["training_bytes_per_gpu"] == payload["state_bytes"] + payload["activation_bytes"]


def test_halving_ends_at_a_thirty_second_after_five_halvings() -> None:
    config = OptimConfig(steps=610, warmup_steps=10, schedule="halving")
    shares = [lr_share(config, step) for step in range(10, 610)]
    assert sorted(set(shares), reverse=True) == [0.5**n for n in range(6)] and shares[-1] == 1 / 32
    assert all(shares.count(0.5**n) == pytest.approx(100, abs=2) for n in range(6))
