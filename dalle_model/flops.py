"""FLOPs of what runs inside a block, by torch's own formulas for products, convolutions and attention."""

from collections.abc import Mapping
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """``total``: FLOPs in the block so far, as ``torch.utils.flop_counter.FlopCounterMode`` counts them.

    That one has its calls wrapped to keep them out of compiled graphs, and the first one imports torch's compiler: 2 s
    of a CPU in every process that trains.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # no wrapper

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.total += int(count(*args, **(kwargs or {}), out_val=out))
        return out
