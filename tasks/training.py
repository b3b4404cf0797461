"""Training inside a step: checkpoints as receipts in the store, progress as events, ranks under torchrun."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dalle_model.checkpoint import TrainState
from dalle_model.config import OptimConfig
from dalle_model.errors import CorruptObject
from dalle_model.objectives import Objective
from dalle_model.runtime import Runtime
from dalle_model.training import FitResult, TrainingStopped, fit, training_bytes
from tasks.artifacts import ObjectRef, Part
from tasks.devices import preflight
from tasks.faults import fault_point
from tasks.job import Job, StopRequested

CHECKPOINT = "checkpoint"


@contextmanager
def training_runtime(job: Job, seed: int) -> Iterator[Runtime]:
    """This rank's Runtime with the training seed, inside a process group when there are several ranks."""
    runtime = replace(job.runtime, seed=seed)
    if runtime.world == 1:
        yield runtime
        return
    torch.distributed.init_process_group("nccl" if runtime.device.type == "cuda" else "gloo")
    try:
        yield runtime
    finally:
        torch.distributed.destroy_process_group()


def train(job: Job, objective: Objective, optim: OptimConfig, runtime: Runtime, *, data: str) -> FitResult:
    """Train to the end, from the newest checkpoint that is whole. ``data`` is the digest of what is trained on."""

    def report(point: dict[str, float]) -> None:
        figures = {k: v for k, v in point.items() if k in ("loss", "loss_image", "loss_text", "rows_per_s")}
        job.show_progress(int(point["step"]), optim.steps, "steps", **figures)

    def save(state: TrainState) -> None:
        _save(job, state, optim.keep_checkpoints)

    preflight(
        runtime,
        training_bytes(objective.network, optim, objective.critic),
        f"training {sum(p.numel() for p in objective.network.parameters()):,} parameters",
    )
    resume = newest_checkpoint(job)
    if resume is not None:
        job.log(f"goes on from the checkpoint at step {resume.step} of {optim.steps}")
    try:
        return fit(
            objective,
            optim,
            runtime,
            resume=resume,
            save=save,
            report=report,
            should_stop=lambda: job.stop_requested,
            data=data,
        )
    except TrainingStopped as stopped:
        job.log(str(stopped))
        raise StopRequested from stopped


def newest_checkpoint(job: Job) -> TrainState | None:
    """The newest undamaged checkpoint of this fingerprint; damaged ones are named in the log and passed over."""
    for step, part in sorted(job.parts().items(), reverse=True):
        for obj in part.objects:
            try:
                return TrainState.from_bytes(job.read(obj))
            except CorruptObject as error:
                job.log(f"the checkpoint at step {step} is damaged and is passed over: {error}")
    return None


def _save(job: Job, state: TrainState, keep: int) -> None:
    fault_point("checkpoint.before_object")
    obj = job.put(state.to_bytes(), ext="ckpt", role=CHECKPOINT)
    job.store.commit_part(job.fingerprint, state.step, Part(objects=(obj,), stats={"step": state.step}))
    fault_point("checkpoint.after_receipt")
    parts = sorted(job.parts().items())
    kept = {o.key for _, part in parts[-keep:] for o in part.objects}
    for step, part in parts[:-keep]:
        # The receipt first: a receipt without its object would be found damaged, an object without receipt is swept.
        job.store.delete(job.store.part_key(job.fingerprint, step))
        for old in part.objects:
            if old.key not in kept:
                job.store.delete(old.key)


def curve_object(job: Job, curve: list[dict[str, Any]]) -> ObjectRef:
    """The logged points as Parquet: column ``step`` and one float column per term."""
    # Sorted: points that came back from a checkpoint may have their terms in another order, and the bytes must not.
    names = ["step", *sorted({name for point in curve for name in point} - {"step"})]
    table = pa.table({name: pa.array([point.get(name) for point in curve], pa.float64()) for name in names})
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return job.put(out.getvalue(), ext="parquet", role="curve", rows=table.num_rows)
