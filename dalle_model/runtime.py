"""Where and how numbers are computed: one value, passed as an argument, never a global."""

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Runtime:
    """Device, precision, place in the group of ranks, and seed of one process.

    device: where parameters and batches live.
    dtype: compute type of matrix products (parameters stay float32; see ``autocast``).
    rank, world: this process among the data-parallel ones.
    seed: root of every random draw; all others derive from (seed, step, rank).
    threads: CPU threads of torch in this process.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    rank: int = 0
    world: int = 1
    seed: int = 0
    threads: int = 1

    def autocast(self) -> torch.autocast:
        """Mixed precision for this device: a no-op in float32."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def generator(self, *key: int) -> torch.Generator:
        """A CPU generator that is a pure function of (seed, *key), so that draws survive restarts."""
        mixed = _mix(self.seed)  # mixed first, or (seed 1, key 0) and (seed 0, key 1) would be one stream
        for part in key:
            mixed = _mix(mixed + part)
        generator = torch.Generator()
        generator.manual_seed(mixed & 0x7FFFFFFFFFFFFFFF)
        return generator


def _mix(value: int) -> int:
    """splitmix64: neighbouring values give unrelated 64-bit ones."""
    mask = 0xFFFFFFFFFFFFFFFF
    value = (value + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)
