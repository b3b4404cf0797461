"""Named complete configurations: what a run needs, how long it takes, and what to expect of it."""

from collections.abc import Callable

from dalle_model.config import (
    CurateConfig,
    EncodeConfig,
    EvaluateConfig,
    FitConfig,
    GenerateConfig,
    IngestConfig,
    ModelConfig,
    OptimConfig,
    PipelineConfig,
    SamplerConfig,
    TokenizerConfig,
    TrainConfig,
)


def tiny() -> PipelineConfig:
    """The whole chain in well under a minute on 2 CPU cores, for tests; its pictures are mush."""
    optim = OptimConfig(steps=40, batch_size=32, warmup_steps=5, checkpoint_every=20, log_every=5)
    return PipelineConfig(
        ingest=IngestConfig(limit=300, image_px=32, rows_per_shard=100),
        curate=CurateConfig(holdout_pattern="skin tone"),
        tokenizer=TokenizerConfig(
            image_px=32,
            fsq_levels=(8, 8, 8),
            width=16,
            blocks_per_group=1,
            optim=optim.model_copy(update={"betas": (0.9, 0.999)}),
        ),
        encode=EncodeConfig(rows_per_shard=100, text_vocab_size=400, max_text_tokens=16),
        fit=FitConfig(
            model=ModelConfig(dim=64, depth=2, heads=4),
            train=TrainConfig(optim=optim),
            sampler=SamplerConfig(temperature=0.0),
        ),
        evaluate=EvaluateConfig(num_captions=16, num_heldout=8),
        generate=GenerateConfig(prompts=("red heart", "clown face"), n=2, batch_size=4),
    )


def quickstart() -> PipelineConfig:
    """OpenMoji at 64 px on 2 CPU cores."""
    return PipelineConfig(generate=GenerateConfig(prompts=("red heart", "clown face")))


PRESETS: dict[str, Callable[[], PipelineConfig]] = {"quickstart": quickstart, "tiny": tiny}
