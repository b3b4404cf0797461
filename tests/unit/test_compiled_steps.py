"""A pass of the decoder in one compiled function, against torch's operators."""

from typing import Literal

import numpy as np
import pytest
import torch

from dalle_model.config import ModelConfig
from dalle_model.dalle import Dalle, DalleShape, build_dalle
from dalle_model.decoder import Decoder
from dalle_model.eager_steps import EagerSteps
from dalle_model.runtime import Runtime

kernels = pytest.importorskip("dalle_model.compiled_kernels", reason="Numba is not installed")
from dalle_model.compiled_steps import CompiledSteps  # noqa: E402

SHAPE = DalleShape(text_vocab=40, max_text_tokens=6, image_vocab=300, grid=8)


def fresh(norm: Literal["rms", "layer"] = "rms", mode: Literal["modern", "paper"] = "modern", heads: int = 2) -> Dalle:
    config = ModelConfig(dim=32, depth=2, heads=heads, norm=norm, mode=mode)
    model = build_dalle(config, SHAPE, Runtime().generator(0)).eval()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.2)
    return model


@pytest.mark.parametrize(
    ("kind", "dtype", "tolerance"),
    [
        ("full", torch.float32, 1e-5),
        ("half", torch.float32, 3e-4),
        ("full", torch.bfloat16, 3e-4),
        ("int8", torch.float32, 5e-2),
    ],
)
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_logits_equal_those_of_torch_in_float32(
    kind: str, dtype: torch.dtype, tolerance: float, norm: Literal["rms", "layer"]
) -> None:
    """Three rows with different beginnings, over the border of a span of keys; one row was copied from another.

    The captions are read by the unpacked model, in bfloat16 where the runtime says so: here they are given equal keys.
    """
    model = fresh(norm)
    plain = Decoder(model, Runtime(), "full", rows=4, steps=EagerSteps)
    packed = Decoder(model, Runtime(dtype=dtype), kind, rows=4, steps=CompiledSteps)
    packed.runtime = Runtime()
    prompts = [((1, 2), ()), ((1, 2), ()), ((7,), ())]
    assert torch.equal(plain.read(prompts), packed.read(prompts))
    tokens = torch.randint(300, (63, 3), generator=torch.Generator().manual_seed(5))
    wanted, got = (torch.stack([d.step(row, place) for place, row in enumerate(tokens)]) for d in (plain, packed))
    assert (wanted - got).square().mean().sqrt() < tolerance * wanted.std()
    assert got.isfinite().all() and not torch.equal(got[:, 0], got[:, 2])


@pytest.mark.parametrize("kind", ["full", "half", "int8"])
def test_a_row_is_the_same_to_the_bit_in_any_company(kind: str) -> None:
    decoder = Decoder(fresh(), Runtime(), kind, rows=16, steps=CompiledSteps)
    assert decoder.sizes == [1, 2, 4, 8, 16] and decoder.looks_ahead
    rows, places = torch.tensor([3, 3, 5, 9, 3]), torch.tensor([4, 5, 0, 62, 6])
    tokens = torch.tensor([7, 299, 0, 1, 2])
    together = decoder.advance(tokens, rows, places)
    for i in range(5):
        here = slice(i, i + 1)
        assert torch.equal(decoder.advance(tokens[here], rows[here], places[here])[0], together[i])


def test_threads_share_the_rows_and_change_no_bit() -> None:
    """Rows 0 to 4 for three threads: two of them take two rows or three, and the queries of a row stay together."""
    one, three = (Decoder(fresh(), Runtime(threads=n), "half", rows=8, steps=CompiledSteps) for n in (1, 3))
    rows, places = torch.tensor([4, 0, 0, 1, 2, 3, 3]), torch.tensor([9, 4, 5, 0, 62, 7, 6])
    assert [part.tolist() for part in three.steps._parts(rows.numpy())] == [[1, 2, 3, 4], [0, 5, 6]]  # type: ignore[attr-defined]
    for _ in range(3):  # what was written is read again
        tokens = torch.randint(300, (7,), generator=torch.Generator().manual_seed(5))
        assert torch.equal(one.advance(tokens, rows, places), three.advance(tokens, rows, places))
    with pytest.raises(IndexError, match="outside of the model"):
        three.advance(tokens, rows, places + 5)


@pytest.mark.parametrize("wrong", [(300, 0, 0), (-1, 0, 0), (0, 4, 0), (0, -1, 0), (0, 0, 64), (0, 0, -1)])
def test_ids_outside_of_the_model_or_its_cache_are_refused(wrong: tuple[int, int, int]) -> None:
    """Compiled code does not look at bounds, and would read and write memory that is not its own."""
    decoder = Decoder(fresh(), Runtime(), "int8", rows=4, steps=CompiledSteps)
    before = [part.copy() for part in decoder.steps._cache]  # type: ignore[attr-defined]
    with pytest.raises(IndexError, match="outside of the model or its cache"):
        decoder.advance(*(torch.tensor([0, w]) for w in wrong))
    assert all(np.array_equal(a, b) for a, b in zip(before, decoder.steps._cache, strict=True))  # type: ignore[attr-defined]


def test_the_exponential_is_right_to_the_last_digits() -> None:
    x = np.linspace(-87, 88, 4001, dtype=np.float32)
    got = x.copy()
    kernels._exponential(got, np.zeros(len(x), np.int32))
    wanted = np.exp(x.astype(np.float64))
    assert np.abs(got / wanted - 1).max() < 2e-7
    far = np.array([-np.inf, -1e30, 0.0], np.float32)
    kernels._exponential(far, np.zeros(3, np.int32))
    assert far[:2].max() < 1e-37 and far[2] == 1.0


def test_what_cannot_be_compiled_is_computed_by_torch() -> None:
    assert isinstance(Decoder(fresh(), Runtime(), rows=2).steps, CompiledSteps)
    assert isinstance(Decoder(fresh(mode="paper"), Runtime(), rows=2).steps, EagerSteps)
    assert isinstance(Decoder(fresh(heads=8), Runtime(), rows=2).steps, EagerSteps)  # heads of 4 channels
    assert CompiledSteps.takes(fresh(), Runtime(threads=2))
    assert CompiledSteps.takes(fresh(), Runtime(), most=1000)
    assert not CompiledSteps.takes(fresh(), Runtime(threads=2), most=1000)
