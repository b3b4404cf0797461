"""Causal self-attention with rotary positions over a text + image sequence, with and without a cache.

Axes: B rows, T positions, H heads, D channels of a head.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Under this length torch's CPU kernel of scaled_dot_product_attention is 2-4 times slower, forward and backward,
# than two batched matrix products and a softmax (torch 2.13, bf16, T 88 and 320, two Zen 5 cores).
_MATMUL_MAX_T = 512


class Norm(nn.Module):
    """Layer norm or RMS norm over the last axis, gain only."""

    def __init__(self, dim: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.gain = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> the same shape and type."""
        gain = self.gain.to(x.dtype)
        if self.kind == "rms":
            return F.rms_norm(x, gain.shape, gain, 1e-6)
        return F.layer_norm(x, gain.shape, gain, None, 1e-6)


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


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of [B, H, T, D] queries over keys at or before them -> [B, H, T, D]."""
    length = q.shape[2]
    if q.device.type != "cpu" or length > _MATMUL_MAX_T:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    batch, heads, _, dim = q.shape
    flat = (t.reshape(batch * heads, length, dim) for t in (q, k, v))
    fq, fk, fv = flat
    mask = torch.full((length, length), -math.inf, dtype=q.dtype, device=q.device).triu_(1)
    scores = torch.baddbmm(mask, fq, fk.transpose(1, 2), alpha=dim**-0.5)
    return torch.bmm(scores.softmax(-1), fv).view(batch, heads, length, dim)


@dataclass
class LayerCache:
    """Keys and values of one layer, preallocated: [B, H, T_max, D] each."""

    keys: Tensor
    values: Tensor


class Attention(nn.Module):
    """Multi-head causal attention with query-key norm. The output projection starts at zero."""

    def __init__(self, dim: int, heads: int, norm: str) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = dim // heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.norm_q = Norm(self.head_dim, norm)
        self.norm_k = Norm(self.head_dim, norm)
        nn.init.normal_(self.qkv.weight, std=dim**-0.5)
        nn.init.zeros_(self.out.weight)

    def _project(self, x: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, self.head_dim).unbind(2)
        q, k = rotate(self.norm_q(q), rotary), rotate(self.norm_k(k), rotary)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def forward(self, x: Tensor, rotary: Tensor) -> Tensor:
        """x [B, T, dim], rotary [2, T, D / 2] -> [B, T, dim]."""
        out = causal_attention(*self._project(x, rotary))
        mixed: Tensor = self.out(out.transpose(1, 2).flatten(2))
        return mixed

    def prefill(self, x: Tensor, rotary: Tensor, cache: LayerCache) -> Tensor:
        """As ``forward``, and keep keys and values at positions 0..T-1 of the cache's first rows."""
        q, k, v = self._project(x, rotary)
        cache.keys[:, :, : x.shape[1]] = k
        cache.values[:, :, : x.shape[1]] = v
        mixed: Tensor = self.out(causal_attention(q, k, v).transpose(1, 2).flatten(2))
        return mixed

    def step(self, x: Tensor, rotary: Tensor, cache: LayerCache, position: int) -> Tensor:
        """One new position: x [B, 1, dim], rotary [2, 1, D / 2] -> [B, 1, dim]; the cache gains ``position``."""
        q, k, v = self._project(x, rotary)
        cache.keys[:, :, position : position + 1] = k
        cache.values[:, :, position : position + 1] = v
        keys, values = cache.keys[:, :, : position + 1], cache.values[:, :, : position + 1]
        scores = torch.matmul(q * self.head_dim**-0.5, keys.transpose(2, 3)).softmax(-1)
        mixed: Tensor = self.out(torch.matmul(scores, values).transpose(1, 2).flatten(2))
        return mixed
