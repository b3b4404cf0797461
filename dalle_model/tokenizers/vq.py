"""Vector quantisation with few, l2-normalised code dimensions (van den Oord et al. 2017; Yu et al. 2021, arXiv 2110.04627).

Codes and latents lie on the unit sphere of a low-dimensional space: nearest code = largest dot product, and few
dimensions keep the share of used codes high.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle_model.config import TokenizerConfig
from dalle_model.tokenizers.autoencoder import num_maps, pictures_of
from dalle_model.tokenizers.base import ImageTokenizer
from dalle_model.tokenizers.convolutions import build_decoder, build_encoder
from dalle_model.tokenizers.dvae import argmax_codes

COMMITMENT = 0.25  # weight of the pull of latents to codes over the pull of codes to latents (van den Oord et al.)


class VqTokenizer(ImageTokenizer):
    """Convolutional encoder and decoder around a learnt codebook [num_codes, vq_dim]."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config)
        self.encoder = build_encoder(config, config.vq_dim)
        self.decoder = build_decoder(config, config.vq_dim, num_maps(config.loss))
        self.code_embed = nn.Parameter(F.normalize(torch.randn(config.num_codes, config.vq_dim), dim=1))

    def codes(self) -> Tensor:
        """The codebook on the unit sphere, [num_codes, vq_dim]."""
        return F.normalize(self.code_embed.float(), dim=1)

    def latents(self, images: Tensor) -> Tensor:
        """Float [B, 3, H, W] in [0, 1] -> unit vectors [B, g, g, d], float32."""
        out = self.encoder((images * 2 - 1).contiguous(memory_format=torch.channels_last))
        return F.normalize(out.float().permute(0, 2, 3, 1), dim=-1)

    def nearest(self, latents: Tensor) -> Tensor:
        """Unit vectors [B, g, g, d] -> int64 ids [B, N] of the codes with the largest dot product."""
        codes = self.codes().detach()
        with torch.autocast(latents.device.type, enabled=False):
            flat = latents.detach().reshape(-1, latents.shape[-1])
            ids = argmax_codes(flat, codes)
        return ids.view(len(latents), -1)

    def maps(self, vectors: Tensor) -> Tensor:
        """Code vectors [B, g, g, d] -> the decoder's maps, float32 [B, 3 or 6, H, W]; see ``pictures_of``."""
        # scaled to unit variance per value, which is what the first convolution is initialised for
        scaled = vectors.permute(0, 3, 1, 2) * vectors.shape[-1] ** 0.5
        out: Tensor = self.decoder(scaled.contiguous(memory_format=torch.channels_last))
        return out.float()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Straight-through: [B, 3, H, W] -> (the decoder's maps; codebook and commitment penalty [B])."""
        soft = self.latents(images)
        hard = F.embedding(self.nearest(soft), self.codes()).view_as(soft)
        pull = (hard - soft.detach()).square() + COMMITMENT * (soft - hard.detach()).square()
        return self.maps(soft + (hard - soft).detach()), pull.flatten(1).mean(1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Float [B, 3, H, W] in [0, 1] -> int64 ids [B, N]."""
        self.check_images(images)
        return self.nearest(self.latents(images))

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """Integer ids [B, N] -> float32 [B, 3, H, W] in [0, 1]."""
        self.check_ids(ids)
        vectors = F.embedding(ids.long(), self.codes())
        maps = self.maps(vectors.view(len(ids), self.grid, self.grid, -1))
        return pictures_of(maps, self.config.loss).clamp(0, 1)
