"""Scores of models for every pair, measured once per pairs artifact and model and kept under the model's digest."""

import hashlib
import importlib.metadata
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dalle_model.config import CurateConfig
from dalle_model.curation.rules import AGREEMENT, BEAUTY, NSFW, Rule
from dalle_model.errors import DataError, UsageError
from tasks.artifacts import Manifest, ObjectRef, fingerprint
from tasks.job import Job
from tasks.settings import Settings
from tasks.shard_measures import of_shards
from tasks.step import open_store
from tasks.tables import TableFile

if TYPE_CHECKING:  # torch is a second of start-up that other curations need not pay
    from dalle_model.curation.scorers import Scorer
    from dalle_model.runtime import Runtime

_BATCH = 64
_SCHEMA = pa.schema([pa.field("score", pa.float64(), nullable=True)], metadata={"record": "ModelScore"})
ROLES = {NSFW.name: "scores.nsfw", AGREEMENT.name: "scores.agreement", BEAUTY.name: "scores.aesthetic_model"}


def model_digests(config: CurateConfig, settings: Settings) -> dict[str, str]:
    """Which weights each rule that asks a model would ask, by rule. UsageError or RefNotFound where there are none."""
    digests: dict[str, str] = {}
    if config.nsfw_model:
        digests[NSFW.name] = nsfw_digest(config.nsfw_model)
    if config.agreement_model:
        if Path(config.agreement_model).is_dir():
            from dalle_model.curation.scorers import folder_digest

            digests[AGREEMENT.name] = f"clip {folder_digest(config.agreement_model)}"
        else:
            manifest = open_store(settings).resolve(config.agreement_model)
            if manifest.kind != "model":
                raise UsageError(
                    f"curate.agreement_model {config.agreement_model!r} is of kind {manifest.kind}; name a model or the folder of a CLIP model"
                )
            digests[AGREEMENT.name] = f"model {manifest.fingerprint}"
    if config.aesthetic_model:
        digests[BEAUTY.name] = _aesthetic_digest(config)
    return digests


def models_in(outside: Mapping[str, str]) -> dict[str, str]:
    """Kind and digest of the model behind each rule, from what a fingerprint has from outside."""
    return {name.removeprefix("model."): d for name, d in outside.items() if name.startswith("model.")}


def embedding_digest(config: CurateConfig) -> str:
    """Which numbers the own model of curate.embedding_model gives. UsageError or DataError where it is not the declared one."""
    from dalle_model.curation.vision import VisionModel, model_folder
    from dalle_model.runtime import Runtime

    return VisionModel(model_folder(config.embedding_model, config.embedding_model_sha256), Runtime()).digest


def _aesthetic_digest(config: CurateConfig) -> str:
    from dalle_model.curation.scorers import folder_digest
    from dalle_model.curation.vision import model_folder
    from dalle_model.published import checked

    path = Path(config.aesthetic_model)
    if not path.is_file():
        return f"judge {folder_digest(model_folder(config.aesthetic_model, config.aesthetic_model_sha256))}"
    if not config.embedding_model:
        raise UsageError(
            f"curate.aesthetic_model {path} judges embeddings; set curate.embedding_model to the model of theirs"
        )
    checked(path, config.aesthetic_model_sha256)
    return f"head {config.aesthetic_model_sha256} {embedding_digest(config)}"


def nsfw_digest(name: str) -> str:
    """Kind and weights of a classifier of what is not safe for work: ``nudenet``, or a folder. UsageError for neither."""
    from dalle_model.curation.scorers import NUDENET, folder_digest, nudenet_file

    if name == NUDENET:
        weights = hashlib.sha256(nudenet_file().read_bytes()).hexdigest()
        return f"nudenet {importlib.metadata.version(NUDENET)} {weights}"
    return f"classifier {folder_digest(_folder(name))}"


def open_nsfw(name: str, runtime: "Runtime") -> "Scorer":
    """The classifier behind ``nsfw_digest``."""
    from dalle_model.curation import scorers

    return scorers.NudeNet() if name == scorers.NUDENET else scorers.ImageClassifier(name, runtime)


def _folder(path: str) -> str:
    if not Path(path).is_dir():
        raise UsageError(f"nsfw_model {path!r} is neither nudenet nor a folder; give one of both")
    return path


def model_scores(job: Job, digests: Mapping[str, str]) -> dict[str, list[ObjectRef]]:
    """Objects with the scores of every shard of pairs, by rule."""
    return {
        rule.name: _scored(job, rule, digests[rule.name]) for rule in (NSFW, AGREEMENT, BEAUTY) if rule.name in digests
    }


def _scored(job: Job, rule: Rule, digest: str) -> list[ObjectRef]:
    pairs = job.inputs["pairs"]
    opened: list[Scorer] = []  # a model takes seconds to load: only if there is something to ask

    def receipts(manifest: Manifest) -> str:
        about = {"rule": rule.name, "model": digest}
        return fingerprint("model-scores", rule.version, about, {"pairs": manifest.fingerprint})

    if digest.startswith("head "):
        return of_shards(job, pairs, receipts, _by_head(job, pairs), f"pairs judged by {rule.name}")

    def make(shard: ObjectRef, number: int) -> ObjectRef:
        if not opened:
            opened.append(_opened(job, rule, digest))
        return _score_shard(job, opened[0], rule, shard, number)

    return of_shards(job, pairs, receipts, make, f"pairs judged by {rule.name}")


def _by_head(job: Job, pairs: Manifest) -> Callable[[ObjectRef, int], ObjectRef]:
    """Judges a shard by its stored embeddings: the pictures are embedded once, for kinship and for beauty."""
    from dalle_model.curation.vision import AestheticHead
    from tasks.kin import embedding_objects, embedding_of

    embedding = embedding_of(job)
    if embedding is None:
        raise UsageError("curate.aesthetic_model is a head on an embedding; set curate.embedding_model to its model")
    head = AestheticHead(Path(job.config.aesthetic_model), embedding.width)
    vectors = embedding_objects(job, pairs, embedding)

    def make(shard: ObjectRef, number: int) -> ObjectRef:
        scores = head.of(np.load(io.BytesIO(job.read(vectors[number]))))
        with TableFile(job.spool / f"{BEAUTY.name}-{number:06d}.parquet", _SCHEMA) as out:
            out.add_table(pa.table({"score": pa.array(scores, pa.float64())}))
            return job.put(out.finish(), ext="parquet", role=ROLES[BEAUTY.name], rows=out.rows)

    return make


def _opened(job: Job, rule: Rule, digest: str) -> "Scorer":
    """The model itself. DataError when it is no longer the one of the fingerprint."""
    from dalle_model.curation import scorers

    config: CurateConfig = job.config
    if model_digests(config, job.settings)[rule.name] != digest:
        raise DataError(f"the model of rule {rule.name} changed after this step began; run it again")
    kind, _, name = digest.partition(" ")
    if kind in ("nudenet", "classifier"):
        return open_nsfw(config.nsfw_model, job.runtime)
    if kind == "judge":
        from dalle_model.curation.vision import AestheticClassifier, model_folder

        return AestheticClassifier(model_folder(config.aesthetic_model, config.aesthetic_model_sha256), job.runtime)
    if kind == "clip":
        return scorers.Clip(config.agreement_model, job.runtime)
    from tasks.export_model import text_to_image

    return scorers.OwnModel(text_to_image(job.store, job.store.resolve(name)), job.runtime)


def _score_shard(job: Job, scorer: "Scorer", rule: Rule, shard: ObjectRef, number: int) -> ObjectRef:
    path = job.spool / f"{rule.name}-{number:06d}.parquet"
    with TableFile(path, _SCHEMA) as out, pq.ParquetFile(job.fetch(shard)) as file:
        for batch in file.iter_batches(_BATCH, columns=["image", "caption"]):
            scores = scorer.score(batch["image"].to_pylist(), batch["caption"].to_pylist())
            out.add_table(pa.table({"score": pa.array(scores, pa.float64(), from_pandas=True)}))
            job.check_stop()
        return job.put(out.finish(), ext="parquet", role=ROLES[rule.name], rows=out.rows)
