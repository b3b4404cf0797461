"""A variational autoencoder with a Gaussian latent (Kingma and Welling 2013, arXiv 1312.6114).

One vector per picture, not one per place, so that a draw from the prior is a picture and not only texture.
"""

import torch
from torch import Tensor, nn

from dalle_model.config import GeneratorConfig
from dalle_model.tokenizers.autoencoder import num_maps, pictures_of
from dalle_model.tokenizers.convolutions import build_decoder, build_encoder

_CELL_CHANNELS = 32  # of the coarse map that the latent is read from and written to
_LOG_VAR = 10.0  # bound of the log-variance: beyond it exp() says nothing more


class GaussianVae(nn.Module):
    """Encode, sample, decode."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self._cells = config.image_px // config.downsampling
        flat = _CELL_CHANNELS * self._cells**2
        self.encoder = build_encoder(config, _CELL_CHANNELS)
        self.to_latent = nn.Linear(flat, 2 * config.latent_dim)
        self.from_latent = nn.Linear(config.latent_dim, flat)
        self.decoder = build_decoder(config, _CELL_CHANNELS, num_maps(config.loss))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Float [B, 3, H, W] in [0, 1] -> mean and log-variance of the latent, float32 [B, latent_dim] each."""
        coarse = self.encoder((images * 2 - 1).contiguous(memory_format=torch.channels_last))
        mean, log_var = self.to_latent(coarse.flatten(1)).float().chunk(2, dim=1)
        return mean, log_var.clamp(-_LOG_VAR, _LOG_VAR)

    def maps(self, latents: Tensor) -> Tensor:
        """Latents [B, latent_dim] -> the decoder's maps, float32 [B, 3 or 6, H, W]; see ``pictures_of``."""
        coarse = self.from_latent(latents).view(len(latents), _CELL_CHANNELS, self._cells, self._cells)
        out: Tensor = self.decoder(coarse.contiguous(memory_format=torch.channels_last))
        return out.float()

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """As ``through``, the KL weighted and over the number of a picture's values."""
        maps, kl = self.through(images, noise)
        return maps, self.config.kl_weight * kl / images[0].numel()

    def through(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] and standard normal noise [B, latent_dim] -> (maps, KL to the prior in nats [B])."""
        mean, log_var = self.encode(images)
        return self.maps(mean + noise * torch.exp(0.5 * log_var)), kl_to_standard(mean, log_var)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, latent_dim] -> float32 [B, 3, H, W] in [0, 1]."""
        return pictures_of(self.maps(latents), self.config.loss).clamp(0, 1)

    def draw(self, noise: Tensor) -> Tensor:
        """Standard normal noise [B, latent_dim] -> pictures of the prior, float32 [B, 3, H, W] in [0, 1]."""
        return self.decode(noise)


def kl_to_standard(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL from the diagonal Gaussian to the standard one, nats, summed over the latent -> [B] (appendix B)."""
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)
