"""The decoder's passes on a CPU through ``compiled_kernels``: weights, cache and scratch as that reads them.

Axes: Q queries, L layers, R rows of the cache, H heads, D channels of a head, T positions, N image places, V codes.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dalle_model.attention import LayerCache
from dalle_model.dalle import Dalle, SwiGlu
from dalle_model.runtime import Runtime

Array = NDArray[np.generic]
_ROWS_A_THREAD = 2  # at least: two rows take much less than twice the time of one
_LEVELS = {torch.int8: 127, torch.int16: 32767}


class CompiledSteps:
    """Packed weights and a cache of ``rows`` pictures; ``kind`` of weights: full, half or int8.

    Weights are float32 where kind is full and the runtime computes in float32, else 16-bit or, for int8, 8-bit integers
    with a float32 scale per output. Keys and values are of the same type, with a scale per position and head. All sums
    are float32. With ``runtime.threads`` each thread computes some rows. ``say`` is told when it is being compiled.
    """

    def __init__(
        self, model: Dalle, runtime: Runtime, kind: str, rows: int, say: Callable[[str], None] = lambda text: None
    ) -> None:
        from dalle_model import compiled_kernels

        self._kernels = compiled_kernels
        exact = kind == "full" and runtime.dtype == torch.float32
        self._type = torch.float32 if exact else torch.int8 if kind == "int8" else torch.int16
        config, shape = model.config, model.shape
        self._vocab, self._prefix = shape.image_vocab, shape.max_text_tokens + 1
        self._centred = config.norm == "layer"
        with torch.no_grad():
            self._inputs = tuple(t.detach().float().contiguous().numpy().copy() for t in model.image_tables())
            self._pack(model)
            self._turns = _turns(model, self._prefix)
        heads, dim, span = config.heads, config.dim // config.heads, compiled_kernels.SPAN
        spans = -(-(self._prefix + shape.num_image_tokens) // span)
        size, kept = (config.depth, rows, heads), self._type
        self._keys = torch.zeros(*size, spans, dim * span, dtype=kept)
        self._values = torch.zeros(*size, spans * span, dim, dtype=kept)
        self._key_scales, self._value_scales = (torch.ones(*size, spans * span) for _ in range(2))
        parts = (self._keys, self._key_scales, self._values, self._value_scales)
        self._cache = tuple(t.numpy() for t in parts)
        threads = max(1, min(runtime.threads, rows // _ROWS_A_THREAD))
        sizes = (config.dim, config.hidden, rows, spans * span, dim)
        self._scratch = [self._new_scratch(*sizes) for _ in range(threads)]
        self._threads = ThreadPoolExecutor(threads - 1, "decode") if threads > 1 else None
        self._compile(f"drawing with {kind} weights", say)

    def _compile(self, what: str, say: Callable[[str], None]) -> None:
        """A first pass over one token: the row that it writes is read by nobody."""
        from dalle_model.compiling import first_call

        none = np.zeros(1, np.int64)
        logits = np.empty((1, self._scales[-1].shape[-1]), np.float32)
        arguments = self._arguments((none, none, none), self._scratch[0], logits)
        first_call(self._kernels.decode, arguments, self._kernels.PARTS, say, what, "10 to 20 s")

    def _pack(self, model: Dalle) -> None:
        blocks = [block for block, _ in model.decoder_layers()]
        of_layers = [
            [b.attention.qkv.weight for b in blocks],
            [b.attention.out.weight for b in blocks],
            [cast(SwiGlu, b.mlp).up.weight for b in blocks],
            [cast(SwiGlu, b.mlp).down.weight for b in blocks],
        ]
        packed = [_stacked([self._packed(w) for w in weights]) for weights in of_layers]
        packed.append(self._packed(model.image_vectors()))
        self._matrices, self._scales = (tuple(part[i] for part in packed) for i in range(2))
        gains = [gain for b in blocks for gain in (b.norm_attention.gain, b.norm_mlp.gain)]
        self._gains = _array(torch.stack([*gains, model.norm_out.gain]))

    def _packed(self, weight: Tensor) -> tuple[Array, Array]:
        """[N, K] -> (blocks of outputs, input by input [N / BLOCK, K * BLOCK], scales float32 [N]), N filled up."""
        width, weight = self._kernels.BLOCK, weight.detach().float()
        scales = torch.ones(len(weight))
        if levels := _LEVELS.get(self._type):
            scales = weight.abs().amax(1).clamp_min(1e-12) / levels
            weight = (weight / scales.unsqueeze(1)).round().to(self._type)
        extra = -len(weight) % width
        weight = torch.cat([weight, weight.new_zeros(extra, weight.shape[1])])
        group, unroll = self._kernels.GROUP, self._kernels.UNROLL
        split = weight.view(-1, width // group, group, weight.shape[1] // unroll, unroll)
        return split.permute(0, 3, 1, 4, 2).flatten(1).contiguous().numpy(), torch.cat(
            [scales, torch.ones(extra)]
        ).numpy()

    def _new_scratch(self, dim: int, hidden: int, rows: int, positions: int, head_dim: int) -> tuple[Array, ...]:
        """What ``decode`` writes on the way, in its order."""
        block = self._kernels.BLOCK
        widths = (dim, dim, *(scale.shape[-1] for scale in (self._scales[0],)), dim, self._scales[1].shape[-1])
        by_query = [np.zeros((rows, n), np.float32) for n in (*widths, self._scales[2].shape[-1], hidden)]
        sums = np.zeros(rows * block, np.float32)
        vectors, scores = np.zeros((2, head_dim), np.float32), np.zeros(positions, np.float32)
        powers, lanes = np.zeros(max(positions, hidden), np.int32), np.zeros(self._kernels.LANES, np.float32)
        return (*by_query, sums, vectors, scores, powers, lanes)

    @staticmethod
    def takes(model: Dalle, runtime: Runtime, most: int = 50_000_000) -> bool:
        """Whether a model's passes can be compiled: on a CPU, modern, heads of a multiple of 8 channels, Numba installed.

        Not where several threads have more than ``most`` weights to read: a row is computed by one thread, by torch by all.
        """
        config = model.config
        fits = runtime.device.type == "cpu" and config.mode == "modern" and config.dim // config.heads % 8 == 0
        fits = fits and (runtime.threads == 1 or sum(p.numel() for p in model.blocks.parameters()) <= most)
        if not fits:
            return False
        try:
            import dalle_model.compiled_kernels  # noqa: F401
        except ImportError:  # no Numba here, or one that does not know this numpy
            return False
        return True

    @property
    def takes_several(self) -> bool:
        """Whether ``run`` takes several positions of one row: yes."""
        return True

    def run(self, tokens: Tensor, rows: Tensor, places: Tensor, last: int, size: int) -> Tensor:
        """As ``decoder.Steps``; no query is computed otherwise beside others, so ``size`` is not needed."""
        queries = tuple(t.contiguous().numpy() for t in (tokens, rows, places))
        logits = np.empty((len(tokens), self._scales[-1].shape[-1]), np.float32)
        if self._threads is None or (parts := self._parts(queries[1])) is None:
            known = self._decode(queries, self._scratch[0], logits)
        else:
            known = self._decode_parts(self._threads, queries, parts, logits)
        if not known:
            raise IndexError(f"tokens, rows or places outside of the model or its cache: {tokens}, {rows}, {places}")
        return torch.from_numpy(logits)[:, : self._vocab]

    def _parts(self, rows: Array) -> list[NDArray[np.intp]] | None:
        """Queries of each thread: those of a row stay together, as they read each other's keys; None = one thread."""
        different = np.unique(rows)
        count = min(len(self._scratch), len(different) // _ROWS_A_THREAD)
        if count < 2:
            return None
        return [np.flatnonzero(np.isin(rows, part)) for part in np.array_split(different, count)]

    def _decode_parts(
        self, threads: ThreadPoolExecutor, queries: tuple[Array, ...], parts: list[NDArray[np.intp]], logits: Array
    ) -> bool:
        def work(number: int) -> bool:
            mine = parts[number]
            out = np.empty((len(mine), logits.shape[1]), np.float32)
            known = self._decode(tuple(q[mine] for q in queries), self._scratch[number], out)
            logits[mine] = out
            return known

        others = [threads.submit(work, number) for number in range(1, len(parts))]
        known = [work(0)]  # this thread takes its share, so that its own time is the cost of the pass
        return all(known + [other.result() for other in others])

    def _decode(self, queries: tuple[Array, ...], scratch: tuple[Array, ...], logits: Array) -> bool:
        known: bool = self._kernels.decode(*self._arguments(queries, scratch, logits))
        return known

    def _arguments(self, queries: tuple[Array, ...], scratch: tuple[Array, ...], logits: Array) -> tuple[Any, ...]:
        return (
            *queries, self._prefix, self._centred, self._inputs, self._gains, self._matrices, self._scales, self._turns,
            self._cache, scratch, logits
        )  # fmt: skip

    def put(self, row: int, layers: Sequence[LayerCache]) -> None:
        """Take the positions 0..n-1 of every layer, keys and values [1, H, n, D], as a row."""
        span = self._kernels.SPAN
        for number, layer in enumerate(layers):
            length = layer.keys.shape[2]
            keys, self._key_scales[number, row, :, :length] = self._kept(layer.keys[0])
            values, self._value_scales[number, row, :, :length] = self._kept(layer.values[0])
            self._values[number, row, :, :length] = values
            for block, start in enumerate(range(0, length, span)):
                part = keys[:, start : start + span].transpose(1, 2)  # [H, D, up to SPAN]
                self._keys[number, row, :, block].view(*part.shape[:2], span)[:, :, : part.shape[2]] = part

    def _kept(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[H, n, D] -> (as the cache holds it, scales [H, n])."""
        levels = _LEVELS.get(self._keys.dtype)
        if levels is None:
            return x.float(), torch.ones(x.shape[:2])
        scales = x.float().abs().amax(-1) / levels
        scales = torch.where(scales == 0, 1.0, scales)
        return (x.float() / scales.unsqueeze(-1)).round().to(self._keys.dtype), scales

    def copy(self, source: int, row: int, length: int) -> None:
        """Let ``row`` hold the first ``length`` positions of ``source``."""
        spans = -(-length // self._kernels.SPAN)
        self._keys[:, row, :, :spans] = self._keys[:, source, :, :spans]
        for part in (self._values, self._key_scales, self._value_scales):
            part[:, row, :, :length] = part[:, source, :, :length]

    def shake(self, generator: torch.Generator) -> None:
        """Fill the cache with noise, for measurements."""
        unit = _LEVELS.get(self._keys.dtype, 4) / 4
        for part in (self._keys, self._values):
            for layer in part:  # one at a time: the whole would be a second cache
                layer.copy_(torch.randn(layer.shape, generator=generator).mul_(unit).clamp_(-4 * unit, 4 * unit))
        self._key_scales.fill_(1 / unit)
        self._value_scales.fill_(1 / unit)


def _array(x: Tensor) -> Array:
    return cast(Array, x.detach().float().contiguous().numpy().copy())


def _stacked(parts: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    return np.stack([w for w, _ in parts]), np.stack([s for _, s in parts])


def _turns(model: Dalle, prefix: int) -> tuple[Array, Array]:
    """Gains of query-key norm times cosines and sines of the image places, [L, N, 2, D] each; queries scaled by D^-1/2.

    The second is for the vector with its halves exchanged: (a, b) turns to (a cos - b sin, b cos + a sin).
    """
    cos, sin = model.rotary[:, prefix:].unsqueeze(2).float()  # [N, 1, D / 2] each
    turns, swapped = [], []
    for block, _ in model.decoder_layers():
        attention = block.attention
        gains = torch.stack([attention.norm_q.gain, attention.norm_k.gain]).detach().float()  # [2, D]
        gains[0] *= attention.head_dim**-0.5
        turns.append(gains * torch.cat([cos, cos], -1))
        swapped.append(gains.roll(attention.head_dim // 2, -1) * torch.cat([-sin, sin], -1))
    return _array(torch.stack(turns)), _array(torch.stack(swapped))
