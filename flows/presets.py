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


def scenes() -> PipelineConfig:
    """Captioned shapes at 32 px with exact truth; five pairs of colour and shape are never trained on. Not measured yet.

    Needs no package and no download. The evaluation tells for each attribute what share of the drawings meets it, for
    trained captions and for the held-out pairs. Its time and its figures have not been measured on any machine.
    """
    optim = OptimConfig(steps=3000, batch_size=64, lr=1e-3)
    return PipelineConfig(
        ingest=IngestConfig(source="scenes:10000", image_px=32),
        curate=CurateConfig(
            holdout_pattern="red circle|blue ring|green triangle|yellow cross|purple square", holdout_every=1
        ),
        tokenizer=TokenizerConfig(
            image_px=32,
            downsampling=4,
            fsq_levels=(8, 8, 8),
            width=32,
            optim=optim.model_copy(update={"betas": (0.9, 0.999), "weight_decay": 1e-4}),
        ),
        encode=EncodeConfig(text_vocab_size=300, max_text_tokens=24),
        fit=FitConfig(model=ModelConfig(dim=192, depth=4, heads=6), train=TrainConfig(optim=optim)),
        evaluate=EvaluateConfig(num_captions=192, num_heldout=192),
        generate=GenerateConfig(prompts=("a red circle", "a small blue square left of a large green ring")),
    )


PRESETS: dict[str, Callable[[], PipelineConfig]] = {"quickstart": quickstart, "scenes": scenes, "tiny": tiny}
