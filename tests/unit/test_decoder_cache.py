"""Attention over cached keys and values: weighted sums of table rows against plain matrix products."""

import pytest
import torch

from dalle_model.attention import LayerCache
from dalle_model.decoder_cache import AttentionCache, BagCache, DenseCache

ROWS, HEADS, POSITIONS, DIM = 3, 2, 150, 8
CPU = torch.device("cpu")


def parts(count: int, seed: int) -> list[torch.Tensor]:
    dice = torch.Generator().manual_seed(seed)
    return [torch.randn(count, HEADS, DIM, generator=dice) for _ in range(3)]


def begun(cache: AttentionCache, length: int) -> AttentionCache:
    """Every row holds ``length`` positions, row 2 by a copy of row 1."""
    for row in (0, 1):
        dice = torch.Generator().manual_seed(row)
        cache.put(row, [LayerCache(*(torch.randn(1, HEADS, length, DIM, generator=dice) for _ in range(2)))])
    cache.copy(1, 2, length)
    return cache


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1e-2)])
@pytest.mark.parametrize("length", [1, 15, 63, 64])
@pytest.mark.parametrize("sparse", [False, True])
def test_sums_of_table_rows_equal_matrix_products(
    dtype: torch.dtype, tolerance: float, length: int, sparse: bool
) -> None:
    bags = begun(BagCache(1, ROWS, HEADS, POSITIONS, DIM, dtype), length)
    dense = begun(DenseCache(1, ROWS, HEADS, POSITIONS, DIM, torch.float32, CPU), length)
    seen = torch.rand(POSITIONS, POSITIONS, generator=torch.Generator().manual_seed(3)) < 0.5 if sparse else None
    if seen is not None:
        seen.fill_diagonal_(True)
    for position in range(length, length + 20):
        reads = [c.plan(torch.arange(ROWS), torch.full((ROWS,), position), position + 1) for c in (bags, dense)]
        q, k, v = parts(ROWS, position)
        got, wanted = (c.attend(0, q, k, v, r, seen).float() for c, r in zip((bags, dense), reads, strict=True))
        assert (got - wanted).abs().max() < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("length", [1, 7, 60, 64])
def test_positions_read_together_equal_those_read_one_by_one_to_the_bit(dtype: torch.dtype, length: int) -> None:
    """Also where the block ends on the way, and whatever the cache held at later positions."""
    one, many = (begun(BagCache(1, ROWS, HEADS, POSITIONS, DIM, dtype), length) for _ in range(2))
    junk = parts(8, 99)
    many.attend(0, *junk, many.plan(torch.ones(8).long(), torch.arange(length, length + 8), length + 8), None)
    q, k, v = parts(6, 5)
    places = torch.arange(length, length + 6)
    together = many.attend(0, q, k, v, many.plan(torch.ones(6).long(), places, length + 6), None)
    for i, place in enumerate(places.tolist()):
        here = slice(i, i + 1)
        reads = one.plan(torch.ones(1).long(), places[here], place + 1)
        assert torch.equal(one.attend(0, q[here], k[here], v[here], reads, None)[0], together[i])
