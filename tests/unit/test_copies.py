"""Memorisation: planted copies are found and named, whatever their duplicates; what copies nothing is left in peace."""

import numpy as np
import torch

from dalle_model.config import TokenizerConfig
from dalle_model.images import to_float
from dalle_model.scenes import render, scene_at
from dalle_model.tokenizers.registry import build_tokenizer
from tasks.copies import CopyDetector, token_distances

PX = 32
SCENES = np.stack([render(scene_at(9, index).things, PX) for index in range(900)])


def noisy(pictures, sigma, seed=0):
    noise = np.random.default_rng(seed).normal(0, sigma, pictures.shape)
    return np.clip(pictures + noise, 0, 255).astype(np.uint8)


def encoded(pictures):
    torch.manual_seed(0)
    config = TokenizerConfig(image_px=PX, downsampling=4, fsq_levels=(8, 8, 8), width=8, blocks_per_group=1)
    return build_tokenizer(config).eval().encode(to_float(pictures)).numpy().astype(np.uint16)


def test_token_distances_are_those_of_brute_force():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 3, (5, 7)).astype(np.uint16), rng.integers(0, 3, (9, 7)).astype(np.uint16)
    assert (token_distances(a, b) == (a[:, None] != b[None]).mean(2)).all()


def test_twenty_pictures_planted_a_hundred_times_are_found_and_named_and_fresh_ones_are_not():
    """D29: training on 300 pictures and 20 that stand 100 times each, every time stored a little differently."""
    base, planted, fresh = SCENES[:300], SCENES[300:320], SCENES[400:]
    training = np.concatenate([base, *(noisy(planted, 1.5, seed) for seed in range(100))])
    detector = CopyDetector(training, encoded(training))
    # What an over-fitted model draws: the planted pictures again, blurred and noised by its tokenizer.
    again = noisy(planted, 6, 7)
    found = detector.look(again, encoded(again))
    assert found.copied.sum() >= 19
    named = (found.source[found.copied] - 300) % 20
    assert (named == np.flatnonzero(found.copied)).all() and (found.source[found.copied] >= 300).all()
    assert (found.times[found.copied] >= 90).all()
    unknown = detector.look(fresh, encoded(fresh))
    assert unknown.copied.mean() <= 0.01


def test_a_copy_is_found_by_its_tokens_alone_and_by_its_pixels_alone():
    training, tokens = SCENES[:200], np.random.default_rng(0).integers(0, 512, (200, 64)).astype(np.uint16)
    detector = CopyDetector(training, tokens)
    other = SCENES[500:501]
    by_tokens, by_pixels = detector.look(other, tokens[17:18]), detector.look(training[17:18], tokens[18:19] + 1)
    assert by_tokens.copied.all() and by_tokens.source.tolist() == [17] and by_tokens.token_distance.tolist() == [0.0]
    assert by_pixels.copied.all() and by_pixels.source.tolist() == [17]


def test_a_handful_of_training_pictures_needs_no_threshold():
    detector = CopyDetector(SCENES[:1], encoded(SCENES[:1]))
    assert detector.look(SCENES[:2], encoded(SCENES[:2])).copied.tolist() == [True, False]


def test_a_blur_copies_none_of_a_few_pictures_that_are_far_from_each_other():
    """It is nearer to one of them than they are to each other: the whole tiny chain was called a copy for that."""
    corners = 255 * np.array(np.meshgrid(*[[0, 1]] * 3)).reshape(3, 8).T.reshape(8, 1, 1, 3)
    few = np.broadcast_to(corners, (8, PX, PX, 3)).astype(np.uint8)
    blurs = (few * 0.5 + few.mean(0) * 0.5).astype(np.uint8)
    tokens = np.zeros((8, 0), np.uint16)
    detector = CopyDetector(few, tokens)
    assert not detector.look(blurs, tokens).copied.any()
    themselves = detector.look(few, tokens)
    assert themselves.copied.all() and themselves.source.tolist() == list(range(8))
