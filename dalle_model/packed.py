"""Linear layers packed once for decoding: few rows, the same weights again and again.

Kinds of weights: ``full``, the runtime's type (bfloat16 weights on a CPU are laid out once in oneDNN's own order
instead of anew at every call); ``half``, float16 weights, multiplied into float32 on a CPU; and ``int8``, one byte per
weight and one scale per output, multiplied into bfloat16.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Linear = Callable[[Tensor], Tensor]
INT8_MULTIPLE = 16  # torch's int8 kernel reads past the end of rows whose length is not a multiple of its lanes


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric rounding per output channel: float [N, K] -> (int8 [N, K], float32 scales [N])."""
    scales = weight.float().abs().amax(1).clamp_min(1e-12) / 127
    return (weight.float() / scales.unsqueeze(1)).round().to(torch.int8), scales


def pack_linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, kind: str) -> Linear:
    """A function [B, K] -> [B, N] for float32 weight [N, K]; kind: full, half or int8. It takes any floating type.

    The result is in ``dtype``, or on a CPU in float32 (float16 weights) or bfloat16 (8-bit weights).
    """
    device = weight.device.type
    if kind == "int8":
        return _with_bias(_int8(weight, dtype, device), bias)
    emulated = dtype == torch.bfloat16 and device == "cpu" and not _onednn_bfloat16()
    if (kind == "half" or emulated) and device == "cpu":
        # bfloat16 that the processor only emulates is 3 to 10 times slower than float32; float16 also rounds less
        return _float16(weight, bias) or _plain(weight, bias, torch.float32)
    if dtype == torch.bfloat16 and device == "cpu":
        return _onednn(weight, bias)
    return _plain(weight, bias, torch.float16 if kind == "half" else dtype)


def _plain(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Linear:
    cast = weight.to(dtype)
    cast_bias = None if bias is None else bias.to(dtype)
    return lambda x: F.linear(x.to(dtype), cast, cast_bias)


def _float16(weight: Tensor, bias: Tensor | None) -> Linear | None:
    """FBGEMM's product of float32 rows and packed float16 weights; None where it is missing or a weight overflows."""
    if bool(weight.abs().max() > torch.finfo(torch.float16).max):
        return None
    try:
        packed = torch.ops.quantized.linear_prepack_fp16(weight.contiguous(), None if bias is None else bias.float())
    except (AttributeError, RuntimeError):  # a build or processor without it
        return None
    call = torch.ops.quantized.linear_dynamic_fp16
    return lambda x: call(x.float(), packed)


def _with_bias(linear: Linear, bias: Tensor | None) -> Linear:
    if bias is None:
        return linear
    wide = bias.float()
    return lambda x: linear(x) + wide


def _int8(weight: Tensor, dtype: torch.dtype, device: str) -> Linear:
    rounded, scales = quantise(weight)
    if device == "cpu" and weight.shape[1] % INT8_MULTIPLE == 0:
        # the kernel for float32 rows is 20 times slower than that for bfloat16 ones
        cast = scales.bfloat16()
        return lambda x: torch._weight_int8pack_mm(x.bfloat16(), rounded, cast)
    wide = scales.to(dtype)  # no kernel here: the weights are small in memory, and widened at each use
    return lambda x: F.linear(x.to(dtype), rounded.to(dtype)) * wide


def _onednn_bfloat16() -> bool:
    # Private operators, as Inductor uses them when it freezes a model; F.linear stands in where they are missing.
    known = all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    return known and torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _onednn(weight: Tensor, bias: Tensor | None) -> Linear:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16().contiguous())
    cast = None if bias is None else bias.bfloat16()
    call = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: call(x.bfloat16(), packed, cast, "none", [], "")
