"""What must hold for every input, not just for chosen ones."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_model.captions import CaptionTokenizer, train_bpe
from dalle_model.config import OptimConfig, SamplerConfig, TokenizerConfig
from dalle_model.filters import filter_logits
from dalle_model.optim import lr_share
from dalle_model.records import normalise_caption
from dalle_model.runtime import Runtime
from dalle_model.token_batches import RowOrder, pad_text
from dalle_model.tokenizers.base import to_bytes, to_unit
from dalle_model.tokenizers.dvae import map_pixels, unmap_pixels
from dalle_model.tokenizers.fsq import FsqTokenizer

WORDS = CaptionTokenizer.from_json(train_bpe(["woman pilot: dark skin tone", "flag: Italy", "red heart"] * 3, 320))
quick = settings(max_examples=60)


@quick
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20))
def test_pixel_map_has_an_inverse(values: list[float]) -> None:
    x = torch.tensor(values)
    torch.testing.assert_close(unmap_pixels(map_pixels(x)), x, rtol=1e-5, atol=1e-6)
    assert float(map_pixels(x).min()) + 1e-6 >= 0.1 and float(map_pixels(x).max()) <= 0.9 + 1e-6


@quick
@given(st.lists(st.integers(0, 255), min_size=1, max_size=20))
def test_bytes_survive_the_way_through_floats(values: list[int]) -> None:
    x = torch.tensor(values, dtype=torch.uint8)
    assert torch.equal(to_bytes(to_unit(x)), x)


@quick
@given(st.text(max_size=40))
def test_every_text_comes_back_normalised_and_lower_cased(text: str) -> None:
    plain = normalise_caption(text).lower()
    # lower-casing may leave decomposed letters; the tokenizer composes first, so compare after both
    assert normalise_caption(WORDS.decode(WORDS.encode(text))) == normalise_caption(plain)
    assert all(0 < i < WORDS.vocab_size for i in WORDS.encode(text))


@quick
@given(st.lists(st.integers(2, 8), min_size=1, max_size=4), st.integers(0, 10**6))
def test_every_code_has_its_own_lattice_point(levels: list[int], seed: int) -> None:
    config = TokenizerConfig(
        kind="fsq", image_px=8, downsampling=4, fsq_levels=tuple(levels), width=4, blocks_per_group=1
    )
    tokenizer = FsqTokenizer(config)
    ids = torch.randint(0, config.vocab_size, (3, 4), generator=torch.Generator().manual_seed(seed))
    points = tokenizer.coordinates_of(ids)
    assert torch.equal(tokenizer.ids_of(points), ids)
    assert (points <= torch.tensor(levels).view(1, -1, 1, 1) - 1).all() and (points >= 0).all()


@quick
@given(
    st.integers(1, 40),
    st.integers(1, 20),
    st.integers(1, 4),
    st.integers(0, 99),
    st.integers(0, 50),
)
def test_ranks_share_each_batch_and_epochs_hold_each_row_once(
    rows: int, per_rank: int, world: int, seed: int, step: int
) -> None:
    batch = per_rank * world
    parts = []
    for rank in range(world):
        order = RowOrder(rows, batch, Runtime(seed=seed, rank=rank, world=world))
        parts.append(order.rows(step)[order.part()])
    whole = RowOrder(rows, batch, Runtime(seed=seed))
    assert np.array_equal(np.concatenate(parts), whole.rows(step))
    assert sorted(whole.epoch(step)) == list(range(rows))


@quick
@given(
    st.integers(1, 400),
    st.integers(0, 60),
    st.sampled_from(["constant", "cosine", "linear", "wsd", "halving"]),
    st.floats(0, 1),
)
def test_step_size_stays_between_zero_and_its_peak(steps: int, warmup: int, schedule: str, final: float) -> None:
    config = OptimConfig.model_validate(
        {"steps": steps, "warmup_steps": warmup, "schedule": schedule, "final_lr_share": final}
    )
    shares = [lr_share(config, s) for s in range(steps)]
    assert all(0 <= s <= 1 for s in shares)
    after = shares[warmup:]
    assert after == sorted(after, reverse=True)


@quick
@given(st.integers(0, 9), st.floats(0.05, 1), st.floats(0.1, 5), st.integers(0, 10**6))
def test_filters_keep_the_best_token_and_never_add_one(top_k: int, top_p: float, temperature: float, seed: int) -> None:
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(seed))
    kept = torch.isfinite(filter_logits(logits, SamplerConfig(temperature=temperature, top_k=top_k, top_p=top_p)))
    assert kept.gather(1, logits.argmax(1, keepdim=True)).all()
    if top_k:
        assert (kept.sum(1) <= top_k).all()
    least = logits.masked_fill(~kept, float("inf")).amin(1, keepdim=True)
    assert torch.equal(kept, logits >= least)  # what is kept is a top set


@quick
@given(st.lists(st.lists(st.integers(1, 65000), max_size=12), min_size=1, max_size=5), st.integers(1, 10))
def test_padding_cuts_and_fills_with_zero(texts: list[list[int]], length: int) -> None:
    padded = pad_text(texts, length)
    for row, text in zip(padded, texts, strict=True):
        assert [int(t) for t in row if t] == text[:length]


def test_runtime_streams_are_unrelated() -> None:
    draws = {
        tuple(Runtime(seed=s).generator(a, b).get_state()[:40].tolist()) for s in (0, 1) for a in (0, 1) for b in (0, 1)
    }
    assert len(draws) == 8
    first = torch.rand(4000, generator=Runtime().generator(7, 1))
    second = torch.rand(4000, generator=Runtime().generator(7, 2))
    assert float(torch.corrcoef(torch.stack([first, second]))[0, 1]) == pytest.approx(0.0, abs=0.06)
