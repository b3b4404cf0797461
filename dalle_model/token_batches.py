"""Which rows form which batch: a pure function of (seed, step), so training resumes without loader state."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dalle_model.errors import DataError
from dalle_model.runtime import Runtime

_ORDER = 0x0D0E  # stream numbers under Runtime.seed


class RowOrder:
    """The order in which rows are seen: a fresh permutation per epoch, batches that run on across epoch borders.

    weights: how often a row is seen relative to the others, None = equal. With weights an epoch holds as many rows
    as there are, row i ``weights[i] / mean`` times, rounded by systematic sampling.
    """

    def __init__(
        self, num_rows: int, batch_size: int, runtime: Runtime, weights: NDArray[np.float32] | None = None
    ) -> None:
        if num_rows < 1:
            raise DataError("no rows to train on; check the split sizes of the curate step")
        if batch_size % runtime.world:
            raise DataError(
                f"batch_size {batch_size} must be a multiple of the {runtime.world} ranks; choose "
                f"{batch_size // runtime.world * runtime.world or runtime.world}"
            )
        if weights is not None and (
            len(weights) != num_rows or not np.isfinite(weights).all() or weights.min() < 0 or weights.sum() <= 0
        ):
            raise DataError(f"sample weights must be {num_rows} finite values of at least 0, not all 0")
        self.num_rows = num_rows
        self.batch_size = batch_size
        self._runtime = runtime
        self._weights = None if weights is None or bool((weights == weights[0]).all()) else weights.astype(np.float64)
        self._epochs: dict[int, NDArray[np.int64]] = {}

    def epoch(self, number: int) -> NDArray[np.int64]:
        """Row numbers of one epoch in order, int64 [num_rows]."""
        if number not in self._epochs:
            generator = self._runtime.generator(_ORDER, number)
            order = torch.randperm(self.num_rows, generator=generator).numpy()
            if self._weights is not None:
                edges = np.cumsum(self._weights) / self._weights.sum() * self.num_rows
                offset = float(torch.rand(1, generator=generator))
                drawn = np.searchsorted(edges, np.arange(self.num_rows) + offset, side="right")
                order = np.minimum(drawn, self.num_rows - 1)[order]
            order.flags.writeable = False  # batches are views of it
            self._epochs = {k: v for k, v in self._epochs.items() if k == number - 1} | {number: order}
        return self._epochs[number]

    def rows(self, step: int) -> NDArray[np.int64]:
        """Rows of the whole batch of update ``step``, int64 [batch_size], the same on every rank."""
        first = step * self.batch_size
        number, place = divmod(first, self.num_rows)
        if place + self.batch_size <= self.num_rows:
            return self.epoch(number)[place : place + self.batch_size]
        places = np.arange(first, first + self.batch_size)
        epochs = places // self.num_rows
        parts = [self.epoch(int(e))[places[epochs == e] % self.num_rows] for e in np.unique(epochs)]
        return np.concatenate(parts)

    def part(self) -> slice:
        """This rank's share of a batch."""
        per_rank = self.batch_size // self._runtime.world
        return slice(self._runtime.rank * per_rank, (self._runtime.rank + 1) * per_rank)


@dataclass(frozen=True)
class TokenRows:
    """All token rows of a split, read once.

    text uint16 [R, L] padded with 0, image uint16 [R, N], weights float32 [R].
    """

    text: NDArray[np.uint16]
    image: NDArray[np.uint16]
    weights: NDArray[np.float32]

    def __post_init__(self) -> None:
        if not len(self.text) == len(self.image) == len(self.weights):
            raise DataError(
                f"{len(self.text)} texts, {len(self.image)} pictures and {len(self.weights)} weights do not pair up"
            )

    def gather(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """(text int64 [B, L], image int64 [B, N]) of the given rows."""
        # take: a third of the time of an index with an array
        text, image = self.text.take(rows, 0).astype(np.int64), self.image.take(rows, 0).astype(np.int64)
        return torch.from_numpy(text), torch.from_numpy(image)


def rarity_weights(text: NDArray[np.uint16], power: float) -> NDArray[np.float32]:
    """Weights that show captions of rare words more often: (mean of -ln token frequency) ** power, mean 1.

    text uint16 [R, L] padded with 0 -> float32 [R]. A word that one picture has must be learnt from that picture
    alone; a word that a hundred have is learnt a hundred times per epoch.
    """
    counts = np.bincount(text.ravel(), minlength=1).astype(np.float64)
    counts[0] = 0
    information = -np.log(np.maximum(counts, 1) / max(counts.sum(), 1))
    there = text > 0
    mean = (information[text] * there).sum(1) / np.maximum(there.sum(1), 1)
    weights = np.maximum(mean, 1e-3) ** power
    scaled: NDArray[np.float32] = (weights / weights.mean()).astype(np.float32)
    return scaled


def pad_text(texts: list[list[int]], length: int) -> NDArray[np.uint16]:
    """Token lists -> uint16 [R, length], cut or padded with 0."""
    out = np.zeros((len(texts), length), dtype=np.uint16)
    for row, text in zip(out, texts, strict=True):
        cut = text[:length]
        row[: len(cut)] = cut
    return out
