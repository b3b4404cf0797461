"""Several tokens of a picture from one pass: the same picture, to the bit, as token by token."""

from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dalle_model.config import ModelConfig, SamplerConfig
from dalle_model.dalle import Dalle, DalleShape, build_dalle
from dalle_model.decoder import Decoder
from dalle_model.eager_steps import EagerSteps
from dalle_model.lookahead import Lookahead, Pace
from dalle_model.runtime import Runtime
from dalle_model.sampling import MOST_AHEAD, Request, draw_with

SHAPE = DalleShape(text_vocab=40, max_text_tokens=6, image_vocab=64, grid=4)
SAMPLERS = [
    SamplerConfig(),
    SamplerConfig(temperature=0.0),
    SamplerConfig(temperature=0.9, top_k=20, top_p=0.95, guidance=2.0),
    SamplerConfig(temperature=0.9, min_p=0.01, guidance=3.0, guidance_from=3, guidance_to=9),
    SamplerConfig(temperature=0.5, top_k=5, guidance=1.5, guidance_to=6),
]


def fresh(mode: Literal["modern", "paper"] = "modern", shake: float = 0.2) -> Dalle:
    model = build_dalle(ModelConfig(dim=32, depth=2, heads=2, mode=mode), SHAPE, Runtime().generator(0))
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * shake)
    return model


@pytest.fixture(scope="module")
def trained() -> Dalle:
    """A model that knows a few striped pictures well, and is not sure of everything in them."""
    model = fresh(shake=0.02).train()
    dice = torch.Generator().manual_seed(1)
    stripes = torch.randint(8, (6, 4), generator=dice)
    optim = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        kinds = torch.randint(6, (16,), generator=dice)
        image = stripes[kinds].repeat_interleave(4, 1)
        image = torch.where(torch.rand(image.shape, generator=dice) < 0.1, (image + 9) % 64, image)
        text = F.pad(kinds[:, None] + 1, (0, 5))
        loss = F.cross_entropy(model.image_logits(model(text, image)).flatten(0, 1), image.flatten())
        optim.zero_grad()
        loss.backward()
        optim.step()
    assert loss.item() < 1.0  # ln 64 = 4.2 is what nothing learnt gives
    return model.eval()


def at_width(decoder: Decoder, queries: int) -> None:
    """Let every pass read ``queries`` places, the rows of guidance counted: all else is told to be slow."""
    decoder.costs_s = {size: 1e-9 if size == queries else 1e9 for size in decoder.sizes}


def compared(decoder: Decoder, sampler: SamplerConfig, seeds: int) -> None:
    """Pictures drawn alone and a few at once, which look ahead, and the same ones in a crowd, which go token by token."""
    asked = [Request((1 + i % 6,), str(i), given=(3,) * (i % 3) if i % 4 else ()) for i in range(seeds)]
    alone = draw_with(decoder, asked, sampler, batch_size=1)
    few = [Request((1 + i % 6,), str(i)) for i in range(MOST_AHEAD)]
    crowd = draw_with(decoder, few * 2, sampler)
    assert np.array_equal(
        np.concatenate([draw_with(decoder, [r] * (MOST_AHEAD + 1), sampler)[:1] for r in asked]), alone
    )
    assert np.array_equal(draw_with(decoder, few, sampler), crowd[:MOST_AHEAD])
    assert np.array_equal(draw_with(decoder, few[:2], sampler), crowd[:2])


@pytest.mark.parametrize("steps", [None, EagerSteps])
@pytest.mark.parametrize(
    ("mode", "kind"), [("modern", "full"), ("modern", "half"), ("modern", "int8"), ("paper", "full")]
)
def test_a_picture_is_the_same_at_every_width(
    mode: Literal["modern", "paper"], kind: str, steps: type[EagerSteps] | None
) -> None:
    decoder = Decoder(fresh(mode).eval(), Runtime(), kind, steps=steps)
    assert decoder.looks_ahead
    for number, sampler in enumerate(SAMPLERS):
        at_width(decoder, decoder.sizes[number % (len(decoder.sizes) - 1)])
        compared(decoder, sampler, seeds=2)


@pytest.mark.parametrize("kind", ["full", "half", "int8"])
def test_a_trained_model_draws_the_same_pictures_in_fewer_passes(trained: Dalle, kind: str) -> None:
    decoder = Decoder(trained, Runtime(), kind)
    at_width(decoder, 8)
    for sampler in SAMPLERS[::2]:
        compared(decoder, sampler, seeds=3)
    tokens = torch.zeros(1, 16, dtype=torch.long)
    ahead = Lookahead(decoder, SamplerConfig(temperature=0.0), tokens, lambda *_: None)
    decoder.forget()
    ahead.decide(decoder.read([((2,), ())]), 0, 16)
    assert ahead.passes <= 11  # token by token it would be 15
    assert tokens.tolist() == draw_with(decoder, [Request((2,), "")], SamplerConfig(temperature=0.0)).tolist()


def test_pictures_at_work_together_take_fewer_passes_than_one_after_the_other(trained: Dalle) -> None:
    decoder, sampler = Decoder(trained, Runtime()), SamplerConfig(temperature=0.0)
    at_width(decoder, 16)
    tokens = torch.zeros(3, 16, dtype=torch.long)
    ahead = Lookahead(decoder, sampler, tokens, lambda *_: None)
    decoder.forget()
    ahead.decide(decoder.read([((kind,), ()) for kind in (2, 3, 5)]), 0, 16)
    assert ahead.passes <= 13  # each passes as often as it needs, and the one that is done waits for nobody
    one_by_one = [draw_with(decoder, [Request((kind,), "")], sampler)[0].tolist() for kind in (2, 3, 5)]
    assert tokens.tolist() == one_by_one


def test_guessing_begins_again_where_guesses_would_be_right(trained: Dalle) -> None:
    """Passes read one place after a bad beginning; a guess now and then, of no effect, tells that more would pay."""
    decoder, greedy = Decoder(trained, Runtime()), SamplerConfig(temperature=0.0)
    decoder.costs_s = {size: 1.0 + 0.01 * size for size in decoder.sizes}
    tokens = torch.zeros(1, 16, dtype=torch.long)
    ahead = Lookahead(decoder, greedy, tokens, lambda *_: None)
    ahead.pace.right = 0.0
    decoder.forget()
    ahead.decide(decoder.read([((2,), ())]), 0, 16)
    assert 3 < ahead.passes < 15  # which it would be
    assert tokens.tolist() == draw_with(decoder, [Request((2,), "")], greedy).tolist()


def test_the_pace_follows_the_share_of_right_guesses_and_what_passes_cost() -> None:
    flat, steep = Pace({1: 1.0, 4: 1.1, 16: 1.5}), Pace({1: 1.0, 4: 4.0, 16: 16.0})
    assert steep.width(1) == 1  # guessing costs as much as drawing
    assert flat.width(1) == 4 and flat.width(2) == 8  # two rows a place: a step of 16 reads 8 places
    for _ in range(20):
        flat.saw(15, wrong=False)
    assert flat.width(1) == 16
    for _ in range(200):
        flat.saw(0, wrong=True)
    assert flat.width(1) == 1


def test_the_cost_of_a_pass_is_the_least_of_those_measured_in_turns() -> None:
    """By a clock that counts its readings, and that other work stops in the first turn of every size."""
    readings, now = 0, 0.0

    def clock() -> float:
        nonlocal readings, now
        readings += 1
        now += 1000.0 if readings <= 2 * 5 else 1.0
        return now

    decoder = Decoder(fresh().eval(), Runtime(), rows=16, clock=clock)
    assert readings == 3 * 2 * len(decoder.sizes)  # three turns, a start and an end each
    assert decoder.costs_s == dict.fromkeys(decoder.sizes, 1.0)


def test_a_disturbed_measurement_does_not_count() -> None:
    """A step of 4 took longer than one of 16: something else ran meanwhile, and a step of 4 costs at most as much."""
    pace = Pace({4: 9.0, 16: 1.0}, right=0.3)
    assert pace.costs_s[4] == 1.0
