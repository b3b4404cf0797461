"""Token batches in random order: ``python tests/benchmarks/bench_batches.py``.

Ours (``TokenRows`` with ``RowOrder``, whole epochs of shuffled batches as int64 tensors) against Hugging Face
``datasets`` with the torch format on the same rows, indexed batch by batch, and row by row through a DataLoader.
Seconds are of this process's CPU, the best of a few epochs: other programs cannot make them smaller.
"""

import platform
import time
from collections.abc import Callable, Iterable

import datasets
import numpy as np
import torch

from dalle_model.runtime import Runtime
from dalle_model.token_batches import RowOrder, TokenRows

ROWS, TOKENS, BATCH = 4096, 256, 16


def ours(image: np.ndarray) -> Callable[[int], Iterable[torch.Tensor]]:  # type: ignore[type-arg]
    """Both columns are gathered; the text is two tokens long, so that the work is the image's."""
    rows = TokenRows(np.ones((ROWS, 2), np.uint16), image, np.ones(ROWS, np.float32))
    order = RowOrder(ROWS, BATCH, Runtime())
    steps = ROWS // BATCH
    return lambda epoch: (rows.gather(order.rows(epoch * steps + i))[1] for i in range(steps))


def by_batch(image: np.ndarray) -> Callable[[int], Iterable[torch.Tensor]]:  # type: ignore[type-arg]
    """datasets, torch format, a list of row numbers at a time."""
    table = datasets.Dataset.from_dict({"image": image.astype(np.int64)}).with_format("torch")

    def epoch(number: int) -> Iterable[torch.Tensor]:
        order = np.random.default_rng(number).permutation(ROWS)
        return (table[order[i : i + BATCH].tolist()]["image"] for i in range(0, ROWS, BATCH))

    return epoch


def by_row(image: np.ndarray) -> Callable[[int], Iterable[torch.Tensor]]:  # type: ignore[type-arg]
    """datasets, torch format, through torch's DataLoader as its manual shows."""
    table = datasets.Dataset.from_dict({"image": image.astype(np.int64)}).with_format("torch")
    loader = torch.utils.data.DataLoader(table, batch_size=BATCH, shuffle=True)  # type: ignore[arg-type,var-annotated]
    return lambda _: (batch["image"] for batch in loader)


def main() -> None:
    """One line per way."""
    torch.set_num_threads(1)
    image = np.random.default_rng(0).integers(0, 8192, (ROWS, TOKENS)).astype(np.uint16)
    ways = {"ours": ours(image), "datasets, batches": by_batch(image), "datasets, DataLoader": by_row(image)}
    best = dict.fromkeys(ways, float("inf"))
    for epoch in range(4):
        for name, way in ways.items():
            started = time.process_time()
            seen = sum(batch.numel() for batch in way(epoch))
            best[name] = min(best[name], time.process_time() - started)
            assert seen == ROWS * TOKENS and batch_is_int64(way)
    print(f"{ROWS} rows of {TOKENS} tokens, batches of {BATCH}, {platform.machine()}, datasets {datasets.__version__}")
    print("| way | M tokens per CPU second | ours is faster by |\n|---|---|---|")
    for name, taken in best.items():
        print(f"| {name} | {ROWS * TOKENS / taken / 1e6:.1f} | {taken / best['ours']:.1f} |")


def batch_is_int64(way: Callable[[int], Iterable[torch.Tensor]]) -> bool:
    """What the model takes."""
    return next(iter(way(0))).dtype == torch.int64


if __name__ == "__main__":
    main()
