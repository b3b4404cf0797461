"""The transformer made ready for drawing: packed weights, a preallocated cache, one function per image token.

What a row computes must not depend on how many rows are beside it, yet matrix kernels are chosen by the number of
rows and may round differently. So rows are computed in tiles whose sizes were compared bit by bit on this machine
when the decoder was made (``Decoder.sizes``); a wave of rows is filled up to the next such size.

Axes: R rows of the cache, B <= R rows of a step, H heads, T positions, D channels of a head, V image codes.
"""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dalle_model.attention import LayerCache
from dalle_model.compiled_steps import CompiledSteps
from dalle_model.dalle import Dalle, KVCache
from dalle_model.eager_steps import EagerSteps
from dalle_model.errors import DataError
from dalle_model.runtime import Runtime
from dalle_model.token_batches import pad_text

_REPEATS = 3  # of each size of a pass, in turns, when their costs are measured
_RUN = 16  # neighbouring places of a row that a measured pass reads
Prefix = tuple[tuple[int, ...], tuple[int, ...]]  # caption ids, image tokens that are given


def tile_rows(device: torch.device) -> int:
    """Rows that are computed together at most."""
    return 64 if device.type == "cuda" else 32


class Steps(Protocol):
    """How passes are computed: packed weights and a cache of R rows."""

    @property
    def takes_several(self) -> bool:
        """Whether ``run`` takes several positions of one row."""

    def run(self, tokens: Tensor, rows: Tensor, places: Tensor, last: int, size: int) -> Tensor:
        """Image ids int64 [Q] at int64 ``places`` [Q] of ``rows`` [Q] -> float32 logits [Q, V] of the places after them.

        last: the largest place. size: of ``Decoder.sizes``, the number of queries to fill up to where that matters.
        """

    def put(self, row: int, layers: Sequence[LayerCache]) -> None:
        """Take the positions 0..n-1 of every layer, keys and values [1, H, n, D], as a row of the cache."""

    def copy(self, source: int, row: int, length: int) -> None:
        """Let ``row`` hold the first ``length`` positions of ``source``."""

    def shake(self, generator: torch.Generator) -> None:
        """Fill the cache with noise, for measurements."""


class Decoder:
    """Decodes image tokens of many pictures; holds its own packed copy of the weights.

    rows: rows of the cache, None = the tile of the device. sizes: how many queries a step is computed with.
    costs_s: seconds of a step of each size, measured once, where several places of a row can be read at once.
    steps: how passes are computed, None = compiled where that works. clock: seconds of this thread at work. Other
    programs' turns are not in them, and where torch computes with several threads, each has an equal share. say: told
    what takes long before the first picture.
    """

    def __init__(
        self,
        model: Dalle,
        runtime: Runtime,
        weights: str = "full",
        rows: int | None = None,
        steps: type[EagerSteps | CompiledSteps] | None = None,
        clock: Callable[[], float] = time.thread_time,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.model, self.runtime = model.to(runtime.device), runtime
        self.rows = rows or tile_rows(runtime.device)
        config, shape = model.config, model.shape
        self.prefix = shape.max_text_tokens + 1
        self._size = (len(model.blocks), config.heads, config.dim // config.heads)
        chosen = steps or (CompiledSteps if CompiledSteps.takes(model, runtime) else EagerSteps)
        self.steps: Steps = (
            CompiledSteps(model, runtime, weights, self.rows, say)
            if chosen is CompiledSteps
            else chosen(model, runtime, weights, self.rows)
        )
        self._first = torch.zeros(self.rows, shape.image_vocab, device=runtime.device)
        self._held: list[Prefix | None] = [None] * self.rows
        self.sizes = self._equal_sizes()
        self.costs_s = self._costs(clock) if self.looks_ahead else {}

    @property
    def looks_ahead(self) -> bool:
        """Whether ``advance`` takes several positions of one row."""
        return self.steps.takes_several

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
                self.steps.copy(source, row, self.prefix + len(prefix[1]))
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
        depth, heads, dim = self._size
        size = (1, heads, self.prefix + len(given), dim)
        layers = [LayerCache(*(torch.empty(size, device=device) for _ in range(2))) for _ in range(depth)]
        with self.runtime.autocast():
            logits = self.model.prefill(ids, KVCache(layers), image)
        if not bool(logits.isfinite().all()):
            raise DataError("the model's logits are not finite; its weights are damaged or its training diverged")
        self.steps.put(row, layers)
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
        size = next((s for s in self.sizes if s >= len(tokens)), self.rows)
        return self.steps.run(tokens, rows, places, last, size)

    @torch.inference_mode()
    def _equal_sizes(self) -> list[int]:
        """Sizes of a step whose rows equal, to the last bit, those of a whole tile; measured with these weights."""
        noise = torch.Generator().manual_seed(0)
        self.steps.shake(noise)
        last, tokens = self.model.shape.num_image_tokens - 2, self._some_tokens(noise)
        self.sizes = [*(2**i for i in range(self.rows.bit_length()) if 2**i < self.rows), self.rows]
        for place in {0, max(0, last // 2), max(0, last)}:
            whole = self.step(tokens, place)
            self.sizes = [s for s in self.sizes if torch.equal(self.step(tokens[:s], place), whole[:s])]
        return self.sizes

    @torch.inference_mode()
    def _costs(self, clock: Callable[[], float]) -> dict[int, float]:
        """Seconds of a pass of each size over runs of neighbouring places: the least of a few."""
        tokens = self._some_tokens(torch.Generator().manual_seed(1))
        width = max(1, min(_RUN, self.model.shape.num_image_tokens - 1))
        number = torch.arange(self.rows)
        rows, places = number // width, number % width
        took: dict[int, list[float]] = {size: [] for size in self.sizes}
        for _ in range(_REPEATS):
            for size, seconds in took.items():
                started = clock()
                self.advance(tokens[:size], rows[:size], places[:size])
                seconds.append(clock() - started)
        return {size: min(seconds) for size, seconds in took.items()}

    def _some_tokens(self, noise: torch.Generator) -> Tensor:
        return torch.randint(self.model.shape.image_vocab, (self.rows,), generator=noise).to(self.runtime.device)
