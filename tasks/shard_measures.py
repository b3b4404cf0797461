"""What is measured of each shard of pairs once and shared by all curations: features, embeddings, scores of models."""

from collections.abc import Callable

from dalle_model.errors import DataError
from tasks.artifacts import Manifest, ObjectRef, Part
from tasks.job import Job, load_ancestor

Receipts = Callable[[Manifest], str]
"""Fingerprint under which the receipts of a measure of a pairs artifact lie: what is measured, by which version."""
SHARD = "shard"  # what a receipt says it was made from: the key of the shard


def of_shards(
    job: Job, pairs: Manifest, receipts: Receipts, make: Callable[[ObjectRef, int], ObjectRef], unit: str
) -> list[ObjectRef]:
    """One object per shard of ``pairs``, in order; ``make`` is called for shards that nobody measured.

    A shard that ``pairs`` took over from the artifact it was built onto is not measured again, and its object is the
    same, so a set that grows costs what is new. A receipt counts only for the very content it was made from.
    """
    shared, shards = receipts(pairs), pairs.objects_of("pairs")
    receipted = set(job.store.parts(shared))
    own = _measured(job, pairs, shared)
    known = {} if len(own) == len(shards) else _of_ancestors(job, pairs, receipts)
    objects: list[ObjectRef] = []
    done = 0
    for number, shard in enumerate(shards):
        obj = own.get(number)
        if obj is None:
            obj = known.get(shard.key) or make(shard, number)
            if number in receipted:  # of a shard that was rewritten since
                job.store.delete(job.store.part_key(shared, number))
            job.store.commit_part(shared, number, Part(objects=(obj,), stats={SHARD: shard.key}))
        objects.append(obj)
        done += shard.rows
        job.progress(done, pairs.rows, unit=unit)
    return objects


def _measured(job: Job, pairs: Manifest, shared: str) -> dict[int, ObjectRef]:
    """What the receipts name and the store holds, by number of the shard."""
    shards = pairs.objects_of("pairs")
    found = {
        number: part.objects[0]
        for number, part in job.store.parts(shared).items()
        if number < len(shards) and part.stats.get(SHARD) == shards[number].key
    }
    missing = {obj.key for obj in job.store.missing(found.values())}
    return {number: obj for number, obj in found.items() if obj.key not in missing}


def _of_ancestors(job: Job, pairs: Manifest, receipts: Receipts) -> dict[str, ObjectRef]:
    """What was measured of the artifacts that ``pairs`` was built onto, by key of the shard."""
    known: dict[str, ObjectRef] = {}
    while any(used.name == "pairs" for used in pairs.inputs):
        try:
            pairs = load_ancestor(job.store, pairs, "pairs")
        except DataError:  # it was removed since: its shards are measured again
            break
        shards = pairs.objects_of("pairs")
        for number, obj in _measured(job, pairs, receipts(pairs)).items():
            known.setdefault(shards[number].key, obj)
    return known
