"""From a source to token shards, one flow per stage."""

from prefect import flow

from dalle_model.config import CurateConfig, EncodeConfig, IngestConfig
from flows.settings import settings_for
from tasks import prefect_tasks
from tasks.step import StepResult, input_ref


@flow(name="ingest")
def ingest(config: IngestConfig = IngestConfig(), pairs: str = "", store: str = "") -> StepResult:  # noqa: B008 - frozen
    """Read a source of captioned pictures into checked, re-encoded pairs.

    Args:
        config: The source and what a picture must satisfy.
        pairs: Reference of earlier pairs to add to: known ones are recognised, and only new ones stored. Empty = none.
        store: Folder or s3://bucket/prefix that keeps the artifacts; empty = the worker's own default.
    """
    s = settings_for(store)
    earlier = {"pairs": input_ref(s, pairs, "pairs")} if pairs else {}
    return prefect_tasks.ingest(config, s, **earlier)


@flow(name="curate")
def curate(pairs: str, config: CurateConfig = CurateConfig(), store: str = "") -> StepResult:  # noqa: B008 - frozen
    """Score pairs by the curation rules and assign them to splits.

    Args:
        pairs: Reference of the pairs: fingerprint, unique prefix, manifest URI or name.
        config: Rules and splits.
        store: Folder or s3://bucket/prefix that keeps the artifacts; empty = the worker's own default.
    """
    s = settings_for(store)
    return prefect_tasks.curate(config, s, pairs=input_ref(s, pairs, "pairs"))


@flow(name="encode")
def encode(curated: str, tokenizer: str, config: EncodeConfig = EncodeConfig(), store: str = "") -> StepResult:  # noqa: B008
    """Turn curated pairs into image and text tokens.

    Args:
        curated: Reference of the curated pairs.
        tokenizer: Reference of the image tokenizer.
        config: Text vocabulary and shard size.
        store: Folder or s3://bucket/prefix that keeps the artifacts; empty = the worker's own default.
    """
    s = settings_for(store)
    return prefect_tasks.encode(
        config, s, curated=input_ref(s, curated, "curated"), tokenizer=input_ref(s, tokenizer, "tokenizer")
    )
