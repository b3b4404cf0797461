"""Where a process stands among those of its job."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """This process among those of its job: rank of world, and local_rank of local_world on this machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @classmethod
    def of_torchrun(cls, env: Mapping[str, str]) -> "Place":
        """What torchrun says in the environment; a process that it did not start is alone."""
        names = ("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1)
        return cls(*(int(env.get(name, default)) for name, default in names))

    @property
    def spoken_events(self) -> frozenset[str] | None:
        """Events that this process reports, None = all: rank 0 tells the story, the first of each machine that it lives."""
        if self.rank == 0:
            return None
        return frozenset({"error", "alive"}) if self.local_rank == 0 else frozenset({"error"})
