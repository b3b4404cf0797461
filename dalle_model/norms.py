"""RMS norm (Zhang and Sennrich 2019, arXiv 1910.07467) with a gradient that torch's CPU kernels compute quickly."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def rms_norm(x: Tensor, gain: Tensor, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean(x²) + eps) * gain over the last axis: x [..., dim], gain [dim] of one type -> [..., dim].

    Equal to ``torch.nn.functional.rms_norm`` but for rounding. On a CPU the gradient is written out: there torch puts
    it together from elementary steps.
    """
    written_out = x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if written_out and (x.requires_grad or gain.requires_grad):
        out: Tensor = _RmsNorm.apply(x, gain, eps)  # type: ignore[no-untyped-call]
        return out
    return F.rms_norm(x, gain.shape, gain, eps)


class _RmsNorm(torch.autograd.Function):
    """With r = 1 / rms and h = x r: dx = r (dy gain - h mean(dy gain h)), dgain = sum of dy h over rows.

    Layer norm's gradient at a mean of zero is the same less r mean(dy gain); its fused kernel does the work, and that
    term is added again.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        r = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, gain, r)
        out: Tensor = (x * r).mul_(gain).to(x.dtype)
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, gain, r = ctx.saved_tensors  # type: ignore[attr-defined]
        dy, dim = grads[0].contiguous(), x.shape[-1]
        dx, dgain, _ = torch.ops.aten.native_layer_norm_backward(
            dy, x, [dim], torch.zeros_like(r), r, gain.to(r.dtype), None, [True, True, False]
        )
        lost = torch.mv(dy.view(-1, dim), gain).view(r.shape).mul(r).div_(dim)
        return dx + lost.to(dx.dtype), dgain.to(gain.dtype), None
