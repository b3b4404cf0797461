"""The dual encoder of an evaluation: trained once per curated data, found again by every later evaluation of it."""

from dataclasses import replace

import pyarrow as pa
import torch

from dalle_model.captions import CaptionTokenizer, train_bpe
from dalle_model.config import OptimConfig
from dalle_model.dual_encoder import (
    DUAL_ENCODER_VERSION,
    PX,
    VOCAB,
    ContrastiveObjective,
    Judge,
    build_dual_encoder,
    caption_ids,
    dual_encoder_to_bytes,
    judge_from_bytes,
    small,
)
from dalle_model.errors import CommitConflict
from tasks.artifacts import Manifest, ObjectRef, Part, fingerprint
from tasks.job import Job
from tasks.pictures import PictureSet, load_pictures
from tasks.training import train

ROLES = ("judge.weights", "judge.bpe")
_INIT = 3  # stream of the initial weights under the training seed
_PIECE = 1024
_CHECKPOINT_EVERY = 100  # updates; a third of a shorter training, so that a kill never costs all of it


def trained_judge(job: Job, curated: Manifest, rows: pa.Table) -> tuple[Judge, tuple[ObjectRef, ...]]:
    """The judge and its objects, trained on curated ``rows``. Its receipt hangs on the curated data alone, so two models
    are judged by the same one: its pictures are read at its own size, not at that of the model that is judged.

    Killed, the training goes on from its checkpoint, which belongs to this evaluation.
    """
    config = {"steps": job.config.judge_steps, "pictures": job.config.max_reference}
    shared = fingerprint("dual-encoder", DUAL_ENCODER_VERSION, config, {"curated": curated.fingerprint})
    found = _found(job, shared)
    if found is None:
        objects = _train(job, load_pictures(job, curated, rows, PX, "judge"), shared)
        try:
            job.store.commit_part(shared, 0, Part(objects=objects))
        except CommitConflict:  # trained elsewhere meanwhile, on another device: the first one counts
            job.log("another evaluation trained the dual encoder meanwhile; its weights are used")
        found = _found(job, shared) or objects
    weights, bpe = found
    runtime = replace(job.runtime, seed=0)
    return judge_from_bytes(job.read(weights), job.read(bpe), runtime), found


def _found(job: Job, shared: str) -> tuple[ObjectRef, ...] | None:
    part = job.store.parts(shared).get(0)
    if part is None or [o.role for o in part.objects] != list(ROLES) or job.store.missing(part.objects):
        return None
    return part.objects


def _train(job: Job, training: PictureSet, shared: str) -> tuple[ObjectRef, ...]:
    captions = training.rows["caption"].to_pylist()
    bpe = train_bpe(captions, VOCAB)
    images = torch.cat([small(training.images[i : i + _PIECE]) for i in range(0, len(training.images), _PIECE)])
    optim = OptimConfig(
        steps=job.config.judge_steps,
        batch_size=128,
        lr=2e-3,
        betas=(0.9, 0.98),
        weight_decay=0.1,
        warmup_steps=min(20, job.config.judge_steps // 5),  # the user sets the steps alone
        final_lr_share=0.02,
        checkpoint_every=max(1, min(_CHECKPOINT_EVERY, job.config.judge_steps // 3)),
        log_every=20,
    )
    runtime = replace(job.runtime, seed=0)
    network = build_dual_encoder(runtime.generator(_INIT))
    ids = caption_ids(CaptionTokenizer.from_json(bpe), captions)
    train(job, ContrastiveObjective(network, images, ids, optim, runtime), optim, runtime, data=shared)
    return (
        job.put(dual_encoder_to_bytes(network), ext="safetensors", role=ROLES[0]),
        job.put(bpe, ext="json", role=ROLES[1]),
    )
