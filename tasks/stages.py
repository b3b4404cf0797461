"""The chain as a table: what each stage reads, makes and calls. Importing it loads neither torch nor Prefect."""

from dalle_model.config import (
    CurateConfig,
    EncodeConfig,
    EvaluateConfig,
    FitConfig,
    GenerateConfig,
    IngestConfig,
    TokenizerConfig,
)
from dalle_model.errors import UsageError
from tasks.step import Stage

INGEST = Stage(
    name="ingest",
    version=2,
    kind="pairs",
    config=IngestConfig,
    inputs=(),
    work="tasks.ingest:work",
    identity="tasks.ingest:identity",
)
CURATE = Stage(
    name="curate",
    version=2,
    kind="curated",
    config=CurateConfig,
    inputs=("pairs",),
    work="tasks.curate:work",
    identity="tasks.curate:identity",
    outside="tasks.removals:outside",
)
FIT_TOKENIZER = Stage(
    name="fit-tokenizer",
    version=2,
    kind="tokenizer",
    config=TokenizerConfig,
    inputs=("curated",),
    work="tasks.fit_tokenizer:work",
    identity="tasks.identities:of_tokenizer",
    distributed=True,
)
ENCODE = Stage(
    name="encode",
    version=2,
    kind="tokens",
    config=EncodeConfig,
    inputs=("curated", "tokenizer"),
    work="tasks.encode_images:work",
)
FIT = Stage(
    name="fit",
    version=2,
    kind="model",
    config=FitConfig,
    inputs=("tokens",),
    work="tasks.fit_dalle:work",
    distributed=True,
    optional=("model",),
)
EVALUATE = Stage(
    name="evaluate", version=2, kind="evaluation", config=EvaluateConfig, inputs=("model",), work="tasks.evaluate:work"
)
GENERATE = Stage(
    name="generate",
    version=2,
    kind="generations",
    config=GenerateConfig,
    inputs=("model",),
    work="tasks.generate:work",
    identity="tasks.generate:identity",
)

STAGES = {stage.name: stage for stage in (INGEST, CURATE, FIT_TOKENIZER, ENCODE, FIT, EVALUATE, GENERATE)}


def stage_named(name: str) -> Stage:
    """The stage of a name; UsageError lists the names."""
    stage = STAGES.get(name.replace("_", "-"))
    if stage is None:
        raise UsageError(f"unknown stage {name!r}; the stages are {', '.join(STAGES)}")
    return stage
