"""The transformer made ready for drawing: packed weights, a preallocated cache, one function per image token.

What a row computes must not depend on how many rows are beside it, yet matrix kernels are chosen by the number of
rows and may round differently. So rows are computed in tiles whose sizes were compared bit by bit on this machine
when the decoder was made (``Decoder.sizes``); a wave of rows is filled up to the next such size.

Axes: R rows of the cache, B <= R rows of a step, H heads, T positions, D channels of a head, V image codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle_model.attention import LayerCache, Norm
from dalle_model.dalle import Block, Dalle, GeluMlp, KVCache, SwiGlu
from dalle_model.errors import DataError
from dalle_model.packed import INT8_MULTIPLE, Linear, pack_linear
from dalle_model.runtime import Runtime
from dalle_model.token_batches import pad_text

Prefix = tuple[tuple[int, ...], tuple[int, ...]]  # caption ids, image tokens that are given


def tile_rows(device: torch.device) -> int:
    """Rows that are computed together at most."""
    return 64 if device.type == "cuda" else 32


@dataclass(frozen=True)
class _Layer:
    """One block's packed weights. ``turn``, ``turn_swapped``: gains times cosines and sines [N, 2, 1, D], or None."""

    norm_attention: Norm
    qkv: Linear
    out: Linear
    norm_mlp: Norm
    up: Linear
    down: Linear
    gated: bool
    seen: Tensor | None
    turn: Tensor | None
    turn_swapped: Tensor | None


class Decoder:
    """Decodes image tokens of many pictures in lock-step; holds its own packed copy of the weights.

    rows: rows of the cache, None = the tile of the device. sizes: how many rows a step may have.
    """

    def __init__(self, model: Dalle, runtime: Runtime, weights: str = "full", rows: int | None = None) -> None:
        self.model, self.runtime = model.to(runtime.device), runtime
        self.rows = rows or tile_rows(runtime.device)
        config, shape, device = model.config, model.shape, runtime.device
        self.prefix = shape.max_text_tokens + 1
        self.heads, self.head_dim = config.heads, config.dim // config.heads
        self.wide = torch.float32 if device.type == "cpu" else runtime.dtype  # bf16 attention is 3 times slower on CPUs
        with torch.no_grad():
            pack = _Packer(runtime.dtype, weights)
            self.layers = [self._layer(block, seen, pack) for block, seen in model.decoder_layers()]
            self.head = pack(model.image_vectors())
            self.table, self.places = (t.detach().clone() for t in model.image_tables())
            self.norm_out = model.norm_out
        size = (len(self.layers), self.rows, self.heads, self.prefix + shape.num_image_tokens - 1, self.head_dim)
        self.keys, self.values = (torch.zeros(size, dtype=self.wide, device=device) for _ in range(2))
        self._first = torch.zeros(self.rows, shape.image_vocab, device=device)
        self._held: list[Prefix | None] = [None] * self.rows
        self.sizes = self._equal_sizes()

    def _layer(self, block: Block, seen: Tensor | None, pack: "_Packer") -> _Layer:
        attention, mlp = block.attention, block.mlp
        turn = turn_swapped = None
        if attention.modern:
            gains = torch.stack([attention.norm_q.gain, attention.norm_k.gain]).detach().float()  # [2, D]
            gains[0] *= self.head_dim**-0.5
            cos, sin = self.model.rotary[:, self.prefix :].unsqueeze(2).float()  # [N, 1, D / 2] each
            turn = (gains * torch.cat([cos, cos], -1)).unsqueeze(2)
            turn_swapped = (gains.roll(self.head_dim // 2, -1) * torch.cat([-sin, sin], -1)).unsqueeze(2)
        if isinstance(mlp, SwiGlu):
            up, down = pack.gated(mlp.up.weight, mlp.down.weight)
        elif isinstance(mlp, GeluMlp):
            up, down = pack(mlp.up.weight, mlp.up.bias), pack(mlp.down.weight, mlp.down.bias)
        else:
            raise DataError(f"the decoder does not know blocks with {type(mlp).__name__}")
        qkv, out = pack(attention.qkv.weight), pack(attention.out.weight)
        gated = isinstance(mlp, SwiGlu)
        return _Layer(block.norm_attention, qkv, out, block.norm_mlp, up, down, gated, seen, turn, turn_swapped)

    @torch.inference_mode()
    def read(self, prefixes: Sequence[Prefix], first_row: int = 0) -> Tensor:
        """Rows first_row.. of the cache for captions and the image tokens given with them.

        Each different prefix is computed once, alone, so its bits are its own; rows that hold it already are used.
        Returns float32 logits [len(prefixes), V] of the next image token.
        """
        for row, prefix in enumerate(prefixes, first_row):
            if self._held[row] == prefix:
                continue
            if prefix in self._held:
                source, length = self._held.index(prefix), self.prefix + len(prefix[1])
                for cache in (self.keys, self.values):
                    cache[:, row, :, :length] = cache[:, source, :, :length]
                self._first[row] = self._first[source]
            else:
                self._first[row] = self._compute(prefix, row)
            self._held[row] = prefix
        return self._first[first_row : first_row + len(prefixes)]

    def forget(self) -> None:
        """Let no row be used again for the prompt that it holds."""
        self._held = [None] * self.rows

    def _compute(self, prefix: Prefix, row: int) -> Tensor:
        text, given = prefix
        device, here = self.runtime.device, slice(row, row + 1)
        ids = torch.from_numpy(pad_text([list(text)], self.prefix - 1).astype("int64")).to(device)
        image = torch.tensor([given], dtype=torch.long, device=device) if given else None
        views = [LayerCache(k[here], v[here]) for k, v in zip(self.keys, self.values, strict=True)]
        with self.runtime.autocast():
            logits = self.model.prefill(ids, KVCache(views), image)
        if not bool(logits.isfinite().all()):
            raise DataError("the model's logits are not finite; its weights are damaged or its training diverged")
        return logits[0]

    @torch.inference_mode()
    def step(self, tokens: Tensor, place: int) -> Tensor:
        """Image ids int64 [B] of the first B rows at ``place`` -> float32 logits [B, V] of place + 1."""
        count = len(tokens)
        size = next(s for s in self.sizes if s >= count)
        if size == count:
            return self._step(tokens, place)
        self._held[count:size] = [None] * (size - count)  # rows that only fill up are overwritten
        return self._step(F.pad(tokens, (0, size - count)), place)[:count]

    def _step(self, tokens: Tensor, place: int) -> Tensor:
        x = F.embedding(tokens, self.table) + self.places[place]
        for number, layer in enumerate(self.layers):
            h = layer.norm_attention(x).to(self.runtime.dtype)
            x.add_(layer.out(self._attend(layer, number, layer.qkv(h), place)))
            h = layer.up(layer.norm_mlp(x).to(self.runtime.dtype))
            if layer.gated:
                gate, value = h.chunk(2, dim=-1)
                h = F.silu(gate) * value
            else:
                h = F.gelu(h)
            x.add_(layer.down(h))
        return self.head(self.norm_out(x).to(self.runtime.dtype)).float()

    def _attend(self, layer: _Layer, number: int, qkv: Tensor, place: int) -> Tensor:
        """[B, 3 dim] -> [B, dim]; the cache of this layer gains the position of ``place``."""
        rows, position, dim = len(qkv), self.prefix + place, self.head_dim
        parts = qkv.view(rows, 3, self.heads, dim)
        if layer.turn is None or layer.turn_swapped is None:
            q, k = parts[:, 0].to(self.wide) * dim**-0.5, parts[:, 1]
        else:
            # normalise queries and keys together, then turn the pairs (i, i + D/2): two products and one sum
            unit = self._normalise(parts[:, :2].float())
            swapped = unit.view(rows, 2, self.heads, 2, dim // 2).flip(3).view(rows, 2, self.heads, dim)
            turned = torch.addcmul(unit * layer.turn[place], swapped, layer.turn_swapped[place])
            q, k = turned[:, 0].to(self.wide), turned[:, 1]
        keys, values = self.keys[number, :rows], self.values[number, :rows]
        keys[:, :, position] = k
        values[:, :, position] = parts[:, 2]
        flat = (rows * self.heads, -1, dim)
        seen_keys, seen_values = keys.view(flat)[:, : position + 1], values.view(flat)[:, : position + 1]
        scores = torch.bmm(q.reshape(flat), seen_keys.transpose(1, 2))
        if layer.seen is not None:
            scores.masked_fill_(~layer.seen[position, : position + 1], -torch.inf)
        mixed = torch.bmm(scores.softmax(-1), seen_values)
        return mixed.view(rows, -1).to(self.runtime.dtype)

    def _normalise(self, x: Tensor) -> Tensor:
        if self.model.config.norm == "rms":
            return F.rms_norm(x, (self.head_dim,), None, 1e-6)
        return F.layer_norm(x, (self.head_dim,), None, None, 1e-6)

    @torch.inference_mode()
    def _equal_sizes(self) -> list[int]:
        """Sizes of a step whose rows equal, to the last bit, those of a whole tile; measured with these weights."""
        noise = torch.Generator().manual_seed(0)
        for cache in (self.keys, self.values):
            for part in cache:  # a layer at a time: the whole would be a second cache
                part.copy_(torch.randn(part.shape, generator=noise))
        vocab, last = self.model.shape.image_vocab, self.model.shape.num_image_tokens - 2
        tokens = torch.randint(vocab, (self.rows,), generator=noise).to(self.runtime.device)
        sizes = [2**i for i in range(self.rows.bit_length()) if 2**i < self.rows]
        for place in {0, max(0, last // 2), max(0, last)}:
            whole = self._step(tokens, place)
            sizes = [s for s in sizes if torch.equal(self._step(tokens[:s], place), whole[:s])]
        return [*sizes, self.rows]


class _Packer:
    """Packs linear layers in one way: compute type and kind of weights."""

    def __init__(self, dtype: torch.dtype, kind: str) -> None:
        self.dtype, self.kind = dtype, kind

    def __call__(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        return pack_linear(weight.detach().float(), None if bias is None else bias.detach(), self.dtype, self.kind)

    def gated(self, up: Tensor, down: Tensor) -> tuple[Linear, Linear]:
        """Up [2 hidden, dim] and down [dim, hidden], the hidden width filled with zeros to what int8 kernels take."""
        extra = -down.shape[1] % INT8_MULTIPLE
        wide = torch.cat([F.pad(half, (0, 0, 0, extra)) for half in up.chunk(2)])
        return self(wide), self(F.pad(down, (0, extra)))
