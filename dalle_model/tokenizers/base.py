"""The contract of every image tokenizer."""

from abc import abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dalle_model.config import TokenizerConfig
from dalle_model.errors import DataError


class ImageTokenizer(nn.Module):
    """Pictures to a square grid of discrete codes and back.

    Pictures are float [B, 3, H, W] in [0, 1] with H = W = ``config.image_px``; ids are int64 [B, N] in raster order.
    Subclasses also offer what their training objective needs (see ``objectives``).
    """

    pixel_transform: str = "identity"
    """Name of the map between [0, 1] pixels and what the network sees; stored with every token file."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def grid(self) -> int:
        """Tokens along one side."""
        return self.config.grid

    @property
    def num_tokens(self) -> int:
        """Tokens per picture, N."""
        return self.config.num_tokens

    @property
    def vocab_size(self) -> int:
        """Number of distinct codes."""
        return self.config.vocab_size

    @property
    def code_levels(self) -> tuple[int, ...]:
        """Levels per dimension when codes are the points of a lattice, else empty."""
        return ()

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Float [B, 3, H, W] in [0, 1] -> int64 ids [B, N]. Without gradient."""

    @abstractmethod
    def decode(self, ids: Tensor) -> Tensor:
        """Integer ids [B, N] -> float32 [B, 3, H, W] in [0, 1]. Without gradient."""

    def check_images(self, images: Tensor) -> None:
        """DataError when the pictures are not [B, 3, H, W] floats of this tokenizer's size."""
        side = self.config.image_px
        if images.dim() != 4 or tuple(images.shape[1:]) != (3, side, side) or not images.is_floating_point():
            raise DataError(
                f"pictures of shape {tuple(images.shape)} and type {images.dtype} given; this tokenizer takes float "
                f"[batch, 3, {side}, {side}] in [0, 1]. Resize them first"
            )

    def check_ids(self, ids: Tensor) -> None:
        """DataError when ids are not [B, N] integers of this vocabulary."""
        if ids.dim() != 2 or ids.shape[1] != self.num_tokens or ids.is_floating_point():
            raise DataError(
                f"ids of shape {tuple(ids.shape)} and type {ids.dtype} given; "
                f"expected integers [batch, {self.num_tokens}]"
            )
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            raise DataError(
                f"ids lie in {int(ids.min())}..{int(ids.max())}, but this tokenizer has {self.vocab_size} codes: "
                "they come from another tokenizer"
            )


def to_unit(images: Tensor) -> Tensor:
    """uint8 pictures -> float32 in [0, 1]."""
    return images.to(torch.float32).div_(255.0)


@torch.inference_mode()
def decode_alone(tokenizer: "ImageTokenizer", tokens: NDArray[np.uint16], device: torch.device) -> Tensor:
    """Image tokens [n, N] -> float32 [n, 3, H, W] in [0, 1] on the CPU.

    One by one: kernels are chosen by the number of rows, and a picture must not depend on its neighbours by one bit.
    """
    decoder, side = tokenizer.to(device).eval(), tokenizer.config.image_px
    rows = torch.from_numpy(tokens.astype(np.int64)).to(device)
    made = [decoder.decode(row[None]).float().cpu() for row in rows]
    return torch.cat(made) if made else torch.empty(0, 3, side, side)


def to_bytes(images: Tensor) -> Tensor:
    """Float pictures in [0, 1] -> uint8, rounded to nearest."""
    return images.to(torch.float32).clamp(0, 1).mul(255.0).round_().to(torch.uint8)
