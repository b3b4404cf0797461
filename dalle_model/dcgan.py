"""DCGAN (Radford et al. 2015, arXiv 1511.06434) with the non-saturating loss of Goodfellow et al. (2014)."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle_model.config import GeneratorConfig


class DcganGenerator(nn.Module):
    """Noise to picture: transposed convolutions of stride 2 with batch norm and relu, tanh at the end (section 3)."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        widths = _widths(config)
        layers: list[nn.Module] = [nn.ConvTranspose2d(config.latent_dim, widths[0], 4, bias=False)]
        for before, after in pairwise(widths):
            layers += [*_norm_relu(before), nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)]
        layers += [*_norm_relu(widths[-1]), nn.ConvTranspose2d(widths[-1], 3, 4, 2, 1)]
        self.body = nn.Sequential(*layers)
        self.apply(_initialise)

    def forward(self, noise: Tensor) -> Tensor:
        """Standard normal noise [B, latent_dim] -> float32 [B, 3, H, W] in [0, 1]."""
        out: Tensor = self.body(noise[:, :, None, None])
        return torch.tanh(out.float()) * 0.5 + 0.5

    @torch.no_grad()
    def draw(self, noise: Tensor) -> Tensor:
        """The same without gradient."""
        out: Tensor = self(noise)
        return out


class DcganCritic(nn.Module):
    """Picture to one number, above 0 = real: convolutions of stride 2, batch norm but in the first, leaky relu 0.2."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        widths = _widths(config)[::-1]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4))
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Float [B, 3, H, W] in [0, 1] -> float32 verdicts [B]."""
        out: Tensor = self.body(images * 2 - 1)
        return out.float().flatten()


def _widths(config: GeneratorConfig) -> list[int]:
    """Channels from 4 px up to half of the picture's side, coarse to fine."""
    doublings = int(math.log2(config.image_px)) - 2
    return [config.width * 2**i for i in reversed(range(doublings))]


def _norm_relu(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.ReLU()]


def _initialise(module: nn.Module) -> None:
    """Normal weights with deviation 0.02 (section 4), gains around 1."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, mean=1.0, std=0.02)
        nn.init.zeros_(module.bias)


def gan_maker_loss(made: Tensor) -> Tensor:
    """-ln of the probability that the critic gives to real, per picture [B]: the non-saturating form."""
    return F.softplus(-made)


def gan_critic_loss(real: Tensor, made: Tensor) -> Tensor:
    """-ln p(real) of real pictures - ln (1 - p(real)) of made ones, per pair [B]."""
    return F.softplus(-real) + F.softplus(made)
