"""Causal self-attention with rotary positions over a text + image sequence, with and without a cache.

Axes: B rows, T positions, H heads, D channels of a head.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle_model.causal_blocks import BlockCausalAttention
from dalle_model.norms import rms_norm
from dalle_model.sparse_attention import SparseLayout

# Under this length torch's CPU kernel of scaled_dot_product_attention is 2-4 times slower, forward and backward,
# than two batched matrix products and a softmax (torch 2.13, bf16, T 88 and 320, two Zen 5 cores).
_MATMUL_MAX_T = 512
# In training, queries go in blocks from this length on: 1.8 times as fast at T 320, no difference at T 96.
_BLOCKS_MIN_T, _BLOCK = 128, 64


class Norm(nn.Module):
    """Layer norm or RMS norm over the last axis; ``affine`` is a layer norm with a bias beside the gain."""

    def __init__(self, dim: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.gain = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if kind == "affine" else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> the same shape and type."""
        gain = self.gain.to(x.dtype)
        if self.kind == "rms":
            return rms_norm(x, gain, 1e-6)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.layer_norm(x, gain.shape, gain, bias, 1e-6)


def rotary_table(text_positions: int, grid: int, head_dim: int, theta: float = 100.0) -> Tensor:
    """Cosines and sines, float32 [2, T, D / 2], T = text_positions + grid².

    Half of the frequency pairs turn with the first coordinate, half with the second. Text position i is (i, i), the
    image token in row r, column c is (text_positions + r, text_positions + c): 1-D order for text, 2-D for pictures,
    one formula. ``theta`` is small because the coordinates are: tens, not thousands.
    """
    text = torch.arange(text_positions, dtype=torch.float32).unsqueeze(1).expand(-1, 2)
    axis = torch.arange(grid, dtype=torch.float32) + text_positions
    image = torch.stack([axis.repeat_interleave(grid), axis.repeat(grid)], dim=1)
    coordinates = torch.cat([text, image])  # [T, 2]
    quarter = head_dim // 4
    frequencies = theta ** (-torch.arange(quarter, dtype=torch.float32) / quarter)
    angles = (coordinates.unsqueeze(2) * frequencies).flatten(1)  # [T, D / 2]
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn pairs (x_i, x_{i + D/2}) of x [B, T, ..., D] by the angles of table [2, T, D / 2]."""
    shape = (1, x.shape[1]) + (1,) * (x.dim() - 3) + (table.shape[-1],)
    cos, sin = table[0].to(x.dtype).view(shape), table[1].to(x.dtype).view(shape)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def layer_kinds(depth: int) -> list[str]:
    """The paper's order of masks: column where (i - 2) mod 4 = 0 (i from 1), else row; the last layer is convolutional."""
    kinds = ["column" if (i - 2) % 4 == 0 else "row" for i in range(1, depth)]
    return [*kinds, "conv"]


def sparse_mask(kind: str, prefix: int, grid: int, kernel: int = 11) -> Tensor:
    """Which positions each may see, bool [T, T] with T = prefix + grid² (paper, section 2.2 and figure 11).

    The first ``prefix`` positions (start and text) are causal among themselves and seen by every image token. An
    image token sees itself and: row, the tokens back to the one directly above it; column, its column above it and
    its left neighbour (the row mask with rows and columns exchanged, without what raster order puts in the future);
    conv, the earlier part of the ``kernel`` x ``kernel`` window around it, which wraps around at the sides.
    """
    place = torch.arange(grid**2)
    back = place.unsqueeze(1) - place.unsqueeze(0)  # how far back in raster order, [query, key]
    if kind == "row":
        image = (back >= 0) & (back <= grid)
    elif kind == "column":
        same_column = back % grid == 0
        left = (back == 1) & (place.unsqueeze(1) % grid > 0)
        image = (back >= 0) & (same_column | left)
    else:
        half = kernel // 2
        offsets = {r * grid + c for r in range(half + 1) for c in range(-half, half + 1) if r * grid + c >= 0}
        image = torch.isin(back, torch.tensor(sorted(offsets)))
    total = prefix + grid**2
    seen = torch.ones(total, total, dtype=torch.bool).tril()
    seen[prefix:, prefix:] = image
    return seen


def causal_attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
    """Softmax attention of [B, H, T, D] queries over keys at or before them -> [B, H, T, D].

    seen: bool [T, T], which of those keys count; None = all.
    """
    length = q.shape[2]
    if q.device.type != "cpu" or length > _MATMUL_MAX_T:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None)
    batch, heads, _, dim = q.shape
    flat = (t.reshape(batch * heads, length, dim) for t in (q, k, v))
    fq, fk, fv = flat
    if seen is None and length >= _BLOCKS_MIN_T and torch.is_grad_enabled() and q.requires_grad:
        out: Tensor = BlockCausalAttention.apply(fq, fk, fv, _BLOCK)  # type: ignore[no-untyped-call]
        return out.view(batch, heads, length, dim)
    mask = torch.full((length, length), -math.inf, dtype=q.dtype, device=q.device)
    mask = mask.triu_(1) if seen is None else mask.masked_fill_(seen, 0.0)
    scores = torch.baddbmm(mask, fq, fk.transpose(1, 2), alpha=dim**-0.5)
    return torch.bmm(scores.softmax(-1), fv).view(batch, heads, length, dim)


@dataclass
class LayerCache:
    """Keys and values of one layer, preallocated: [B, H, T_max, D] each."""

    keys: Tensor
    values: Tensor


class Attention(nn.Module):
    """Multi-head causal attention. The output projection starts at zero.

    modern: query-key norm and rotary positions; otherwise neither, as in the paper.
    """

    def __init__(self, dim: int, heads: int, norm: str, modern: bool) -> None:
        super().__init__()
        self.modern = modern
        self.heads = heads
        self.head_dim = dim // heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        if modern:
            self.norm_q = Norm(self.head_dim, norm)
            self.norm_k = Norm(self.head_dim, norm)
        nn.init.normal_(self.qkv.weight, std=dim**-0.5)
        nn.init.zeros_(self.out.weight)

    def project(self, x: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, dim], rotary [2, T, D / 2] -> queries, keys and values [B, H, T, D]."""
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, self.head_dim).unbind(2)
        if self.modern:
            q, k = rotate(self.norm_q(q), rotary), rotate(self.norm_k(k), rotary)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def forward(self, x: Tensor, rotary: Tensor, seen: Tensor | SparseLayout | None = None) -> Tensor:
        """x [B, T, dim], rotary [2, T, D / 2], seen bool [T, T], a layout of blocks, or None (all) -> [B, T, dim]."""
        parts = self.project(x, rotary)
        out = seen.attend(*parts) if isinstance(seen, SparseLayout) else causal_attention(*parts, seen)
        mixed: Tensor = self.out(out.transpose(1, 2).flatten(2))
        return mixed

    def prefill(self, x: Tensor, rotary: Tensor, cache: LayerCache, seen: Tensor | None = None) -> Tensor:
        """As ``forward``, and keep keys and values at positions 0..T-1 of the cache's first rows."""
        q, k, v = self.project(x, rotary)
        cache.keys[:, :, : x.shape[1]] = k
        cache.values[:, :, : x.shape[1]] = v
        mixed: Tensor = self.out(causal_attention(q, k, v, seen).transpose(1, 2).flatten(2))
        return mixed

    def step(self, x: Tensor, rotary: Tensor, cache: LayerCache, position: int, seen: Tensor | None = None) -> Tensor:
        """One new position: x [B, 1, dim], rotary [2, 1, D / 2] -> [B, 1, dim]; the cache gains ``position``.

        seen: bool [T, T], which positions each may see; None = all before it.
        """
        q, k, v = self.project(x, rotary)
        cache.keys[:, :, position : position + 1] = k
        cache.values[:, :, position : position + 1] = v
        keys, values = cache.keys[:, :, : position + 1], cache.values[:, :, : position + 1]
        scores = torch.matmul(q * self.head_dim**-0.5, keys.transpose(2, 3))
        if seen is not None:
            scores = scores.masked_fill(~seen[position, : position + 1], -math.inf)
        mixed: Tensor = self.out(torch.matmul(scores.softmax(-1), values).transpose(1, 2).flatten(2))
        return mixed
