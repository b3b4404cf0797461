"""Plain convolutional encoder and decoder that the modern quantisers share.

A pixel-unshuffle stem, pre-norm residual 3x3 convolutions, no full-resolution layer, because full-resolution
convolutions take most of the time and little of the quality at these sizes.
"""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Shape(Protocol):
    """What the builders read of a configuration; see ``config.TokenizerConfig``."""

    @property
    def width(self) -> int:
        """Channels of the finest resolution."""

    @property
    def downsampling(self) -> int:
        """Pixels per cell along a side."""

    @property
    def blocks_per_group(self) -> int:
        """Residual blocks per resolution."""

    @property
    def decoder_blocks(self) -> int:
        """The same of the decoder, 0 = as blocks_per_group."""


class ChannelNorm(nn.Module):
    """Layer norm over the channels of [B, C, H, W]; the permuted view is contiguous for channels-last input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        normed = F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), self.gain.to(x.dtype))
        return normed.permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(norm(x)))), the last convolution starting at zero so that depth costs nothing at the start."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        out: Tensor = self.conv2(F.silu(self.conv1(self.norm(x))))
        return x + out


def _stages(config: Shape) -> tuple[int, list[int]]:
    """Stem patch in px, and the width of each resolution from fine to coarse."""
    patch = min(4, config.downsampling // 2) if config.downsampling > 2 else 2
    num_halvings = int(math.log2(config.downsampling // patch))
    return patch, [config.width * 2**i for i in range(num_halvings + 1)]


def build_encoder(config: Shape, channels: int) -> nn.Sequential:
    """[B, 3, H, W] -> [B, channels, g, g]."""
    patch, widths = _stages(config)
    layers: list[nn.Module] = [nn.PixelUnshuffle(patch), nn.Conv2d(3 * patch**2, widths[0], 3, padding=1)]
    for i, width in enumerate(widths):
        if i:
            layers += [nn.PixelUnshuffle(2), nn.Conv2d(4 * widths[i - 1], width, 1)]
        layers += [ResidualBlock(width) for _ in range(config.blocks_per_group)]
    return nn.Sequential(*layers, ChannelNorm(widths[-1]), nn.Conv2d(widths[-1], channels, 1))


def build_decoder(config: Shape, channels: int, maps: int = 3) -> nn.Sequential:
    """[B, channels, g, g] -> [B, maps, H, W]. The last two layers are the last convolution and the pixel shuffle."""
    patch, widths = _stages(config)
    layers: list[nn.Module] = [nn.Conv2d(channels, widths[-1], 3, padding=1)]
    for i in reversed(range(len(widths))):
        layers += [ResidualBlock(widths[i]) for _ in range(config.decoder_blocks or config.blocks_per_group)]
        if i:
            layers += [nn.Conv2d(widths[i], 4 * widths[i - 1], 1), nn.PixelShuffle(2)]
    layers += [ChannelNorm(widths[0]), nn.Conv2d(widths[0], maps * patch**2, 3, padding=1), nn.PixelShuffle(patch)]
    return nn.Sequential(*layers)
