"""Bits per pixel of the whole chain: masses sum to one, better knowledge costs fewer bits, rows do not disturb each other."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import tasks.evaluate
from dalle_model.config import EvaluateConfig, ModelConfig, TokenizerConfig
from dalle_model.dalle import DalleShape, build_dalle
from dalle_model.images import to_float
from dalle_model.likelihood import SCALES, PixelLikelihood, bits, logit_laplace_masses, sequence_nats
from dalle_model.objectives import validation_losses
from dalle_model.runtime import Runtime
from dalle_model.scenes import render, scene_at
from dalle_model.token_batches import TokenRows
from dalle_model.tokenizers.registry import build_tokenizer
from tasks.drawn import Stopwatch
from tasks.findings import Findings

PX = 16
PICTURES = np.stack([render(scene_at(3, index).things, PX) for index in range(24)])


@pytest.mark.parametrize(("mu", "b"), [(0.0, 1.0), (3.0, 0.1), (-8.0, 0.01), (0.4, 30.0), (60.0, 0.05)])
def test_the_masses_of_the_256_values_sum_to_one(mu: float, b: float) -> None:
    values = torch.arange(256, dtype=torch.float64)
    masses = logit_laplace_masses(values, torch.full_like(values, mu), torch.full_like(values, b))
    assert masses.sum().item() == pytest.approx(1.0, abs=1e-12) and (masses >= 0).all()


def tokenizer_of(kind: str):
    torch.manual_seed(0)
    config = TokenizerConfig(kind=kind, image_px=PX, downsampling=4, fsq_levels=(8, 8), num_codes=64, width=8, blocks_per_group=1)  # fmt: skip
    return build_tokenizer(config).eval()


def likelihood(kind: str, fitted=PICTURES):
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode(to_float(fitted)).numpy().astype(np.uint16)
    return PixelLikelihood(tokenizer, fitted, ids, Runtime()), ids


@pytest.mark.parametrize("kind", ["fsq", "dvae"])
def test_a_picture_costs_what_its_pixels_cost_alone_and_never_endless_bits(kind: str) -> None:
    pixels, ids = likelihood(kind)
    together = pixels.nats(PICTURES, ids)
    assert together[5] == pytest.approx(pixels.nats(PICTURES[5:6], ids[5:6])[0], rel=1e-6)
    worst = pixels.nats(255 - PICTURES, ids)
    assert np.isfinite(worst).all() and (worst <= 3 * PX**2 * math.log(256 / 1e-4)).all()
    # Every value of one pixel in turn: a mass, so that figures of two tokenizers compare.
    all_values = np.repeat(PICTURES[:1], 256, axis=0)
    all_values[:, 3, 4, 1] = np.arange(256)
    nats = pixels.nats(all_values, np.repeat(ids[:1], 256, axis=0))
    rest = nats - nats.min()
    own = -np.log(np.exp(-rest) / np.exp(-rest).sum())
    assert np.exp(-(nats - nats[0] + own[0])).sum() == pytest.approx(1.0, rel=1e-6)


def test_a_dvae_of_the_squared_error_is_judged_by_a_fitted_density_as_its_own_was_not_trained() -> None:
    tokenizer = tokenizer_of("dvae")
    tokenizer.config = tokenizer.config.model_copy(update={"likelihood": "normal"})
    ids = tokenizer.encode(to_float(PICTURES)).numpy().astype(np.uint16)
    fitted = PixelLikelihood(tokenizer, PICTURES, ids, Runtime())
    before = fitted.nats(PICTURES, ids)
    with torch.no_grad():
        tokenizer.decoder.output.bias[3:] += 1  # ln b
    assert np.array_equal(fitted.nats(PICTURES, ids), before)
    assert (fitted.name, likelihood("dvae")[0].name) == ("fitted Laplace mixture", "logit-Laplace of the decoder")


def test_noise_costs_all_its_bits_and_known_pictures_fewer() -> None:
    noise = np.random.default_rng(0).integers(0, 256, PICTURES.shape, dtype=np.uint8)
    pixels, ids = likelihood("fsq", noise)
    assert 23.9 < bits(pixels.nats(noise, ids), PX).mean() < 24.1, "24 bits: nothing can be known of noise"
    plain, ids = likelihood("fsq")
    assert bits(plain.nats(PICTURES, ids), PX).mean() < 20
    assert plain.weights.shape == (3, len(SCALES) + 1) and plain.weights.sum(1) == pytest.approx([1, 1, 1])


def test_nats_by_row_are_those_of_validation_and_do_not_depend_on_the_rows_beside() -> None:
    shape = DalleShape(text_vocab=300, max_text_tokens=6, image_vocab=64, grid=4)
    model = build_dalle(ModelConfig(dim=32, depth=1, heads=2), shape, Runtime().generator(1))
    torch.nn.init.normal_(model.image_head.weight, std=0.3)
    torch.nn.init.normal_(model.text_head.weight, std=0.3)
    rng = np.random.default_rng(0)
    text = rng.integers(1, 300, (70, 6)).astype(np.uint16)
    text[::2, 3:] = 0
    rows = TokenRows(text, rng.integers(0, 64, (70, 16)).astype(np.uint16), np.ones(70, np.float32))
    of_text, of_image = sequence_nats(model, rows, Runtime())
    per_text, per_image = validation_losses(model, rows, Runtime())
    counted = np.minimum((text > 0).sum(1) + 1, 6).sum()
    assert of_text.sum() / counted == pytest.approx(per_text, rel=1e-5)
    assert of_image.mean() / 16 == pytest.approx(per_image, rel=1e-5)
    one = TokenRows(text[3:4], rows.image[3:4], rows.weights[3:4])
    alone = sequence_nats(model, one, Runtime())
    assert (alone[0][0], alone[1][0]) == pytest.approx((of_text[3], of_image[3]), rel=1e-6)


def measured(monkeypatch: pytest.MonkeyPatch, text: list[list[int]], image: np.ndarray, ids: list[str]) -> Findings:
    """What an evaluation finds in these token rows of the pairs "0", "1" ... of ``PICTURES``."""
    tokenizer = tokenizer_of("fsq")
    own = tokenizer.encode(to_float(PICTURES)).numpy().astype(np.uint16)
    shape = DalleShape(text_vocab=9, max_text_tokens=3, image_vocab=64, grid=4)
    model = build_dalle(ModelConfig(dim=16, depth=1, heads=1), shape, Runtime().generator(0)).eval()
    painter = SimpleNamespace(model=model, tokenizer=tokenizer, runtime=Runtime())
    manifest = SimpleNamespace(object_of=lambda role: SimpleNamespace(sha256=""))
    subject: Any = SimpleNamespace(painter=painter, training=SimpleNamespace(images=PICTURES), training_tokens=own, model=manifest, tokens=None)  # fmt: skip
    job: Any = SimpleNamespace(config=EvaluateConfig(), check_stop=lambda: None)
    rows = TokenRows(np.array(text, np.uint16), image, np.ones(len(ids), np.float32))
    none = TokenRows(rows.text[:0], rows.image[:0], rows.weights[:0])
    monkeypatch.setattr(tasks.evaluate, "read_tokens", lambda job, tokens, split: (rows, ids, [], shape) if split == "train" else (none, [], [], shape))  # fmt: skip
    monkeypatch.setattr(tasks.evaluate, "_pictures_of", lambda job, subject, split, ids, px: PICTURES[list(map(int, ids))])  # fmt: skip
    found = Findings()
    tasks.evaluate._likelihoods(job, subject, found, Stopwatch())
    return found


def test_a_pair_is_measured_by_its_own_tokens_and_not_by_those_of_its_augmented_copies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = tokenizer_of("fsq").encode(to_float(PICTURES)).numpy().astype(np.uint16)
    plain = measured(monkeypatch, [[1, 2, 0], [3, 0, 0]], own[:2], ["0", "1"])
    copies = measured(monkeypatch, [[1, 2, 0], [4, 4, 4], [3, 0, 0], [5, 0, 0]], own[[0, 7, 1, 9]], ["0", "0", "1", "1"])  # fmt: skip
    assert copies.figures == plain.figures and list(copies.values["loss_text_train"]) == ["0", "1"]
    assert plain.figures["bits_per_pixel_chain_train"] > plain.figures["bits_per_pixel_train"] > 0


def test_text_loss_per_token_of_a_fresh_model_is_ln_k_for_captions_that_were_cut_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cut caption has no end that could be predicted: three tokens are three, not four."""
    own = tokenizer_of("fsq").encode(to_float(PICTURES)).numpy().astype(np.uint16)
    found = measured(monkeypatch, [[1, 2, 3], [3, 0, 0]], own[:2], ["0", "1"])
    assert list(found.values["loss_text_train"].values()) == pytest.approx([math.log(9)] * 2, rel=1e-6)
