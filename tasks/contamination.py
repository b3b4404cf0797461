"""The gate before a foreign evaluation set: no figure is computed on pictures that training has seen."""

import numpy as np

from dalle_model.config import CurateConfig
from dalle_model.curation.contamination import touching
from dalle_model.curation.embeddings import EMBEDDINGS, MODEL_UNIT
from dalle_model.errors import DataError
from tasks.artifacts import Manifest
from tasks.job import Job
from tasks.kin import EMBEDDING_MODEL, KnownEmbedding, embedding_named, marks_of


def refuse_contaminated(job: Job, training: Manifest, evaluation: Manifest) -> dict[str, object]:
    """Look for curated training pictures that touch a curated evaluation set; returns the record of what was compared.

    Two pictures touch when they are equal, when their perceptual hashes differ in at most ``curate.exclude_bits``, or
    when their embeddings are at most ``curate.embedding_distance`` apart, where training was curated with one. Of an own
    model (``curate.embedding_model``) the stored embeddings are compared, so the model itself is not needed here.
    Raises DataError when any touch: what a set declares about itself is not asked, so a set that was excluded by name but
    has grown since is refused, too. Raises UsageError when the evaluation set was never measured by training's model.
    """
    config = CurateConfig.model_validate(training.config["config"])
    own = training.config["outside"].get(EMBEDDING_MODEL)
    embedding = KnownEmbedding(own) if own else embedding_named(config.embedding)
    unit = MODEL_UNIT if own else 1.0 if embedding is None else EMBEDDINGS[config.embedding].unit
    ours = marks_of(job, training, list(training.objects_of("features")), embedding, ("train", "valid"))
    theirs = marks_of(job, evaluation, list(evaluation.objects_of("features")), embedding)
    touched = touching(ours, theirs, config.exclude_bits, config.embedding_distance / unit)
    near = np.count_nonzero(touched)
    if near:
        name = evaluation.fingerprint[:12]
        by_embedding = f", or within {config.embedding_distance} of the embedding" if embedding else ""
        raise DataError(
            f"{near} of {len(touched)} training pictures touch the evaluation set {name} (equal, within "
            f"{config.exclude_bits} bits of the perceptual hash{by_embedding}); its figures would flatter the model. Curate with "
            f"--set 'curate.exclude=[\"{name}\"]' and train again, or evaluate on another set"
        )
    return {
        "evaluation_set": evaluation.fingerprint,
        "compared_with": len(touched),
        "touching": 0,
        "bits": config.exclude_bits,
        "embedding": "model" if own else config.embedding,
        "embedding_digest": embedding.digest if embedding else None,
        "embedding_model_sha256": config.embedding_model_sha256 if own else None,
        "embedding_distance": config.embedding_distance if embedding else None,
    }
