"""Keys and values of the positions already read, and attention of new positions over them.

``BagCache`` is for CPUs: both products of attention, queries with keys and weights with values, are weighted sums of
table rows, which ``embedding_bag`` computes in one pass without unpacking, also where the table is float16. Half the
bytes are read, and a sum is computed alike whatever other sums are beside it, which batched matrix products do not
promise. ``DenseCache`` is the plain way, for other devices.

Axes: Q queries, R rows of the cache, H heads, D channels of a head, T positions, S positions read (T and up to 15 more
that are hidden, so that softmax always sees whole vectors of the processor).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dalle_model.attention import LayerCache

_BLOCK = 64  # positions whose keys lie together, channel by channel
_LANES = 16  # floats of the widest vector


@dataclass(frozen=True)
class Reads:
    """What one step reads, the same in every layer.

    rows, positions: int64 [Q], where each query's own key and value go. length: positions read, one more than the last.
    The other tensors belong to ``BagCache``.
    """

    rows: Tensor
    positions: Tensor
    length: int
    key_rows: Tensor | None = None
    key_bags: Tensor | None = None
    value_rows: Tensor | None = None
    value_bags: Tensor | None = None
    key_places: Tensor | None = None
    value_places: Tensor | None = None
    hidden: Tensor | None = None


class AttentionCache(Protocol):
    """What a decoder needs of a cache."""

    def put(self, row: int, layers: Sequence[LayerCache]) -> None:
        """Take the positions 0..n-1 of every layer, keys and values [1, H, n, D], as a row."""

    def copy(self, source: int, row: int, length: int) -> None:
        """Let ``row`` hold the first ``length`` positions of ``source``."""

    def plan(self, rows: Tensor, positions: Tensor, length: int) -> Reads:
        """What queries at int64 ``positions`` [Q] of int64 ``rows`` [Q] read; ``length``: the last position and one."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, reads: Reads, seen: Tensor | None) -> Tensor:
        """Queries, keys and values [Q, H, D] of new positions -> [Q, H * D]; the cache keeps keys and values.

        Queries are scaled already. seen: bool [T, T], which positions each may see; None = all up to its own.
        """

    def shake(self, generator: torch.Generator) -> None:
        """Fill with noise, for measurements."""


class BagCache:
    """Keys by blocks of positions [layers, R, H, blocks, D, 64], values [layers, R, H, T, D]; float16 or float32."""

    def __init__(self, layers: int, rows: int, heads: int, positions: int, dim: int, dtype: torch.dtype) -> None:
        self.heads, self.dim, self.blocks, self.dtype = heads, dim, -(-positions // _BLOCK), dtype
        self.positions = self.blocks * _BLOCK
        self.keys = torch.zeros(layers, rows, heads, self.blocks, dim, _BLOCK, dtype=dtype)
        self.values = torch.zeros(layers, rows, heads, self.positions, dim, dtype=dtype)
        self._head = torch.arange(heads)
        self._channel = torch.arange(dim) * _BLOCK
        self._count = torch.arange(self.positions * max(dim, 1), dtype=torch.int32)

    @staticmethod
    def works(dtype: torch.dtype) -> bool:
        """Whether this build of torch sums rows of that type."""
        try:
            where = torch.zeros(1, dtype=torch.int32)
            _bag(torch.ones(1, 8, dtype=dtype), where, where, torch.ones(1, dtype=dtype))
        except RuntimeError:
            return False
        return True

    def put(self, row: int, layers: Sequence[LayerCache]) -> None:
        """As ``AttentionCache``."""
        for number, layer in enumerate(layers):
            keys, length = layer.keys[0], layer.keys.shape[2]
            self.values[number, row, :, :length] = layer.values[0]
            for block, start in enumerate(range(0, length, _BLOCK)):
                part = keys[:, start : start + _BLOCK].transpose(1, 2)
                self.keys[number, row, :, block, :, : part.shape[-1]] = part

    def copy(self, source: int, row: int, length: int) -> None:
        """As ``AttentionCache``."""
        blocks = -(-length // _BLOCK)
        self.keys[:, row, :, :blocks] = self.keys[:, source, :, :blocks]
        self.values[:, row, :, :length] = self.values[:, source, :, :length]

    def plan(self, rows: Tensor, positions: Tensor, length: int) -> Reads:
        """As ``AttentionCache``."""
        read = -(-length // _LANES) * _LANES
        blocks = -(-read // _BLOCK)
        owner = (rows.unsqueeze(1) * self.heads + self._head).view(-1, 1)  # [Q * H, 1]: (row, head)
        narrow, count = owner.int(), len(owner)
        place = positions.repeat_interleave(self.heads).unsqueeze(1)
        block = (owner * self.blocks + place // _BLOCK) * (self.dim * _BLOCK) + place % _BLOCK
        return Reads(
            rows,
            positions,
            length,
            key_rows=(narrow * (self.blocks * self.dim) + self._count[: blocks * self.dim]).view(-1),
            key_bags=self._count[: count * blocks] * self.dim,
            value_rows=(narrow * self.positions + self._count[:read]).view(-1),
            value_bags=self._count[:count] * read,
            key_places=(block + self._channel).view(-1),
            value_places=(owner * self.positions + place).view(-1),
            hidden=(self._count[:read] > positions.unsqueeze(1)).unsqueeze(1),
        )

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, reads: Reads, seen: Tensor | None) -> Tensor:
        """As ``AttentionCache``."""
        keys, values, count = self.keys[layer], self.values[layer], len(q) * self.heads
        assert reads.key_rows is not None and reads.key_bags is not None and reads.hidden is not None
        assert reads.value_rows is not None and reads.value_bags is not None
        assert reads.key_places is not None and reads.value_places is not None
        keys.view(-1).index_copy_(0, reads.key_places, k.to(self.dtype).reshape(-1))
        values.view(-1, self.dim).index_copy_(0, reads.value_places, v.to(self.dtype).reshape(count, self.dim))
        blocks, read = len(reads.key_bags) // count, reads.hidden.shape[-1]
        spread = q.to(self.dtype).reshape(count, 1, self.dim).expand(-1, blocks, -1).reshape(-1)
        scores = _bag(keys.view(-1, _BLOCK), reads.key_rows, reads.key_bags, spread)
        scores = scores.view(len(q), self.heads, blocks * _BLOCK)[:, :, :read]
        hidden = reads.hidden if seen is None else _hidden(seen, reads)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1, dtype=torch.float32)
        mixed = _bag(values.view(-1, self.dim), reads.value_rows, reads.value_bags, weights.to(self.dtype).view(-1))
        return mixed.view(len(q), -1)

    def shake(self, generator: torch.Generator) -> None:
        """As ``AttentionCache``."""
        _shake([self.keys, self.values], generator)


def _bag(table: Tensor, rows: Tensor, bags: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of table rows: [K, D], int32 [n], starts of bags int32 [b], weights [n] -> [b, D]."""
    return torch.embedding_bag(table, rows, bags, False, 0, False, weights)[0]


def _hidden(seen: Tensor, reads: Reads) -> Tensor:
    assert reads.hidden is not None
    hidden = reads.hidden.clone()
    width = min(hidden.shape[-1], seen.shape[-1])
    hidden[:, 0, :width] |= ~seen[reads.positions, :width]
    return hidden


class DenseCache:
    """Keys and values [layers, R, H, T, D]; queries of a step are one per row, from row 0 on, at one position."""

    def __init__(
        self, layers: int, rows: int, heads: int, positions: int, dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        size = (layers, rows, heads, positions, dim)
        self.keys, self.values = (torch.zeros(size, dtype=dtype, device=device) for _ in range(2))

    def put(self, row: int, layers: Sequence[LayerCache]) -> None:
        """As ``AttentionCache``."""
        for number, layer in enumerate(layers):
            length = layer.keys.shape[2]
            self.keys[number, row, :, :length] = layer.keys[0]
            self.values[number, row, :, :length] = layer.values[0]

    def copy(self, source: int, row: int, length: int) -> None:
        """As ``AttentionCache``."""
        for cache in (self.keys, self.values):
            cache[:, row, :, :length] = cache[:, source, :, :length]

    def plan(self, rows: Tensor, positions: Tensor, length: int) -> Reads:
        """As ``AttentionCache``."""
        return Reads(rows, positions, length)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, reads: Reads, seen: Tensor | None) -> Tensor:
        """As ``AttentionCache``."""
        count, length = len(q), reads.length
        keys, values = self.keys[layer, :count], self.values[layer, :count]
        keys[:, :, length - 1] = k
        values[:, :, length - 1] = v
        flat = (count * q.shape[1], -1, q.shape[2])
        seen_keys, seen_values = keys.view(flat)[:, :length], values.view(flat)[:, :length]
        scores = torch.bmm(q.to(keys.dtype).reshape(flat), seen_keys.transpose(1, 2))
        if seen is not None:
            scores.masked_fill_(~seen[length - 1, :length], -torch.inf)
        return torch.bmm(scores.softmax(-1), seen_values).view(count, -1)

    def shake(self, generator: torch.Generator) -> None:
        """As ``AttentionCache``."""
        _shake([self.keys, self.values], generator)


def _shake(caches: Sequence[Tensor], generator: torch.Generator) -> None:
    for cache in caches:
        for part in cache:  # a layer at a time: the whole would be a second cache
            part.copy_(torch.randn(part.shape, generator=generator))
