"""DCGAN (Radford et al. 2015, arXiv 1511.06434) with the non-saturating loss of Goodfellow et al. (2014).

Beside it, as switches of ``GeneratorConfig``, what later work found to be steadier: doubling by nearest neighbour and a
convolution (Odena et al. 2016), a critic with spectral norms and the hinge loss (Miyato et al. 2018, arXiv 1802.05957),
and shifts of both real and made pictures before the critic (Zhao et al. 2020, arXiv 2006.10738).
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from dalle_model.config import GeneratorConfig


class DcganGenerator(nn.Module):
    """Noise to picture: transposed convolutions of stride 2 with batch norm and relu, tanh at the end (section 3).

    With ``config.upsampling`` resize a doubling is nearest neighbour and a 3x3 convolution: each pixel is then made by the
    same number of weights, where a transposed convolution that is not trained for long leaves a checkerboard.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        widths = _widths(config)
        layers: list[nn.Module] = [nn.ConvTranspose2d(config.latent_dim, widths[0], 4, bias=False)]
        for before, after in pairwise([*widths, 3]):
            layers += [nn.BatchNorm2d(before), nn.ReLU()]
            layers += _doubling(before, after, config.upsampling, bias=after == 3)
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
    """Picture to one number, above 0 = real: convolutions of stride 2, batch norm but in the first, leaky relu 0.2.

    With ``config.critic_norm`` spectral each weight is divided by its largest singular value instead: a verdict then
    depends on its own picture alone, and cannot change faster than the picture does.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        widths = _widths(config)[::-1]
        spectral = config.critic_norm == "spectral"
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for before, after in pairwise(widths):
            layers.append(nn.Conv2d(before, after, 4, 2, 1, bias=spectral))
            layers += [] if spectral else [nn.BatchNorm2d(after)]
            layers.append(nn.LeakyReLU(0.2))
        self.body = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4))
        self.apply(_initialise)
        for conv in [m for m in self.body if spectral and isinstance(m, nn.Conv2d)]:
            nn.init.orthogonal_(conv.weight)
            spectral_norm(conv)

    def forward(self, images: Tensor) -> Tensor:
        """Float [B, 3, H, W] in [0, 1] -> float32 verdicts [B]."""
        out: Tensor = self.body(images * 2 - 1)
        return out.float().flatten()


def _widths(config: GeneratorConfig) -> list[int]:
    """Channels from 4 px up to half of the picture's side, coarse to fine."""
    doublings = int(math.log2(config.image_px)) - 2
    return [config.width * 2**i for i in reversed(range(doublings))]


def _doubling(before: int, after: int, upsampling: str, *, bias: bool) -> list[nn.Module]:
    """[B, before, H, W] -> [B, after, 2 H, 2 W]."""
    if upsampling == "transposed":
        return [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=bias)]
    return [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(before, after, 3, padding=1, bias=bias)]


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


def shifted(images: Tensor, offsets: Tensor) -> Tensor:
    """Pictures [B, C, H, W] moved by ``offsets`` int64 [B, 2] (down, right) px; edge pixels fill what is uncovered.

    Differentiable: the maker learns through it (Zhao et al. 2020).
    """
    height, width = images.shape[2:]
    at = torch.arange(len(images), device=images.device)[:, None, None]
    rows = (torch.arange(height, device=images.device) - offsets[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) - offsets[:, 1:]).clamp(0, width - 1)
    return images[at, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
