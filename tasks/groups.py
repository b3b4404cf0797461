"""One stage over several processes or machines: groups of its pieces, each made under the same fingerprint.

Whoever makes a piece commits its receipt, create-only; the stage itself then finds all receipts and commits the one
manifest. So who made what, in which order, and who died over it has no bearing on the artifact.
"""

from collections.abc import Mapping
from itertools import pairwise

from dalle_model.config import Section
from tasks.artifacts import ArtifactRef
from tasks.launch import Listener, launch
from tasks.settings import Settings
from tasks.step import Pieces, Stage, job_spec, load_dotted, look_up, open_store, plan


def groups_of(
    stage: Stage,
    config: Section,
    inputs: Mapping[str, ArtifactRef],
    settings: Settings,
    listener: Listener | None = None,
) -> list[tuple[int, int]]:
    """Ranges of pieces to share out; none when the settings ask for no groups or the artifact is there already.

    Raises UnsafeStore when several writers at once could overwrite each other.
    """
    if settings.shard_groups < 2 or not stage.pieces:
        return []
    store = open_store(settings)
    if look_up(plan(stage, config, inputs, settings, listener), store)[0] is not None:
        return []
    store.require_create_only()
    count_pieces: Pieces = load_dotted(stage.pieces)
    count = count_pieces(config, inputs, settings)
    groups = min(settings.shard_groups, count)
    edges = [count * g // groups for g in range(groups + 1)] if groups > 1 else []
    return list(pairwise(edges))


def run_pieces(
    stage: Stage,
    config: Section,
    inputs: Mapping[str, ArtifactRef],
    settings: Settings,
    group: tuple[int, int],
    listener: Listener | None = None,
) -> None:
    """Make pieces ``group[0]`` to ``group[1]`` - 1 of a stage in a child process; those with a receipt are not made again."""
    planned = plan(stage, config, inputs, settings, listener)
    if look_up(planned, open_store(settings))[0] is None:
        spec = job_spec(planned, settings, f"pieces {group[0]} to {group[1] - 1}").model_copy(update={"pieces": group})
        launch(spec, settings, listener or (lambda event: None))
