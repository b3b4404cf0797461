"""The paper's row, column and convolutional attention over what each token sees, instead of a masked whole square.

Rows of the picture (columns for the column mask) are blocks. A query sees the prefix and the blocks from ``reach`` before
its own to its own; inside those a small mask says which tokens. The scores are [N, prefix + (reach + 1) * grid] where the
dense form has [T, T]: for the paper's 256 + 1024 positions a quarter (row, column) or two fifths (conv).

Axes: B rows, H heads, P prefix positions, G blocks of G tokens, D channels of a head.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle_model.errors import DataError


class SparseLayout(nn.Module):
    """Which blocks a mask needs, derived from the dense mask itself, so that the two cannot disagree."""

    mask: Tensor

    def __init__(self, seen: Tensor, prefix: int, grid: int, transposed: bool) -> None:
        """seen: bool [T, T] with T = prefix + grid², causal, every image token seeing the whole prefix. DataError else."""
        super().__init__()
        image = seen[prefix:, prefix:]
        if seen.shape[0] != prefix + grid**2 or not bool(seen[prefix:, :prefix].all()):
            raise DataError(f"a mask of {list(seen.shape)} is none of {prefix} positions and a grid of {grid}")
        self.prefix, self.grid, self.transposed = prefix, grid, transposed
        if transposed:
            order = torch.arange(grid**2).view(grid, grid).T.flatten()
            image = image[order][:, order]
        blocks = image.view(grid, grid, grid, grid).transpose(1, 2)  # [query block, key block, query, key]
        used = blocks.flatten(2).any(-1).nonzero()
        self.reach = int((used[:, 0] - used[:, 1]).max())
        if bool((used[:, 1] > used[:, 0]).any()):
            raise DataError("the mask looks into a later block; blocks need a mask that is causal in their own order")
        padded = F.pad(blocks, (0, 0, 0, 0, self.reach, 0))  # key blocks before the first one: nothing is seen
        windows = [padded[torch.arange(grid), torch.arange(grid) + i] for i in range(self.reach + 1)]
        self.register_buffer("mask", torch.cat(windows, dim=-1), persistent=False)  # [G, G, (reach + 1) * G]

    def _blocks(self, image: Tensor) -> Tensor:
        """[B, H, n, D], n of the G² places -> [B, H, G, G, D], zeros for the places that are missing at the end."""
        grid = self.grid
        full = F.pad(image, (0, 0, 0, grid**2 - image.shape[2]))
        split = full.view(*full.shape[:2], grid, grid, full.shape[-1])
        return split.transpose(2, 3) if self.transposed else split

    def _windows(self, blocks: Tensor) -> Tensor:
        """[B, H, G, G, D] -> [B, H, G, (reach + 1) * G, D]: each block behind those that it reaches back to."""
        padded = F.pad(blocks, (0, 0, 0, 0, self.reach, 0))
        shifted = [padded[:, :, i : i + self.grid] for i in range(self.reach + 1)]
        return torch.cat(shifted, dim=3)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As ``causal_attention`` with the dense mask: [B, H, n, D] each, prefix < n <= T -> [B, H, n, D]."""
        first, dim = self.prefix, q.shape[-1]
        q_text, k_text, v_text = (t[:, :, :first] for t in (q, k, v))
        text = F.scaled_dot_product_attention(q_text, k_text, v_text, is_causal=True)
        queries = self._blocks(q[:, :, first:] * dim**-0.5)
        keys, values = (self._windows(self._blocks(t[:, :, first:])) for t in (k, v))
        near = torch.matmul(queries, keys.mT).masked_fill(~self.mask, -math.inf)
        flat = queries.flatten(2, 3)
        before = torch.matmul(flat, k_text.mT).view(*near.shape[:-1], first)
        weights = torch.cat([before, near], dim=-1).softmax(-1).to(v.dtype)
        image = torch.matmul(weights[..., first:], values)
        far = torch.matmul(weights[..., :first].flatten(2, 3), v_text).view_as(image)
        mixed = image + far
        if self.transposed:
            mixed = mixed.transpose(2, 3)
        return torch.cat([text, mixed.flatten(2, 3)[:, :, : q.shape[2] - first]], dim=2)
