"""A device that is none: tensors "on" it lie in memory, and can no more be mixed with those of the CPU than on a GPU.

What is on it calls itself ``meta``: the one device besides the CPU whose tensors every build of torch differentiates.
The code takes the paths that it takes on a GPU (``device.type != "cpu"``), with true values, and what CUDA or an Apple
GPU would refuse is refused: operations between devices, generators of the CPU, float64 (which Apple's have not).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.optim import optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
_aten = torch.ops.aten
# CUDA takes indices that lie on the CPU, and copies between devices.
_MAY_MIX = {
    _aten.index.Tensor,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
    _aten.copy_.default,
    _aten._to_copy.default,
}
# Of a wrapper torch refuses these, of a tensor on a GPU it does not.
_TO_PYTHON = {
    torch.Tensor.tolist,
    torch.Tensor.item,
    torch.Tensor.__bool__,
    torch.Tensor.__int__,
    torch.Tensor.__float__,
    torch.Tensor.__index__,
}


class OnDevice(torch.Tensor):
    """A tensor on the device; ``held`` is the one in memory."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "OnDevice":
        shape, stride, offset = held.shape, held.stride(), held.storage_offset()
        made: OnDevice = torch.Tensor._make_wrapper_subclass(
            cls, shape, stride, offset, dtype=held.dtype, device=DEVICE
        )
        made.held = held
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    assert all(isinstance(x, OnDevice) or x.device != DEVICE for x in tensors), f"{func}: a tensor without values"
    here = any(isinstance(x, OnDevice) for x in tensors)
    if here and func not in _MAY_MIX and any(not isinstance(x, OnDevice) and x.dim() for x in tensors):
        where = ["device" if isinstance(x, OnDevice) else "cpu" for x in tensors]
        raise RuntimeError(f"{func}: expected all tensors on the same device, but found {where}")
    wanted = kwargs.get("device")
    wanted = None if wanted is None else torch.device(wanted).type
    stays = wanted == DEVICE.type or (here and wanted is None)
    if stays and kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: a generator of the CPU for a tensor on the device")
    if wanted == DEVICE.type:
        kwargs = kwargs | {"device": torch.device("cpu")}
    in_memory = tree_map(lambda x: x.held if isinstance(x, OnDevice) else x, (args, kwargs))
    out = func(*in_memory[0], **in_memory[1])
    if not stays:
        return out
    if any(isinstance(x, torch.Tensor) and x.dtype == torch.float64 for x in tree_flatten(out)[0]):
        raise TypeError(f"{func}: the device has no float64")
    out = tree_map(lambda x: OnDevice(x) if isinstance(x, torch.Tensor) else x, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if here else out


class _Ops(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _TO_PYTHON and args and isinstance(args[0], OnDevice):
            args = (args[0].detach().held, *args[1:])
        kwargs = kwargs or {}
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu") == DEVICE:  # made below all modes
            return func(*args, **kwargs | {"device": "cpu"}).to(DEVICE)
        return func(*args, **kwargs)


@contextmanager
def pretend_gpu() -> Iterator[torch.device]:
    """The device, while the context lasts."""
    autocast = torch.autocast
    with ExitStack() as stack:
        for mode in (_Functions(), _Ops()):
            stack.enter_context(mode)
        # Two lists of known devices, which it is not on.
        stack.enter_context(mock.patch.object(torch, "autocast", lambda _, **options: autocast("cpu", **options)))
        stack.enter_context(
            mock.patch.object(optimizer, "_get_fused_kernels_supported_devices", lambda: ["cpu", "meta"])
        )
        # In inference mode torch makes no wrapper of a view of a weight.
        stack.enter_context(mock.patch.object(torch.inference_mode, "__enter__", _enter_without_gradients))
        stack.enter_context(mock.patch.object(torch.inference_mode, "__exit__", _exit_without_gradients))
        yield DEVICE


def _enter_without_gradients(mode: Any) -> None:
    mode.off = torch.no_grad()
    mode.off.__enter__()


def _exit_without_gradients(mode: Any, *raised: Any) -> None:
    mode.off.__exit__(*raised)
