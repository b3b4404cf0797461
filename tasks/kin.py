"""What curation knows of kin beyond the features: embeddings, excluded evaluation sets, and the cluster table."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dalle_model.config import CurateConfig
from dalle_model.curation.clusters import TIERS
from dalle_model.curation.contamination import PictureMarks
from dalle_model.curation.embeddings import EMBEDDINGS, Embedding
from dalle_model.curation.selection import Selection
from dalle_model.errors import DataError, UsageError
from dalle_model.records import CLUSTER
from tasks.artifacts import Manifest, ObjectRef, fingerprint
from tasks.job import Job, load_ancestor
from tasks.shard_measures import of_shards
from tasks.store import Store

_PICTURES_AT_ONCE = 256
EMBEDDING_MODEL = "embedding_model"  # its digest among what a fingerprint has from outside


def embedding_named(name: str) -> Embedding | None:
    """The third tier's embedding; None when the config has it off."""
    return None if name == "none" else EMBEDDINGS[name]()


def embedding_of(job: Job) -> Embedding | None:
    """The embedding of a curation: its own model, or a built-in one. DataError when the model is no longer the one of the fingerprint."""
    config: CurateConfig = job.config
    if not config.embedding_model:
        return embedding_named(config.embedding)
    from dalle_model.curation.vision import VisionModel, model_folder

    found = VisionModel(model_folder(config.embedding_model, config.embedding_model_sha256), job.runtime)
    if found.digest != job.spec.recorded_config["outside"].get(EMBEDDING_MODEL):
        raise DataError(f"{config.embedding_model} changed after this step began; run it again")
    return found


@dataclass(frozen=True)
class KnownEmbedding:
    """An embedding by its digest alone, for who has not its model: only what is stored of it can be read."""

    digest: str

    def of(self, pictures: Sequence[bytes]) -> npt.NDArray[Any]:
        """UsageError: these pictures were never embedded."""
        raise UsageError(
            f"pictures of this set were never measured by the model of curate.embedding_model (digest {self.digest[:12]}), by which "
            "training was curated; curate the set once with the same curate.embedding_model and embedding_model_sha256"
        )


def embedding_objects(job: Job, pairs: Manifest, embedding: Embedding | KnownEmbedding) -> list[ObjectRef]:
    """One object per shard of pairs, measured once per pairs artifact and kept under its receipts: npy [rows, width]."""

    def receipts(manifest: Manifest) -> str:
        return fingerprint("embeddings", 1, {"digest": embedding.digest}, {"pairs": manifest.fingerprint})

    def make(shard: ObjectRef, number: int) -> ObjectRef:
        data = io.BytesIO()
        np.save(data, _embed(job, shard, embedding))
        return job.put(data.getvalue(), ext="npy", role="embeddings", rows=shard.rows)

    return of_shards(job, pairs, receipts, make, "pairs embedded")


def embeddings_of(
    job: Job, pairs: Manifest, embedding: Embedding | KnownEmbedding, rows: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[Any]:
    """[pairs, width] of every pair in order, or [len(rows), width] of those that are named.

    Memory: the array itself, ``width`` numbers per pair.
    """
    wanted = np.arange(sum(shard.rows for shard in pairs.objects_of("pairs"))) if rows is None else rows
    out, done = np.zeros((0, 0)), 0
    for number, obj in enumerate(embedding_objects(job, pairs, embedding)):
        part = np.load(io.BytesIO(job.read(obj)))
        if not number:
            out = np.empty((len(wanted), part.shape[1]), part.dtype)
        here = np.flatnonzero((wanted >= done) & (wanted < done + obj.rows))
        out[here] = part[wanted[here] - done]
        done += obj.rows
    return out


def _embed(job: Job, shard: ObjectRef, embedding: Embedding | KnownEmbedding) -> npt.NDArray[Any]:
    pieces = []
    with pq.ParquetFile(job.fetch(shard)) as file:
        for batch in file.iter_batches(_PICTURES_AT_ONCE, columns=["image"]):
            pieces.append(embedding.of(batch["image"].to_pylist()))
            job.check_stop()
    return np.concatenate(pieces) if pieces else embedding.of([])


def excluded(store: Store, refs: Sequence[str]) -> list[Manifest]:
    """The artifacts of curate.exclude. RefNotFound, or UsageError when one holds no pairs."""
    found = [store.resolve(ref) for ref in refs]
    for ref, manifest in zip(refs, found, strict=True):
        if manifest.kind not in ("pairs", "curated"):
            raise UsageError(
                f"curate.exclude {ref!r} is of kind {manifest.kind}; name pairs or curated pairs (`dalle ls --kind pairs`)"
            )
    return found


def marks_of(
    job: Job,
    manifest: Manifest,
    features: list[ObjectRef],
    embedding: Embedding | KnownEmbedding | None,
    splits: tuple[str, ...] | None = None,
) -> PictureMarks:
    """Digests, hashes and embeddings of the pairs of an artifact; of a curated one, of those it kept (in ``splits``)."""
    pairs = pairs_of(job.store, manifest)
    tables = [pq.read_table(job.fetch(obj), columns=["picture", "phash"]) for obj in features]
    pictures, phashes = (
        np.concatenate([table[name].to_numpy() for table in tables]) if tables else np.zeros(0, np.uint64)
        for name in ("picture", "phash")
    )
    rows = np.arange(len(pictures))
    if manifest.kind == "curated":
        first = np.concatenate([[0], np.cumsum([shard.rows for shard in pairs.objects_of("pairs")])])
        kept = pq.read_table(job.fetch(manifest.object_of("curated")), columns=["shard", "row", "split"])
        if splits is not None:
            kept = kept.filter(pa.compute.is_in(kept["split"], pa.array(list(splits))))
        rows = first[kept["shard"].to_numpy()] + kept["row"].to_numpy()
    vectors = None if embedding is None else embeddings_of(job, pairs, embedding, rows)
    return pictures[rows], phashes[rows], vectors


def pairs_of(store: Store, manifest: Manifest) -> Manifest:
    """The pairs behind pairs or curated pairs."""
    return manifest if manifest.kind == "pairs" else load_ancestor(store, manifest, "pairs")


def joined(marks: list[PictureMarks]) -> PictureMarks:
    """Several sets as one."""
    vectors = [m[2] for m in marks if m[2] is not None]
    return (
        np.concatenate([m[0] for m in marks]),
        np.concatenate([m[1] for m in marks]),
        np.concatenate(vectors) if vectors else None,
    )


def cluster_rows(table: pa.Table, selection: Selection, first: int) -> pa.Table:
    """Rows of ``records.CLUSTER`` of one feature table, whose first row is row ``first`` of the selection."""
    rows = np.flatnonzero(selection.kin[first : first + table.num_rows])
    of = first + rows
    return pa.table(
        {
            "id": table["id"].take(pa.array(rows)),
            "cluster": pa.array([f"{int(c):016x}" for c in selection.clusters[of]], pa.string()),
            "tier": pa.array(np.array(TIERS)[selection.tier[of]].tolist(), pa.string()),
            "distance": pa.array(selection.distance[of].astype(np.float64), pa.float64(), from_pandas=True),
            "survivor": pa.array(selection.verdict[of] == 0),
        },
        schema=CLUSTER,
    )


def kin_stats(selection: Selection) -> dict[str, Any]:
    """Clusters of the kept pairs, and how many pairs each tier joined."""
    kept = selection.kept
    names, sizes = np.unique(selection.clusters[kept], return_counts=True)
    heads = np.bincount(selection.tier[selection.kin], minlength=len(TIERS))
    return {
        "clusters": len(names),
        "largest_cluster": int(sizes.max()),
        "joined_by": {tier: int(count) for tier, count in zip(TIERS[1:], heads[1:], strict=True)},
    }
