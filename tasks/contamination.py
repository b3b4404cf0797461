"""The gate before a foreign evaluation set: no figure is computed on pictures that training has seen."""

import numpy as np

from dalle_model.config import CurateConfig
from dalle_model.curation.contamination import touching
from dalle_model.errors import DataError
from tasks.artifacts import Manifest
from tasks.job import Job
from tasks.kin import embedding_named, marks_of


def refuse_contaminated(job: Job, training: Manifest, evaluation: Manifest) -> dict[str, object]:
    """Look for curated training pictures that touch a curated evaluation set; returns the record of what was compared.

    Two pictures touch when they are equal, when their perceptual hashes differ in at most ``curate.exclude_bits``, or
    when their embeddings are near, where training was curated with one. Raises DataError when any do: what a set
    declares about itself is not asked, so a set that was excluded by name but has grown since is refused, too.
    """
    config = CurateConfig.model_validate(training.config["config"])
    embedding = embedding_named(config.embedding)
    unit = 1.0 if embedding is None else embedding.unit
    ours = marks_of(job, training, list(training.objects_of("features")), embedding, ("train", "valid"))
    theirs = marks_of(job, evaluation, list(evaluation.objects_of("features")), embedding)
    touched = touching(ours, theirs, config.exclude_bits, config.embedding_distance / unit)
    near = np.count_nonzero(touched)
    if near:
        name = evaluation.fingerprint[:12]
        raise DataError(
            f"{near} of {len(touched)} training pictures touch the evaluation set {name} (equal, or within "
            f"{config.exclude_bits} bits of the perceptual hash); its figures would flatter the model. Curate with "
            f"--set 'curate.exclude=[\"{name}\"]' and train again, or evaluate on another set"
        )
    return {
        "evaluation_set": evaluation.fingerprint,
        "compared_with": len(touched),
        "touching": 0,
        "bits": config.exclude_bits,
        "embedding": config.embedding,
        "embedding_distance": config.embedding_distance if embedding else None,
    }
