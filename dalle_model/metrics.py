"""Figures that need no network: pixel distances, code usage, likelihood units, and recognisability."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal to noise ratio in dB of pictures [B, 3, H, W] in [0, 1] -> float32 [B]; equal pictures give 100."""
    mse = (a.float() - b.float()).square().flatten(1).mean(1)
    return -10 * torch.log10(mse.clamp(min=1e-10))


def ssim(a: Tensor, b: Tensor, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Structural similarity (Wang et al. 2004) of pictures [B, C, H, W] in [0, 1] -> float32 [B].

    Gaussian window of 11 px and sigma 1.5, population variances, valid positions only: scikit-image's
    ``structural_similarity(gaussian_weights=True, use_sample_covariance=False)`` without its border.
    """
    a, b = a.float(), b.float()
    channels = a.shape[1]
    window = min(window, a.shape[-1] - (a.shape[-1] + 1) % 2)
    places = torch.arange(window, dtype=torch.float32, device=a.device) - window // 2
    line = torch.exp(-(places**2) / (2 * sigma**2))
    line = line / line.sum()
    kernel = torch.outer(line, line).expand(channels, 1, -1, -1)

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(x, kernel, groups=channels)

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b, cov = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2, mean(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return value.flatten(1).mean(1)


def code_usage(ids: Tensor, vocab_size: int) -> tuple[float, int]:
    """(perplexity of the code histogram, number of codes never used) of integer ids of any shape."""
    counts = torch.bincount(ids.flatten().long(), minlength=vocab_size).double()
    p = counts / counts.sum()
    entropy = -(p[p > 0] * p[p > 0].log()).sum()
    return float(entropy.exp()), int((counts == 0).sum())


def bits_per_pixel(nats_per_token: float, num_tokens: int, image_px: int) -> float:
    """Bits that the token prior spends per pixel of the picture: nats per token x tokens / ln 2 / px²."""
    return nats_per_token * num_tokens / math.log(2) / image_px**2


def halved(pictures: Tensor) -> Tensor:
    """Pictures [n, 3, H, W] in [0, 1] at half resolution, as rows float64 [n, 3 * H/2 * W/2]: what is searched."""
    return F.avg_pool2d(pictures.float(), 2).flatten(1).double()


def nearest(generated: Tensor, training: Tensor) -> Tensor:
    """Index of the training picture nearest to each generated one, by mean squared error at half resolution.

    generated [n, K], training [m, K], both ``halved`` -> int64 [n]. Ties go to the lowest index.
    """
    # |g - t|² without the n x m x pixels difference; float64, as the difference of large sums cancels
    distance = training.square().sum(1) - 2 * (generated @ training.T)
    return distance.argmin(1)


def recognised(generated: Tensor, training: Tensor, own_index: Tensor, kinds: Tensor | None = None) -> Tensor:
    """Which generated pictures have their caption's own picture as the nearest training picture -> bool [n].

    generated [n, K], training [m, K], both ``halved``; own_index int64 [n] into ``training``. kinds: int [m], equal for
    pictures of one caption; each of them is the caption's own. A picture whose own has an exact duplicate counts
    whichever of the two is found.
    """
    found = nearest(generated, training)
    same = found == own_index if kinds is None else kinds[found] == kinds[own_index]
    return same | (training[found] == training[own_index]).all(1)
