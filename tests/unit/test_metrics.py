"""Metrics against hand-computed values."""

import math

import pytest
import torch
from torch import Tensor

from dalle_model import metrics


def test_psnr_of_a_constant_error() -> None:
    a = torch.full((2, 3, 8, 8), 0.5)
    assert metrics.psnr(a, a + 0.1).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)
    assert metrics.psnr(a, a).tolist() == [100.0, 100.0]


def test_ssim_is_one_for_equal_pictures_and_falls_with_noise() -> None:
    torch.manual_seed(0)
    a = torch.rand(2, 3, 16, 16)
    assert metrics.ssim(a, a).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    assert metrics.ssim(a, torch.rand_like(a)).max() < 0.3


def test_ssim_of_two_flat_pictures_is_the_luminance_term() -> None:
    a, b = torch.full((1, 1, 12, 12), 0.2), torch.full((1, 1, 12, 12), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.04 + 0.36 + 1e-4)
    assert metrics.ssim(a, b).item() == pytest.approx(expected, rel=1e-4)


def test_code_usage_of_a_known_histogram() -> None:
    perplexity, dead = metrics.code_usage(torch.tensor([[0, 0, 1, 1], [2, 2, 3, 3]]), 6)
    assert perplexity == pytest.approx(4.0)
    assert dead == 2


def test_bits_per_pixel_of_uniform_codes() -> None:
    assert metrics.bits_per_pixel(math.log(4096), 64, 64) == pytest.approx(64 * 12 / 4096)


def recognisability(generated: Tensor, training: Tensor, own_index: Tensor) -> float:
    return float(metrics.recognised(metrics.halved(generated), metrics.halved(training), own_index).double().mean())


def test_recognisability_counts_own_nearest_pictures() -> None:
    torch.manual_seed(0)
    training = torch.rand(10, 3, 8, 8)
    generated = training[[0, 3, 5, 7]] + 0.01
    assert recognisability(generated, training, torch.tensor([0, 3, 5, 7])) == 1.0
    assert recognisability(generated, training, torch.tensor([0, 3, 5, 8])) == 0.75


def test_recognisability_is_blind_to_what_half_resolution_hides() -> None:
    training = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
    checks = (torch.arange(16).view(4, 4) % 2).float().expand(1, 3, 4, 4) * 0.9  # averages to 0.45
    assert recognisability(checks, training, torch.tensor([0])) == 1.0


def test_recognisability_accepts_an_exact_duplicate_of_the_own_picture() -> None:
    one = torch.rand(1, 3, 8, 8)
    assert recognisability(one, torch.cat([one, one]), torch.tensor([1])) == 1.0


def test_each_picture_of_a_caption_is_its_own() -> None:
    torch.manual_seed(0)
    training = metrics.halved(torch.rand(4, 3, 8, 8))
    own, found = torch.tensor([0, 0, 2]), training[[1, 2, 2]]  # each drawing is exactly one of the pictures
    assert metrics.recognised(found, training, own).tolist() == [False, False, True]
    assert metrics.recognised(found, training, own, torch.tensor([5, 5, 6, 7])).tolist() == [True, False, True]
