"""Finite scalar quantisation (Mentzer et al. 2023, arXiv 2309.15505): the codes are a fixed lattice, so none can die."""

import torch
from torch import Tensor

from dalle_model.config import TokenizerConfig
from dalle_model.tokenizers.autoencoder import num_maps, pictures_of
from dalle_model.tokenizers.base import ImageTokenizer
from dalle_model.tokenizers.convolutions import build_decoder, build_encoder


class FsqTokenizer(ImageTokenizer):
    """Convolutional encoder and decoder around a finite scalar quantiser."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config)
        self.levels: tuple[int, ...] = tuple(config.fsq_levels)
        self.encoder = build_encoder(config, len(self.levels))
        self.decoder = build_decoder(config, len(self.levels), num_maps(config.loss))
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

    def maps(self, coordinates: Tensor) -> Tensor:
        """Lattice coordinates [B, d, g, g] -> the decoder's maps, float32 [B, 3 or 6, H, W]; see ``pictures_of``."""
        codes = coordinates * (2 / self.steps.view(1, -1, 1, 1)) - 1
        out: Tensor = self.decoder(codes.contiguous(memory_format=torch.channels_last))
        return out.float()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Straight-through rounding: [B, 3, H, W] -> (the decoder's maps; penalty per picture [B], here 0)."""
        soft = self.latents(images)
        return self.maps(soft + (soft.round() - soft).detach()), soft.new_zeros(len(soft))

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
        return pictures_of(self.maps(self.coordinates_of(ids)), self.config.loss).clamp(0, 1)
