"""The transformer made ready for drawing: packed weights, a preallocated cache, one function per image token.

What a row computes must not depend on how many rows are beside it, yet matrix kernels are chosen by the number of
rows and may round differently. So rows are computed in tiles whose sizes were compared bit by bit on this machine
when the decoder was made (``Decoder.sizes``); a wave of rows is filled up to the next such size.

Axes: R rows of the cache, B <= R rows of a step, H heads, T positions, D channels of a head, V image codes.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle_model.attention import LayerCache, Norm
from dalle_model.dalle import Block, Dalle, GeluMlp, KVCache, SwiGlu
from dalle_model.decoder_cache import AttentionCache, BagCache, DenseCache, Reads
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
    """Decodes image tokens of many pictures; holds its own packed copy of the weights.

    rows: rows of the cache, None = the tile of the device. sizes: how many queries a step is computed with.
    costs_s: seconds of a step of each size, measured once.
    """

    def __init__(self, model: Dalle, runtime: Runtime, weights: str = "full", rows: int | None = None) -> None:
        self.model, self.runtime = model.to(runtime.device), runtime
        self.rows = rows or tile_rows(runtime.device)
        config, shape = model.config, model.shape
        self.prefix = shape.max_text_tokens + 1
        self.heads, self.head_dim = config.heads, config.dim // config.heads
        with torch.no_grad():
            pack = _Packer(runtime.dtype, weights)
            self.layers = [self._layer(block, seen, pack) for block, seen in model.decoder_layers()]
            self.head = pack(model.image_vectors())
            self.table, self.places = (t.detach().clone() for t in model.image_tables())
            self.norm_out = model.norm_out
        self.cache = self._new_cache(runtime.dtype == torch.float32 and weights == "full")
        self._first = torch.zeros(self.rows, shape.image_vocab, device=runtime.device)
        self._held: list[Prefix | None] = [None] * self.rows
        self.costs_s: dict[int, float] = {}
        self.sizes = self._equal_sizes()

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
    def looks_ahead(self) -> bool:
        """Whether ``advance`` takes several positions of one row."""
        return isinstance(self.cache, BagCache)

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
                source = self._held.index(prefix)
                self.cache.copy(source, row, self.prefix + len(prefix[1]))
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
        device = self.runtime.device
        ids = torch.from_numpy(pad_text([list(text)], self.prefix - 1).astype("int64")).to(device)
        image = torch.tensor([given], dtype=torch.long, device=device) if given else None
        size = (1, self.heads, self.prefix + len(given), self.head_dim)
        layers = [LayerCache(*(torch.empty(size, device=device) for _ in range(2))) for _ in self.layers]
        with self.runtime.autocast():
            logits = self.model.prefill(ids, KVCache(layers), image)
        if not bool(logits.isfinite().all()):
            raise DataError("the model's logits are not finite; its weights are damaged or its training diverged")
        self.cache.put(row, layers)
        return logits[0]

    @torch.inference_mode()
    def step(self, tokens: Tensor, place: int) -> Tensor:
        """Image ids int64 [B] of the first B rows at ``place`` -> float32 logits [B, V] of place + 1."""
        return self._run(tokens, torch.arange(len(tokens)), torch.full((len(tokens),), place), place)

    @torch.inference_mode()
    def advance(self, tokens: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        """Image ids int64 [Q] at int64 ``places`` [Q] of ``rows`` [Q] -> float32 logits [Q, V] of the places after them.

        Several places of one row are read at once, each seeing those before it; what the cache held there is replaced.
        Bit by bit what as many calls of ``step`` give. On a CPU only (``looks_ahead``).
        """
        return self._run(tokens, rows, places, int(places.max()))

    def _run(self, tokens: Tensor, rows: Tensor, places: Tensor, last: int) -> Tensor:
        device, count = self.runtime.device, len(tokens)
        size = next((s for s in self.sizes if s >= count), self.rows)
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

    @torch.inference_mode()
    def _equal_sizes(self) -> list[int]:
        """Sizes of a step whose rows equal, to the last bit, those of a whole tile; measured with these weights."""
        noise = torch.Generator().manual_seed(0)
        self.cache.shake(noise)
        vocab, last = self.model.shape.image_vocab, self.model.shape.num_image_tokens - 2
        tokens = torch.randint(vocab, (self.rows,), generator=noise).to(self.runtime.device)
        self.sizes = [*(2**i for i in range(self.rows.bit_length()) if 2**i < self.rows), self.rows]
        for place in {0, max(0, last // 2), max(0, last)}:
            whole = self.step(tokens, place)
            self.sizes = [s for s in self.sizes if torch.equal(self._timed(tokens[:s], place), whole[:s])]
        return self.sizes

    def _timed(self, tokens: Tensor, place: int) -> Tensor:
        started = time.perf_counter()
        logits = self.step(tokens, place)
        took, known = time.perf_counter() - started, self.costs_s.get(len(tokens), math.inf)
        self.costs_s[len(tokens)] = min(took, known)
        return logits


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
