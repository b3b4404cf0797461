"""Drawing: a picture belongs to its key, whatever is drawn beside it."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from dalle_model.config import ModelConfig, SamplerConfig, TokenizerConfig
from dalle_model.dalle import Dalle, DalleShape, build_dalle
from dalle_model.errors import DataError
from dalle_model.runtime import Runtime
from dalle_model.sampling import Request, draw, filter_logits, pick, picture_key
from dalle_model.tokenizers.base import to_bytes
from dalle_model.tokenizers.registry import build_tokenizer

SHAPE = DalleShape(text_vocab=40, max_text_tokens=6, image_vocab=64, grid=4)
SAMPLER = SamplerConfig(temperature=0.9, top_k=20, top_p=0.95, guidance=2.0)


def sharp_model() -> Dalle:
    model = build_dalle(ModelConfig(dim=32, depth=2, heads=2), SHAPE, Runtime().generator(0)).eval()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.2)
    return model


def requests(n: int) -> list[Request]:
    prompts = [tuple(1 + (i * 7 + j) % 39 for j in range(1 + i % 6)) for i in range(5)]
    return [Request(prompts[i % 5], picture_key("model", str(i % 5), 0, i)) for i in range(n)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sampler", [SAMPLER, SamplerConfig(temperature=0.0)])
def test_picture_is_the_same_alone_in_a_batch_of_37_and_in_another_order(
    dtype: torch.dtype, sampler: SamplerConfig
) -> None:
    model, runtime, all_requests = sharp_model(), Runtime(dtype=dtype), requests(37)
    together = draw(model, all_requests, sampler, runtime, batch_size=37)
    backwards = draw(model, all_requests[::-1], sampler, runtime, batch_size=37)[::-1]
    assert np.array_equal(together, backwards)
    small = draw(model, all_requests, sampler, runtime, batch_size=8)
    decoder = build_tokenizer(TokenizerConfig(image_px=32, fsq_levels=(8, 8), width=8), Runtime().generator(2))
    for i in (0, 17, 36):
        alone = draw(model, [all_requests[i]], sampler, runtime, batch_size=8)
        pngs = []
        for tokens in (alone[0], small[i]):
            picture = to_bytes(decoder.decode(torch.from_numpy(tokens[None].astype(np.int64))))[0]
            file = io.BytesIO()
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, "PNG")
            pngs.append(file.getvalue())
        assert pngs[0] == pngs[1]


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


def test_draws_equal_an_uncached_reference() -> None:
    """The reference recomputes the whole prefix for every token and takes the most probable one, with guidance."""
    model, runtime = sharp_model(), Runtime()
    prompt = (3, 1, 4)
    got = draw(model, [Request(prompt, "k")], SamplerConfig(temperature=0.0, guidance=1.5), runtime, batch_size=2)[0]
    text = torch.zeros(2, 6, dtype=torch.long)
    text[0, :3] = torch.tensor(prompt)
    image = torch.zeros(2, 16, dtype=torch.long)
    with torch.no_grad():
        for place in range(16):
            logits = model.image_logits(model(text, image))[:, place]
            image[:, place] = (logits[1] + 1.5 * (logits[0] - logits[1])).argmax()
    assert got.tolist() == image[0].tolist()


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
