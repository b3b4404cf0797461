"""Presets from 100 million parameters to the paper's 12 billion. None has been run: ``dalle cost PRESET`` prices each.

All of them read ``ingest.source``, which is yours to set. The hours are arithmetic: needed FLOPs at 40 % of the peak of
an H100 (989 TFLOP/s in bfloat16); captions cut into tokens anew at each step (``bpe_dropout``) need CPU cores besides.
"""

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

_PROMPTS = GenerateConfig(
    prompts=("a red bicycle leaning on a wall", "a watercolour of a lighthouse", "two cups of coffee on a table"),
    own_captions=8,
    batch_size=8,
)
_SOURCE = "webdataset:data"


def _modern(
    *,
    image_px: int,
    downsampling: int,
    levels: tuple[int, ...],
    width: int,
    text: int,
    model: ModelConfig,
    optim: OptimConfig,
) -> PipelineConfig:
    """Modern mode on an fsq tokenizer."""
    return PipelineConfig(
        ingest=IngestConfig(source=_SOURCE, image_px=image_px + image_px // 8, rows_per_shard=4096),
        curate=CurateConfig(preset="datacomp_basic", min_side_px=image_px // 2),
        tokenizer=TokenizerConfig(
            kind="fsq",
            image_px=image_px,
            downsampling=downsampling,
            fsq_levels=levels,
            width=width,
            optim=OptimConfig(
                steps=100_000,
                batch_size=128,
                lr=5e-4,
                betas=(0.9, 0.99),
                weight_decay=1e-4,
                warmup_steps=1000,
                ema=0.999,
            ),
        ),
        encode=EncodeConfig(text_vocab_size=16_384, max_text_tokens=text, rows_per_shard=16_384),
        fit=FitConfig(
            model=model,
            train=TrainConfig(optim=optim, image_first_share=0.1),
            sampler=SamplerConfig(top_k=1000, guidance=3.0),
        ),
        evaluate=EvaluateConfig(num_captions=1024, num_heldout=256),
        generate=_PROMPTS,
    )


def _optim(steps: int, batch_size: int, micro: int, lr: float) -> OptimConfig:
    return OptimConfig(
        steps=steps,
        batch_size=batch_size,
        micro_batch_size=micro,
        lr=lr,
        betas=(0.9, 0.95),
        weight_decay=0.1,
        warmup_steps=2000,
        schedule="wsd",
        ema=0.9999,
        checkpoint_every=1000,
        log_every=50,
    )


def dalle_100m() -> PipelineConfig:
    """100M class, 128 px: 116,759,040 parameters in the transformer. Not run.

    Hardware: one GPU of 24 GB, 3 hours. Data: from 1 million pairs.
    """
    return _modern(
        image_px=128,
        downsampling=8,
        levels=(8, 8, 8, 8),
        width=128,
        text=64,
        model=ModelConfig(dim=768, depth=12, heads=12),
        optim=_optim(100_000, 256, 32, 6e-4),
    )


def dalle_400m() -> PipelineConfig:
    """400M class, 256 px: 367,457,280 parameters in the transformer. Not run.

    Hardware: eight GPUs of 24 GB (DALLE_RANKS=8), 14 hours. Data: from 10 million pairs.
    """
    return _modern(
        image_px=256,
        downsampling=16,
        levels=(8, 8, 8, 6, 5),
        width=128,
        text=128,
        model=ModelConfig(dim=1024, depth=24, heads=16),
        optim=_optim(200_000, 1024, 16, 4e-4),
    )


def dalle_1b() -> PipelineConfig:
    """1.3 billion, 256 px in 1,024 tokens: 1,341,253,632 parameters in the transformer. Not run.

    Hardware: 32 GPUs of 24 GB or more, fsdp2, 54 hours. Data: from 50 million pairs.
    """
    optim = _optim(200_000, 1024, 8, 2e-4)
    return _modern(
        image_px=256,
        downsampling=8,
        levels=(8, 8, 8, 6, 5),
        width=128,
        text=128,
        model=ModelConfig(dim=2048, depth=24, heads=16),
        optim=optim.model_copy(update={"sharding": "fsdp2", "activation_checkpointing": True}),
    )


def dalle_12b() -> PipelineConfig:
    """The DALL-E paper's model, 256 px: 12,291,804,544 parameters in the transformer. Not run.

    Hardware: 256 GPUs of 24 GB or more, fsdp2, 152 hours (the paper: 1,024 V100 of 16 GB). Data: the paper had 250 million pairs.
    Every value of the paper's section 2 and appendix B that a setting has: 64 layers, width 3968, row, column and
    convolutional masks, 1/8 and 7/8, 10 % BPE dropout, batch 1024 for 430,000 updates, step size 4.5e-4 halved five
    times, gradient norm 4, average 0.99 per 25 updates, the dVAE with its schedules. In bfloat16 instead of 16-bit
    floats with scaled gradients; without PowerSGD.
    """
    tokenizer = OptimConfig(
        steps=3_000_000,
        batch_size=512,
        lr=1e-4,
        betas=(0.9, 0.999),
        weight_decay=1e-4,
        warmup_steps=0,
        schedule="dvae",
        final_lr_share=0.0125,
        clip_norm=0.0,
        ema=0.999,
        checkpoint_every=5000,
        log_every=100,
    )
    transformer = OptimConfig(
        steps=430_000,
        batch_size=1024,
        lr=4.5e-4,
        betas=(0.9, 0.96),
        weight_decay=0.045,
        warmup_steps=5000,
        schedule="halving",
        final_lr_share=1 / 32,
        clip_norm=4.0,
        ema=0.99 ** (1 / 25),
        micro_batch_size=4,
        checkpoint_every=1000,
        log_every=50,
        sharding="fsdp2",
        activation_checkpointing=True,
    )
    return PipelineConfig(
        ingest=IngestConfig(source=_SOURCE, image_px=384, rows_per_shard=4096),
        curate=CurateConfig(preset="dalle2021"),
        tokenizer=TokenizerConfig(
            kind="dvae",
            image_px=256,
            downsampling=8,
            num_codes=8192,
            width=256,
            blocks_per_group=2,
            kl_weight=6.6,
            final_temperature=1 / 16,
            augment="paper",
            optim=tokenizer,
        ),
        encode=EncodeConfig(text_vocab_size=16_384, max_text_tokens=256, rows_per_shard=16_384),
        fit=FitConfig(
            model=ModelConfig(mode="paper", dim=3968, depth=64, heads=62),
            train=TrainConfig(text_loss_share=0.125, condition_dropout=0.0, bpe_dropout=0.1, optim=transformer),
            sampler=SamplerConfig(temperature=1.0),
        ),
        generate=_PROMPTS.model_copy(update={"n": 8, "batch_size": 8}),
    )


LARGE_PRESETS: dict[str, Callable[[], PipelineConfig]] = {
    "dalle-100m": dalle_100m,
    "dalle-400m": dalle_400m,
    "dalle-1.3b": dalle_1b,
    "dalle-12b": dalle_12b,
}
