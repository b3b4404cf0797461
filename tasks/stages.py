"""The chain as a table: what each stage reads, makes and calls. Importing it loads neither torch nor Prefect."""

from dalle_model.config import (
    CurateConfig,
    EncodeConfig,
    EvaluateConfig,
    FitConfig,
    GenerateConfig,
    GeneratorConfig,
    ImportTokenizerConfig,
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
    pieces="tasks.ingest:num_pieces",
    optional=("pairs",),
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
IMPORT_TOKENIZER = Stage(
    name="import-tokenizer",
    version=1,
    kind="tokenizer",
    config=ImportTokenizerConfig,
    inputs=(),
    work="tasks.import_tokenizer:work",
    identity="tasks.identities:of_imported",
)
ENCODE = Stage(
    name="encode",
    version=2,
    kind="tokens",
    config=EncodeConfig,
    inputs=("curated", "tokenizer"),
    work="tasks.encode_images:work",
    pieces="tasks.encode_images:num_pieces",
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
FIT_GENERATOR = Stage(
    name="fit-generator",
    version=1,
    kind="model",
    config=GeneratorConfig,
    inputs=("curated",),
    work="tasks.fit_generator:work",
    distributed=True,
)
EVALUATE = Stage(
    name="evaluate",
    version=3,
    kind="evaluation",
    config=EvaluateConfig,
    inputs=("model",),
    work="tasks.evaluate:work",
    optional=("curated",),  # a foreign evaluation set
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
"""The chain of the text-to-image model, in order."""

ALL_STAGES = STAGES | {stage.name: stage for stage in (FIT_GENERATOR, IMPORT_TOKENIZER)}
"""With those beside it: a generator without prompts takes the place of tokenizer, tokens and transformer; a published
tokenizer that of a trained one."""

SECTIONS = {"fit-tokenizer": "tokenizer", "fit-generator": "generator"}
"""Section of the pipeline's config that a stage reads, where it has another name."""


def stage_named(name: str) -> Stage:
    """The stage of a name; UsageError lists the names."""
    stage = ALL_STAGES.get(name.replace("_", "-"))
    if stage is None:
        raise UsageError(f"unknown stage {name!r}; the stages are {', '.join(ALL_STAGES)}")
    return stage
