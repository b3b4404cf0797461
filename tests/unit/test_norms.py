"""RMS norm with its gradient written out against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from dalle_model.norms import rms_norm


def _inputs(dtype: torch.dtype, *shape: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    x, dy = (torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2))
    gain = 1 + 0.3 * torch.randn(shape[-1], generator=generator, dtype=torch.float64)
    return (3 * x + 0.7).to(dtype).requires_grad_(), gain.to(dtype).requires_grad_(), dy.to(dtype)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("shape", [(7, 24), (2, 5, 3, 16), (1, 8)])
def test_values_and_gradients_are_those_of_torch(dtype: torch.dtype, rtol: float, shape: tuple[int, ...]) -> None:
    x, gain, dy = _inputs(dtype, *shape)
    made = rms_norm(x, gain)
    assert made.dtype == dtype
    made.backward(dy)
    truth_x, truth_gain = x.detach().double().requires_grad_(), gain.detach().double().requires_grad_()
    truth = F.rms_norm(truth_x, truth_gain.shape, truth_gain, 1e-6)
    truth.backward(dy.double())
    for found, wanted in ((made, truth), (x.grad, truth_x.grad), (gain.grad, truth_gain.grad)):
        assert found is not None
        assert wanted is not None
        torch.testing.assert_close(found.double(), wanted, rtol=rtol, atol=rtol * float(wanted.detach().abs().max()))


def test_gradients_are_the_slopes_even_where_the_input_is_nearly_nothing() -> None:
    x, gain, _ = _inputs(torch.float64, 3, 6)
    with torch.no_grad():
        x[1] = 1e-3 * x[1]  # eps counts there
    assert torch.autograd.gradcheck(lambda a, g: rms_norm(a, g, 1e-2), (x, gain))


def test_a_gradient_that_comes_transposed_is_taken_as_it_is_meant() -> None:
    x, gain, dy = _inputs(torch.float64, 4, 6)
    rms_norm(x, gain).backward(dy.T.contiguous().T)
    first, x.grad = x.grad, None
    rms_norm(x, gain).backward(dy)
    assert x.grad is not None
    torch.testing.assert_close(first, x.grad)
