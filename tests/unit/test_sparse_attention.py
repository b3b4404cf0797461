"""Attention over what a token sees equals the dense mask, in values and gradients."""

import pytest
import torch
from torch import Tensor

from dalle_model.attention import sparse_mask
from dalle_model.config import ModelConfig
from dalle_model.dalle import Dalle, DalleShape, build_dalle
from dalle_model.errors import DataError
from dalle_model.runtime import Runtime
from dalle_model.sparse_attention import SparseLayout


def dense(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """The definition."""
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen, float("-inf"))
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("kind", ["row", "column", "conv"])
@pytest.mark.parametrize(("prefix", "grid", "missing"), [(5, 6, 1), (1, 4, 0), (9, 13, 1), (3, 2, 2), (2, 1, 0)])
def test_blocks_equal_the_dense_mask_in_values_and_gradients(kind: str, prefix: int, grid: int, missing: int) -> None:
    seen = sparse_mask(kind, prefix, grid)
    layout = SparseLayout(seen, prefix, grid, transposed=kind == "column")
    length = prefix + grid**2 - missing
    results = []
    for attend in (lambda q, k, v: dense(q, k, v, seen[:length, :length]), layout.attend):
        parts = [
            torch.randn(2, 3, length, 8, generator=torch.Generator().manual_seed(i)).requires_grad_() for i in range(3)
        ]
        out = attend(*parts)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        results.append([out.detach(), *(p.grad for p in parts)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_row_and_column_reach_one_block_back_and_the_window_of_eleven_six() -> None:
    reach = {
        kind: SparseLayout(sparse_mask(kind, 3, 16), 3, 16, transposed=kind == "column").reach
        for kind in ("row", "column", "conv")
    }
    assert reach == {"row": 1, "column": 1, "conv": 6}


def test_a_mask_that_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="none of 4 positions and a grid of 4"):
        SparseLayout(sparse_mask("row", 3, 4), 4, 4, transposed=False)
    with pytest.raises(DataError, match="later block"):
        SparseLayout(torch.ones(19, 19, dtype=torch.bool), 3, 4, transposed=False)


def test_a_long_model_takes_the_blocks_and_stays_the_same() -> None:
    config = ModelConfig(dim=16, depth=4, heads=2, mode="paper")
    shape = DalleShape(text_vocab=20, max_text_tokens=7, image_vocab=16, grid=23)  # 8 + 529 positions
    model = build_dalle(config, shape, Runtime().generator(0))
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.2)
    assert [layout.reach for layout in model.layouts] == [1, 6, 1]  # column, conv, row
    text, image = torch.randint(20, (1, 7)), torch.randint(16, (1, 529))
    results: list[list[Tensor]] = []
    layouts = model.layouts
    for used in (layouts, torch.nn.ModuleList()):
        model.layouts = used
        model.zero_grad()
        hidden = model(text, image)
        (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
        results.append([hidden.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    short = Dalle(config, shape.model_copy(update={"grid": 4}))
    assert len(short.layouts) == 0 and short.state_dict().keys() == model.state_dict().keys()
