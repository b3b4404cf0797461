"""Training inside a step: checkpoints as receipts in the store, progress as events, ranks under torchrun."""

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dalle_model.checkpoint import TrainState
from dalle_model.config import OptimConfig
from dalle_model.errors import CorruptObject
from dalle_model.objectives import Objective
from dalle_model.optim import unreached_peak
from dalle_model.runtime import Runtime
from dalle_model.sharding import write_shards
from dalle_model.training import FitResult, TrainingStopped, fit, training_bytes
from tasks.artifacts import ObjectRef, Part
from tasks.devices import preflight
from tasks.faults import fault_point
from tasks.job import Job, StopRequested
from tasks.live import SAMPLE, Draw, LiveView
from tasks.ranks import process_group

CHECKPOINT, SHARD = "checkpoint", "checkpoint.shard"


@contextmanager
def training_runtime(job: Job, seed: int) -> Iterator[Runtime]:
    """This rank's Runtime with the training seed, inside a process group when there are several ranks.

    Raises DeviceError when the ranks do not find each other within ``settings.group_s`` seconds.
    """
    runtime = replace(job.runtime, seed=seed)
    if runtime.world == 1:
        yield runtime
        return
    with process_group(runtime, deadline_s=job.settings.group_s):
        yield runtime


def train(
    job: Job,
    objective: Objective,
    optim: OptimConfig,
    runtime: Runtime,
    *,
    data: str,
    title: str = "Samples",
    draw: Draw | None = None,
) -> tuple[FitResult, tuple[ObjectRef, ...]]:
    """Train to the end, from the newest checkpoint that is whole; also the objects that the live view made.

    data: digest of what is trained on. draw: the network in eval mode -> a PNG called ``title``, made on rank 0 every
    ``sample_every`` updates.
    """

    def save(state: TrainState) -> None:
        _save(job, state, optim.keep_checkpoints, live.samples)

    preflight(
        runtime,
        training_bytes(objective.network, optim, objective.critic, world=runtime.world),
        f"training {sum(p.numel() for p in objective.network.parameters()):,} parameters",
    )
    if runtime.rank == 0 and (said := unreached_peak(optim)):
        job.log(said)
    live = LiveView(job, objective, optim, runtime, title, draw)
    resume, samples = newest_checkpoint(job)
    if resume is not None:
        job.log(f"goes on from the checkpoint at step {resume.step} of {optim.steps}")
    live.begin(resume.curve if resume else [], samples)
    try:
        result = fit(
            objective,
            optim,
            runtime,
            resume=resume,
            save=save,
            report=live.report,
            observe=live.observe,
            should_stop=lambda: job.stop_requested,
            data=data,
        )
    except TrainingStopped as stopped:
        job.log(str(stopped))
        raise StopRequested from stopped
    return result, live.objects(result.curve) if runtime.rank == 0 else ()


def newest_checkpoint(job: Job) -> tuple[TrainState | None, tuple[ObjectRef, ...]]:
    """The newest undamaged checkpoint of this fingerprint and the samples made before it; damaged ones are named in
    the log and passed over."""
    for step, part in sorted(job.parts().items(), reverse=True):
        try:
            return _read(job, part), tuple(o for o in part.objects if o.role == SAMPLE)
        except CorruptObject as error:
            job.log(f"the checkpoint at step {step} is damaged and is passed over: {error}")
    return None, ()


def _read(job: Job, part: Part) -> TrainState:
    state = TrainState.from_bytes(job.read(next(o for o in part.objects if o.role == CHECKPOINT)))
    if state.shards:
        state.folder = Path(tempfile.mkdtemp(prefix="shards-", dir=job.spool))
        for obj in (o for o in part.objects if o.role == SHARD):
            (state.folder / Path(obj.key).name).symlink_to(job.fetch(obj).absolute())
    return state


def _save(job: Job, state: TrainState, keep: int, samples: tuple[ObjectRef, ...]) -> None:
    fault_point("checkpoint.before_object")
    shards = _put_shards(job, state) if state.sharded else ()
    if job.rank != 0:
        return
    obj = job.put(replace(state, shards=len(shards)).to_bytes(), ext="ckpt", role=CHECKPOINT)
    objects = (obj, *shards, *samples)
    job.store.commit_part(job.fingerprint, state.step, Part(objects=objects, stats={"step": state.step}))
    fault_point("checkpoint.after_receipt")
    parts = sorted(job.parts().items())
    kept = {o.key for _, part in parts[-keep:] for o in part.objects}
    for step, part in parts[:-keep]:
        # The receipt first: a receipt without its object would be found damaged, an object without receipt is swept.
        job.store.delete(job.store.part_key(job.fingerprint, step))
        for old in part.objects:
            if old.key not in kept:
                job.store.delete(old.key)


def _put_shards(job: Job, state: TrainState) -> tuple[ObjectRef, ...]:
    """Store this rank's share of the sharded tensors; every rank gets the references of all, in the order of ranks."""
    with tempfile.TemporaryDirectory(prefix="shards-", dir=job.spool) as folder:
        files = write_shards(state.tensors, Path(folder))
        mine = [job.put(file, ext="safetensors", role=SHARD).model_dump() for file in files]
    lists: list[list[dict[str, Any]]] = [[] for _ in range(job.world)]
    torch.distributed.all_gather_object(lists, mine)
    return tuple(ObjectRef(**ref) for refs in lists for ref in refs)


def curve_object(job: Job, curve: list[dict[str, Any]]) -> ObjectRef:
    """The logged points as Parquet: column ``step`` and one float column per term."""
    # Sorted: points that came back from a checkpoint may have their terms in another order, and the bytes must not.
    names = ["step", *sorted({name for point in curve for name in point} - {"step"})]
    table = pa.table({name: pa.array([point.get(name) for point in curve], pa.float64()) for name in names})
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return job.put(out.getvalue(), ext="parquet", role="curve", rows=table.num_rows)
