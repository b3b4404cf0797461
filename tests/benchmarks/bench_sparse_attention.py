"""Paper mode: attention over blocks of the picture against the dense mask, forward and backward, interleaved in one run.

python tests/benchmarks/bench_sparse_attention.py [threads]
"""

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from dalle_model.attention import causal_attention, sparse_mask
from dalle_model.sparse_attention import SparseLayout

SHAPES = ((21, 8, 16), (65, 16, 2), (257, 32, 1))  # prefix, grid, rows
HEADS, HEAD_DIM, REPEATS = 4, 64, 5


def seconds(attend: Callable[[], Tensor]) -> float:
    """One forward and backward pass."""
    started = time.perf_counter()
    attend().float().sum().backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - started


def main() -> None:
    """Print a row of the table per shape, type and mask."""
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    print("| prefix + image | type | mask | dense ms | blocks ms | ratio |\n|---|---|---|---|---|---|")
    for prefix, grid, rows in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            length = prefix + grid**2 - 1
            q, k, v = (torch.randn(rows, HEADS, length, HEAD_DIM, dtype=dtype, requires_grad=True) for _ in range(3))
            for kind in ("row", "column", "conv"):
                seen = sparse_mask(kind, prefix, grid)
                layout = SparseLayout(seen, prefix, grid, transposed=kind == "column")
                dense, blocks = [], []
                for _ in range(REPEATS):
                    dense.append(seconds(lambda: causal_attention(q, k, v, seen[:-1, :-1])))  # noqa: B023 - called here
                    blocks.append(seconds(lambda: layout.attend(q, k, v)))  # noqa: B023
                a, b = (1e3 * min(times) for times in (dense, blocks))
                name = str(dtype).removeprefix("torch.")
                print(f"| {prefix} + {grid**2} | {name} | {kind} | {a:.1f} | {b:.1f} | {a / b:.2f} |", flush=True)


if __name__ == "__main__":
    main()
