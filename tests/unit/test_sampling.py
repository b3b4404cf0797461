"""Drawing: a picture belongs to its key, whatever is drawn beside it."""

import io
import math
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dalle_model.config import ModelConfig, SamplerConfig, TokenizerConfig
from dalle_model.dalle import Dalle, DalleShape, build_dalle
from dalle_model.decoder import Decoder
from dalle_model.errors import DataError, UsageError
from dalle_model.filters import filter_logits, pick
from dalle_model.runtime import Runtime
from dalle_model.sampling import Request, draw, draw_with, picture_key, picture_noise
from dalle_model.tokenizers.base import to_bytes
from dalle_model.tokenizers.registry import build_tokenizer

SHAPE = DalleShape(text_vocab=40, max_text_tokens=6, image_vocab=64, grid=4)
SAMPLER = SamplerConfig(temperature=0.9, top_k=20, top_p=0.95, guidance=2.0)


def sharp_model(mode: Literal["modern", "paper"] = "modern") -> Dalle:
    config = ModelConfig(dim=32, depth=2, heads=2, mode=mode)
    model = build_dalle(config, SHAPE, Runtime().generator(0)).eval()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.2)
    return model


def requests(n: int) -> list[Request]:
    prompts = [tuple(1 + (i * 7 + j) % 39 for j in range(1 + i % 6)) for i in range(5)]
    return [Request(prompts[i % 5], picture_key("model", str(i % 5), 0, i)) for i in range(n)]


def pngs(tokens: np.ndarray) -> list[bytes]:  # type: ignore[type-arg]
    decoder = build_tokenizer(TokenizerConfig(image_px=32, fsq_levels=(8, 8), width=8), Runtime().generator(2))
    files = []
    for row in tokens:
        picture = to_bytes(decoder.decode(torch.from_numpy(row[None].astype(np.int64))))[0]
        files.append(io.BytesIO())
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(files[-1], "PNG")
    return [f.getvalue() for f in files]


INTERVAL = SamplerConfig(temperature=0.9, min_p=0.01, guidance=3.0, guidance_from=3, guidance_to=9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "sampler", [SAMPLER, SamplerConfig(temperature=0.0), INTERVAL, SamplerConfig(weights="int8", top_p=0.9)]
)
def test_a_picture_is_the_same_alone_and_in_batches_of_any_size_and_order(
    dtype: torch.dtype, sampler: SamplerConfig
) -> None:
    """PNG bytes: in one batch of 37, backwards in batches of 5, alone, and by another decoder after the first is gone."""
    model, runtime, all_requests = sharp_model(), Runtime(dtype=dtype), requests(37)
    together = draw(model, all_requests, sampler, runtime, batch_size=37)
    backwards = draw(model, all_requests[::-1], sampler, runtime, batch_size=5)[::-1]
    assert np.array_equal(together, backwards)
    chosen = [0, 17, 36]
    alone = np.concatenate([draw(model, [all_requests[i]], sampler, runtime) for i in chosen])
    assert pngs(alone) == pngs(together[chosen])


def test_rows_of_a_decoder_survive_waves_that_start_elsewhere() -> None:
    """Prompts held from an earlier wave are used again, but never one whose rows were overwritten meanwhile."""
    model, runtime = sharp_model(), Runtime()
    decoder = Decoder(model, runtime, rows=4)
    half = tuple(range(8))
    mixed = [Request((1, 2), "a"), Request((1, 2), "b", given=half), Request((3,), "c"), Request((1, 2), "d")]
    for sampler in (INTERVAL, SAMPLER, INTERVAL):
        got = draw_with(decoder, mixed, sampler)
        alone = [draw(model, [r], sampler, runtime)[0] for r in mixed]
        assert np.array_equal(got, np.stack(alone))
    assert got[1, :8].tolist() == list(half)


def test_keys_prompts_and_seeds_draw_different_pictures() -> None:
    model = sharp_model()
    keys = [
        picture_key("m", "p", 0, 0),
        picture_key("m", "p", 0, 1),
        picture_key("m", "p", 1, 0),
        picture_key("n", "p", 0, 0),
    ]
    rows = draw(model, [Request((1, 2), k) for k in keys], SamplerConfig(), Runtime())
    assert len({r.tobytes() for r in rows}) == 4


@pytest.mark.parametrize("mode", ["modern", "paper"])
@pytest.mark.parametrize(
    "sampler",
    [
        SamplerConfig(temperature=0.0, guidance=1.5),
        SamplerConfig(temperature=0.9, top_k=20, guidance=2.0, guidance_from=4, guidance_to=10),
        SamplerConfig(temperature=0.7, top_p=0.8),
    ],
)
def test_draws_equal_an_uncached_reference(mode: Literal["modern", "paper"], sampler: SamplerConfig) -> None:
    """The reference reads the whole sequence anew for every token, and knows neither cache nor packed weights.

    The picture begins with two given tokens, and guidance leads away from a negative prompt.
    """
    model, prompt, negative, begun = sharp_model(mode), (3, 1, 4), (9, 2), (5, 60)
    guided = sampler.guidance != 1.0
    asked = Request(prompt, "k", begun, negative if guided else ())
    got = draw(model, [asked], sampler, Runtime())[0]
    text = torch.zeros(2, 6, dtype=torch.long)
    text[0, :3], text[1, :2] = torch.tensor(prompt), torch.tensor(negative)
    image = torch.zeros(2, 16, dtype=torch.long)
    image[:, :2] = torch.tensor(begun)
    noise = torch.from_numpy(picture_noise("k", 64, 16))
    with torch.no_grad():
        for place in range(2, 16):
            logits = model.image_logits(model(text, image))[:, place]
            on = guided and sampler.guidance_from <= place < (sampler.guidance_to or 16)
            shown = logits[1] + sampler.guidance * (logits[0] - logits[1]) if on else logits[0]
            if sampler.temperature:
                shown = torch.from_numpy(plainly_filtered(shown.numpy(), sampler)) + noise[place]
            image[:, place] = shown.argmax()
    assert got.tolist() == image[0].tolist()


def test_negative_prompt_without_guidance_is_refused() -> None:
    with pytest.raises(UsageError, match=r"guidance, which is 1"):
        draw(sharp_model(), [Request((1,), "k", negative_ids=(2,))], SamplerConfig(), Runtime())


def test_guidance_with_a_decoder_of_one_row_is_refused_and_two_rows_are_enough() -> None:
    request, guided = Request((1, 2), "k"), SamplerConfig(guidance=2.0)
    with pytest.raises(UsageError, match="this decoder has 1"):
        draw_with(Decoder(sharp_model(), Runtime(), rows=1), [request], guided)
    least, most = (draw_with(Decoder(sharp_model(), Runtime(), rows=n), [request], guided) for n in (2, 8))
    assert (least == most).all()


def test_guidance_that_begins_behind_the_last_token_is_refused_and_one_for_that_token_is_not() -> None:
    with pytest.raises(UsageError, match=r"guidance_from 16 is behind the 16 image tokens .* below 16"):
        draw(sharp_model(), requests(1), SamplerConfig(guidance=2.0, guidance_from=16), Runtime())
    assert draw(sharp_model(), requests(1), SamplerConfig(guidance_from=16), Runtime()).shape == (1, 16)
    assert draw(sharp_model(), requests(1), SamplerConfig(guidance=2.0, guidance_from=15), Runtime()).shape == (1, 16)


def test_a_whole_picture_cannot_be_given() -> None:
    with pytest.raises(DataError, match="16 image tokens are given"):
        draw(sharp_model(), [Request((1,), "k", given=(0,) * 16)], SamplerConfig(), Runtime())


def test_weights_that_give_no_finite_logits_are_reported() -> None:
    model = sharp_model()
    with torch.no_grad():
        model.norm_out.gain[0] = torch.nan
    with pytest.raises(DataError, match="not finite"):
        draw(model, requests(1), SAMPLER, Runtime())


def plainly_filtered(logits: np.ndarray, sampler: SamplerConfig) -> np.ndarray:  # type: ignore[type-arg]
    """What ``filter_logits`` promises for one row, a token at a time in float64."""
    scaled = logits.astype(np.float64) / sampler.temperature
    border = sorted(scaled)[-sampler.top_k] if 0 < sampler.top_k < len(scaled) else -math.inf
    kept = {i for i in range(len(scaled)) if scaled[i] >= border}
    chance = {i: math.exp(scaled[i] - scaled.max()) for i in kept}
    total, before, least = sum(chance.values()), 0.0, math.inf
    for i in sorted(kept, key=lambda i: -scaled[i]):
        if before / total >= sampler.top_p:
            break
        before, least = before + chance[i], scaled[i]
    if sampler.top_p < 1.0:
        kept = {i for i in kept if scaled[i] >= least}
    kept = {i for i in kept if chance[i] >= sampler.min_p}  # the best token's is 1
    return np.array([scaled[i] if i in kept else -math.inf for i in range(len(scaled))], dtype=np.float32)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([3, 64, 1500]),
    spread=st.sampled_from([0.01, 1.0, 8.0]),
    coarse=st.booleans(),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.integers(0, 70),
    top_p=st.floats(0.05, 1.0),
    min_p=st.sampled_from([0.0, 0.03, 0.5]),
)
def test_filters_equal_a_plain_reference(
    seed: int, size: int, spread: float, coarse: bool, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """``coarse`` logits tie, as those of bfloat16 do. Tokens at the very border of top-p or min-p are left out."""
    sampler = SamplerConfig(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = (np.random.default_rng(seed).standard_normal((2, size)) * spread).astype(np.float32)
    if coarse:
        logits = np.round(logits * 2) / 2
    got = filter_logits(torch.from_numpy(logits), sampler).numpy()
    near = [sampler.model_copy(update={"top_p": min(1.0, top_p * f), "min_p": min_p * g}) for f, g in _NEAR]
    for row, out in zip(logits, got, strict=True):
        wanted = [np.isfinite(plainly_filtered(row, s)) for s in near]
        sure = np.all([w == wanted[0] for w in wanted], axis=0)
        assert np.array_equal(np.isfinite(out)[sure], wanted[0][sure])
        assert np.allclose(out[np.isfinite(out)], (row / temperature)[np.isfinite(out)], rtol=1e-6)


_NEAR = [(1.0, 1.0), (1 + 1e-4, 1.0), (1 - 1e-4, 1.0), (1.0, 1 + 1e-4), (1.0, 1 - 1e-4)]


def test_noise_draws_from_the_softmax() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2, 1e-9]])).expand(20_000, -1)
    torch.manual_seed(0)
    noise = -torch.log(-torch.log(torch.rand_like(logits)))
    counts = torch.bincount(pick(logits, noise, SamplerConfig()), minlength=4) / len(logits)
    assert counts.tolist() == pytest.approx([0.5, 0.3, 0.2, 0.0], abs=0.02)


def test_top_k_and_top_p_keep_the_most_probable() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.4, 0.3, 0.2]]))
    kept = lambda **s: torch.isfinite(filter_logits(logits, SamplerConfig.model_validate(s))).tolist()[0]  # noqa: E731
    assert kept(top_k=2) == [False, True, True, False]
    assert kept(top_p=0.69) == [False, True, True, False]
    assert kept(top_p=0.71) == [False, True, True, True]
    assert kept(top_p=0.01) == [False, True, False, False]
    assert kept(min_p=0.6) == [False, True, True, False]
    assert kept(min_p=0.24) == [True] * 4
    assert kept() == [True] * 4


def test_low_temperature_sharpens() -> None:
    logits = torch.log(torch.tensor([[0.2, 0.8]]))
    sharp = filter_logits(logits, SamplerConfig(temperature=0.5)).softmax(-1)
    assert sharp[0, 1].item() == pytest.approx(0.64 / 0.68)


def test_too_long_prompt_is_refused_with_both_numbers() -> None:
    with pytest.raises(DataError, match=r"7 tokens, the model reads 6"):
        draw(sharp_model(), [Request((1,) * 7, "k")], SAMPLER, Runtime())


def test_no_requests_give_no_rows() -> None:
    assert draw(sharp_model(), [], SAMPLER, Runtime()).shape == (0, 16)


def test_progress_counts_pictures() -> None:
    seen: list[tuple[int, int]] = []
    draw(
        sharp_model(),
        requests(5),
        SamplerConfig(temperature=0.0),
        Runtime(),
        batch_size=2,
        progress=lambda a, b: seen.append((a, b)),
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_noise_of_a_place_does_not_depend_on_where_drawing_began() -> None:
    whole = picture_noise("k", 13, 6)
    assert np.array_equal(picture_noise("k", 13, 2, first=4), whole[4:])
    assert whole.shape == (6, 13) and len(np.unique(whole)) == whole.size
