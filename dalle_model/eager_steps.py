"""The decoder's passes by torch's operators, on any device and for every kind of model; see ``decoder``.

Axes: R rows of the cache, B <= R rows of a step, Q queries, H heads, T positions, D channels of a head, V image codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle_model.attention import LayerCache, Norm
from dalle_model.dalle import Block, Dalle, GeluMlp, SwiGlu
from dalle_model.decoder_cache import AttentionCache, BagCache, DenseCache, Reads
from dalle_model.errors import DataError
from dalle_model.packed import INT8_MULTIPLE, Linear, pack_linear
from dalle_model.runtime import Runtime


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


class EagerSteps:
    """Packed weights and a cache of ``rows`` pictures; ``kind`` of weights: full, half or int8."""

    def __init__(self, model: Dalle, runtime: Runtime, kind: str, rows: int) -> None:
        self.model, self.runtime, self.rows = model, runtime, rows
        config, shape = model.config, model.shape
        self.prefix = shape.max_text_tokens + 1
        self.heads, self.head_dim = config.heads, config.dim // config.heads
        with torch.no_grad():
            pack = _Packer(runtime.dtype, kind)
            self.layers = [self._layer(block, seen, pack) for block, seen in model.decoder_layers()]
            self.head = pack(model.image_vectors())
            self.table, self.places = (t.detach().clone() for t in model.image_tables())
            self.norm_out = model.norm_out
        self.cache = self._new_cache(runtime.dtype == torch.float32 and kind == "full")

    def _new_cache(self, exact: bool) -> AttentionCache:
        shape, device = self.model.shape, self.runtime.device
        positions = self.prefix + shape.num_image_tokens - 1
        size = (len(self.layers), self.rows, self.heads, positions, self.head_dim)
        # without query-key norm nothing bounds a key, and float16 ends at 65504
        small = torch.float32 if exact or self.model.config.mode != "modern" else torch.float16
        if device.type == "cpu" and BagCache.works(small):
            return BagCache(*size, small)
        # bfloat16 attention is 3 times slower than float32 on CPUs
        return DenseCache(*size, torch.float32 if device.type == "cpu" else self.runtime.dtype, device)

    @property
    def takes_several(self) -> bool:
        """Whether ``run`` takes several positions of one row."""
        return isinstance(self.cache, BagCache)

    def put(self, row: int, layers: Sequence[LayerCache]) -> None:
        """As ``Steps``."""
        self.cache.put(row, layers)

    def copy(self, source: int, row: int, length: int) -> None:
        """As ``Steps``."""
        self.cache.copy(source, row, length)

    def shake(self, generator: torch.Generator) -> None:
        """As ``Steps``."""
        self.cache.shake(generator)

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

    def run(self, tokens: Tensor, rows: Tensor, places: Tensor, last: int, size: int) -> Tensor:
        """As ``Steps``."""
        device, count = self.runtime.device, len(tokens)
        places = places.to(device)
        reads = self.cache.plan(rows.to(device), places + self.prefix, last + self.prefix + 1)
        # only what mixes no rows is computed with rows that fill up: attention takes each query alone
        x = F.embedding(_filled(tokens, size), self.table) + self.places[_filled(places, size)]
        for number, layer in enumerate(self.layers):
            mixed = self._attend(layer, number, layer.qkv(layer.norm_attention(x))[:count], places, reads)
            x.add_(layer.out(_filled(mixed, size)))
            h = layer.up(layer.norm_mlp(x))
            if layer.gated:
                gate, value = h.chunk(2, dim=-1)
                h = F.silu(gate) * value
            else:
                h = F.gelu(h)
            x.add_(layer.down(h))
        logits: Tensor = self.head(self.norm_out(x))[:count].float()
        return logits

    def _attend(self, layer: _Layer, number: int, qkv: Tensor, places: Tensor, reads: Reads) -> Tensor:
        """[Q, 3 dim] -> [Q, dim]; the cache of this layer gains the positions of the queries."""
        rows, dim = len(qkv), self.head_dim
        parts = qkv.view(rows, 3, self.heads, dim)
        if layer.turn is None or layer.turn_swapped is None:
            q, k = parts[:, 0].float() * dim**-0.5, parts[:, 1]
        else:
            # normalise queries and keys together, then turn the pairs (i, i + D/2): two products and one sum
            unit = self._normalise(parts[:, :2].float())
            swapped = unit.view(rows, 2, self.heads, 2, dim // 2).flip(3).view(rows, 2, self.heads, dim)
            turned = torch.addcmul(unit * layer.turn[places], swapped, layer.turn_swapped[places])
            q, k = turned[:, 0], turned[:, 1]
        return self.cache.attend(number, q, k, parts[:, 2], reads, layer.seen)

    def _normalise(self, x: Tensor) -> Tensor:
        if self.model.config.norm == "rms":
            return F.rms_norm(x, (self.head_dim,), None, 1e-6)
        return F.layer_norm(x, (self.head_dim,), None, None, 1e-6)


def _filled(x: Tensor, size: int) -> Tensor:
    """Rows of zeros after those of x [n, ...], up to ``size``."""
    return x if len(x) == size else torch.cat([x, x.new_zeros(size - len(x), *x.shape[1:])])


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
