"""Finite scalar quantisation (Mentzer et al. 2023, arXiv 2309.15505): the codes are a fixed lattice, so none can die.

The network is plain: a pixel-unshuffle stem, pre-norm residual 3x3 convolutions, no full-resolution layer, because
full-resolution convolutions take most of the time and little of the quality at these sizes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle_model.config import TokenizerConfig
from dalle_model.tokenizers.base import ImageTokenizer


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


def _stages(config: TokenizerConfig) -> tuple[int, list[int]]:
    """Stem patch in px, and the width of each resolution from fine to coarse."""
    patch = min(4, config.downsampling // 2) if config.downsampling > 2 else 2
    num_halvings = int(math.log2(config.downsampling // patch))
    return patch, [config.width * 2**i for i in range(num_halvings + 1)]


class FsqTokenizer(ImageTokenizer):
    """Convolutional encoder and decoder around a finite scalar quantiser."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config)
        patch, widths = _stages(config)
        self.levels: tuple[int, ...] = tuple(config.fsq_levels)
        encoder: list[nn.Module] = [nn.PixelUnshuffle(patch), nn.Conv2d(3 * patch**2, widths[0], 3, padding=1)]
        for i, width in enumerate(widths):
            if i:
                encoder += [nn.PixelUnshuffle(2), nn.Conv2d(4 * widths[i - 1], width, 1)]
            encoder += [ResidualBlock(width) for _ in range(config.blocks_per_group)]
        encoder += [ChannelNorm(widths[-1]), nn.Conv2d(widths[-1], len(self.levels), 1)]
        decoder: list[nn.Module] = [nn.Conv2d(len(self.levels), widths[-1], 3, padding=1)]
        for i in reversed(range(len(widths))):
            decoder += [ResidualBlock(widths[i]) for _ in range(config.decoder_blocks or config.blocks_per_group)]
            if i:
                decoder += [nn.Conv2d(widths[i], 4 * widths[i - 1], 1), nn.PixelShuffle(2)]
        decoder += [ChannelNorm(widths[0]), nn.Conv2d(widths[0], 3 * patch**2, 3, padding=1), nn.PixelShuffle(patch)]
        self.encoder = nn.Sequential(*encoder)
        self.decoder = nn.Sequential(*decoder)
        levels = torch.tensor(self.levels)
        self.register_buffer("steps", levels - 1, persistent=False)
        self.register_buffer(
            "radix", torch.cat([torch.ones(1, dtype=torch.long), levels.cumprod(0)[:-1]]), persistent=False
        )
        self.steps: Tensor
        self.radix: Tensor

    @property
    def code_levels(self) -> tuple[int, ...]:
        """Levels per dimension of the lattice."""
        return self.levels

    def latents(self, images: Tensor) -> Tensor:
        """Float [B, 3, H, W] in [0, 1] -> [B, d, g, g], continuous lattice coordinates in [0, levels - 1], float32."""
        out = self.encoder((images * 2 - 1).contiguous(memory_format=torch.channels_last))
        return torch.sigmoid(out.float()) * self.steps.view(1, -1, 1, 1)

    def reconstruct(self, coordinates: Tensor) -> Tensor:
        """Lattice coordinates [B, d, g, g] -> float [B, 3, H, W], not clamped (training wants the gradient outside)."""
        codes = coordinates * (2 / self.steps.view(1, -1, 1, 1)) - 1
        out: Tensor = self.decoder(codes.contiguous(memory_format=torch.channels_last))
        return out.float() * 0.5 + 0.5

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruction with straight-through rounding, [B, 3, H, W] -> the same shape, not clamped."""
        soft = self.latents(images)
        return self.reconstruct(soft + (soft.round() - soft).detach())

    def ids_of(self, coordinates: Tensor) -> Tensor:
        """Rounded lattice coordinates [B, d, g, g] -> int64 ids [B, N]."""
        return (coordinates.round().long() * self.radix.view(1, -1, 1, 1)).sum(1).flatten(1)

    def coordinates_of(self, ids: Tensor) -> Tensor:
        """Integer ids [B, N] -> float32 lattice coordinates [B, d, g, g]."""
        coordinates = (ids.long().unsqueeze(1) // self.radix.view(1, -1, 1)) % (self.steps.view(1, -1, 1) + 1)
        return coordinates.view(ids.shape[0], len(self.levels), self.grid, self.grid).float()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Float [B, 3, H, W] in [0, 1] -> int64 ids [B, N]."""
        self.check_images(images)
        return self.ids_of(self.latents(images))

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """Integer ids [B, N] -> float32 [B, 3, H, W] in [0, 1]."""
        self.check_ids(ids)
        return self.reconstruct(self.coordinates_of(ids)).clamp(0, 1)
