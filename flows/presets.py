"""Named complete configurations: what a run needs, how long it takes, and what to expect of it."""

from collections.abc import Callable
from typing import Any, Literal

from dalle_model.config import (
    CurateConfig,
    EncodeConfig,
    EvaluateConfig,
    FitConfig,
    GenerateConfig,
    GeneratorConfig,
    IngestConfig,
    ModelConfig,
    OptimConfig,
    PipelineConfig,
    SamplerConfig,
    TokenizerConfig,
    TrainConfig,
)
from flows.large_presets import LARGE_PRESETS

_SHORT_DVAE: dict[str, Any] = {
    "likelihood": "normal",
    "start": "data",
    "block_gain": 1.0,
    "encoder_lr_share": 0.1,
    "temperature_share": 1.0,
    "kl_ramp_share": 0.5,
    "kl_weight": 1.0,
}
"""What a dvae needs in a run of some hundred updates; no other kind of tokenizer reads these."""


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
            **_SHORT_DVAE,
        ),
        encode=EncodeConfig(rows_per_shard=100, text_vocab_size=400, max_text_tokens=16),
        fit=FitConfig(
            model=ModelConfig(dim=64, depth=2, heads=4),
            train=TrainConfig(optim=optim),
            sampler=SamplerConfig(temperature=0.0),
        ),
        evaluate=EvaluateConfig(num_captions=16, num_heldout=8, judge_steps=10, num_unseen=32),
        generate=GenerateConfig(prompts=("red heart", "clown face"), n=2, batch_size=4),
        generator=GeneratorConfig(image_px=32, latent_dim=16, width=8, optim=optim),
    )


def quickstart() -> PipelineConfig:
    """All joinable pictures of OpenMoji (3,953) at 64 px: recognisable pictures from 2 CPU cores.

    Hardware: 2 cores with bfloat16 instructions (AVX-512 BF16 or AMX), 2 GB of memory.
    Minutes there: 12 in all while other programs shared the cores (tokenizer 3.1, transformer 7.5). On two slower
    cores (matrix products in bfloat16 at 440 instead of 680 GFLOP/s) 18.5 (4.2 and 12.5; the evaluation 0.8).
    Result: reconstructions of 25.0 dB; ``recognisability`` 0.86, 0.88 and 0.85 in three runs with different random
    streams (95 % interval of one 0.79 to 0.93) on training captions, and 0.63, 0.50 and 0.59 (0.47 to 0.78) on skin
    tones held out for their role. People, faces, hands and flags come out clean; thin lines smear, and so do some of the objects
    that only one picture shows. Measured on 2026-11-23 and 25 with torch 2.13. Without
    bfloat16 in hardware matrix products take five times as long: on a Zen 3 core an update of the transformer took 4 to
    5 s and one of the tokenizer 1.3 to 1.5, 75 minutes of one core in all; the whole has not been timed there.

    What the recipe rests on, one run each: Muon for the tokenizer (24.7 dB after 788 updates, AdamW 21.9 after 933),
    and, after 450 updates of the transformer, embeddings shared along the quantiser's lattice (greedy recognisability
    0.25 -> 0.46) and swapped read tokens (at guidance 1.5: 0.31 -> 0.44, held-out tones 0.14 -> 0.25).
    """
    return PipelineConfig(
        ingest=IngestConfig(source="openmoji", image_px=64),
        curate=CurateConfig(holdout_pattern="skin tone", holdout_every=10),
        tokenizer=TokenizerConfig(
            image_px=64,
            downsampling=8,
            fsq_levels=(8, 8, 8, 8),
            width=64,
            blocks_per_group=2,
            optim=OptimConfig(
                steps=800,
                batch_size=64,
                optimizer="muon",
                muon_lr=0.01,
                lr=2e-3,
                betas=(0.9, 0.99),
                weight_decay=1e-4,
                warmup_steps=30,
                final_lr_share=0.02,
                checkpoint_every=200,
            ),
            **_SHORT_DVAE,
        ),
        encode=EncodeConfig(text_vocab_size=2048, max_text_tokens=20),
        fit=FitConfig(
            model=ModelConfig(dim=256, depth=6, heads=4, norm="layer"),
            train=TrainConfig(
                token_swap=0.15,
                rarity=0.5,
                optim=OptimConfig(
                    steps=800,
                    batch_size=64,
                    optimizer="muon",
                    muon_lr=0.02,
                    lr=2e-3,
                    betas=(0.9, 0.95),
                    weight_decay=0.1,
                    warmup_steps=40,
                    final_lr_share=0.02,
                    checkpoint_every=100,
                ),
            ),
            # Chosen by measurement: greedy without guidance is a little better on training captions and much worse on
            # held-out ones; the temperature leaves several pictures per prompt to see.
            sampler=SamplerConfig(temperature=0.5, guidance=1.5),
        ),
        generate=GenerateConfig(own_captions=8, n=4),
    )


def dvae() -> PipelineConfig:
    """The quick start with a small discrete VAE as its tokenizer: the paper's network and relaxation at a laptop's size.

    The switches that a run of some hundred updates needs are on; infra/docs/tokenizers.md says what each mends.

    Hardware: 1 core without bfloat16 instructions, one thread: 5.4 CPU minutes for the tokenizer, then the transformer of
    the quick start. Result: reconstructions of 18.0 dB (held-out pictures 17.4) with 700 of 1,024 codes in use; shapes and
    faces are told, colours are mottled, letters and thin lines lost. fsq had 22.8 dB in twice the time. After 260 updates of
    the transformer 0.198 of its drawings were recognised, held out 0.269; fsq's 0.190 and 0.269. Measured once, on
    2026-11-28 with torch 2.13 on Zen 3 (float32).
    """
    chain = quickstart()
    optim = chain.tokenizer.optim.model_copy(
        update={"steps": 450, "batch_size": 32, "muon_lr": 0.03, "lr": 4e-3, "checkpoint_every": 100}
    )
    tokenizer = chain.tokenizer.model_copy(
        update={"kind": "dvae", "num_codes": 1024, "width": 16, "blocks_per_group": 1, "optim": optim}
    )
    return chain.model_copy(update={"tokenizer": tokenizer})


def _unprompted(generator: GeneratorConfig, family: Literal["vae", "gan"]) -> PipelineConfig:
    """The quick start's pictures, another family: ingest and curation are shared with it."""
    chain = quickstart()
    return PipelineConfig(
        ingest=chain.ingest,
        curate=chain.curate,
        family=family,
        generator=generator,
        generate=GenerateConfig(prompts=("",), n=64),
    )


def vae() -> PipelineConfig:
    """A Gaussian VAE on the quick start's pictures, for comparison with it; it reads no prompt.

    Hardware: 2 cores, one thread; 0.8 GB of memory.
    Minutes there: 9 of training while other programs shared the cores (177 pictures a second).
    Result: reconstructions of 21.2 dB (pictures not trained on: 19.4); drawings have the white ground, the outlines and
    the colours of the pictures, and are blobs: nobody would name an object. Frechet distance on random features 0.028,
    precision 0.91, recall 0.53, coverage 0.90 of 96 drawings. Measured once, on 2026-11-27 with torch 2.13 on Zen 3 (float32).

    The loss is no likelihood. Under logit_laplace with kl_weight 1, 1,500 updates ended in white and grey
    (9.4 dB, Frechet distance 0.68, precision 0): see ``unprompted.collapse``.
    """
    optim = OptimConfig(
        steps=1500, batch_size=64, lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0, warmup_steps=50, ema=0.99
    )
    return _unprompted(GeneratorConfig(kind="vae", width=32, loss="l1_l2", kl_weight=0.1, optim=optim), "vae")


def gan() -> PipelineConfig:
    """A DCGAN with a steadier critic on the quick start's pictures, for comparison with it; it reads no prompt.

    Hardware: 2 cores; 1 GB of memory; some 7 minutes. Result: outlined shapes with coloured fillings on white grounds, of
    the build of people, flags and animals, none of them an object one could name; Frechet distance on random features
    0.112 (95 % interval 0.093 to 0.130), precision 0.71, recall 0.03. The published DCGAN had 0.617 after 132 updates:
    grey clouds under a checkerboard. Measured once, on 2026-11-28 with torch 2.13 on Zen 3 (float32), when running
    statistics were not yet those of the averaged weights: tests/benchmarks/results/families_2-core-zen3_202611.md.

    The published DCGAN is ``upsampling=transposed critic_norm=batch critic_loss=logistic critic_shift=0 width=64
    critic_lr=2e-4 optim.lr=2e-4 optim.ema=0``, each under ``generator.``.
    """
    optim = OptimConfig(
        steps=1500,
        batch_size=32,
        lr=4e-4,
        betas=(0.5, 0.999),
        weight_decay=0.0,
        warmup_steps=0,
        schedule="constant",
        clip_norm=0.0,
        ema=0.99,
    )
    generator = GeneratorConfig(
        kind="gan",
        latent_dim=64,
        width=16,
        critic_lr=4e-4,
        upsampling="resize",
        critic_norm="spectral",
        critic_loss="hinge",
        critic_shift=0.125,
        optim=optim,
    )
    return _unprompted(generator, "gan")


def scenes() -> PipelineConfig:
    """Captioned shapes at 32 px with exact truth; five pairs of colour and shape are never trained on.

    Needs no package and no download. The evaluation tells for each attribute what share of the drawings meets it, for
    trained captions and for the held-out pairs.

    Hardware: 1 core without bfloat16 instructions (Zen 3), shared with other programs; one thread, float32.
    CPU minutes there: 38 in all; by the clock three quarters are the transformer's. Zen 5 with bfloat16 trained 97 rows a
    second of it.
    Result: reconstructions of 27.5 dB and a structural similarity of 0.945; the image loss falls from 6.24 (nothing
    learnt) to 0.46. Of trained captions 0.50 are met in every attribute (colour 0.87, count 0.88, relation 0.83, size
    0.75, shape 0.57; chance 0.01; the reconstructions of true pictures 0.77), of the held-out pairs 0.17 (chance
    0.00). Shape fails most: of true pictures the tokenizer alone loses 23 %. Measured on
    2026-11-28 with torch 2.13; figures in tests/benchmarks/results.
    """
    optim = OptimConfig(
        steps=900,
        batch_size=64,
        optimizer="muon",
        muon_lr=0.02,
        lr=2e-3,
        weight_decay=0.1,
        warmup_steps=30,
        final_lr_share=0.02,
        checkpoint_every=50,
    )
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
            blocks_per_group=1,
            optim=optim.model_copy(
                update={
                    "steps": 300,
                    "muon_lr": 0.01,
                    "betas": (0.9, 0.999),
                    "weight_decay": 1e-4,
                    "warmup_steps": 20,
                }
            ),
        ),
        encode=EncodeConfig(text_vocab_size=300, max_text_tokens=24),
        fit=FitConfig(
            model=ModelConfig(dim=192, depth=4, heads=6, norm="layer"),
            train=TrainConfig(optim=optim),
            sampler=SamplerConfig(temperature=0.5, guidance=1.5),
        ),
        evaluate=EvaluateConfig(num_captions=192, num_heldout=192),
        generate=GenerateConfig(prompts=("a red circle", "a small blue square left of a large green ring")),
    )


PRESETS: dict[str, Callable[[], PipelineConfig]] = {
    "quickstart": quickstart,
    "scenes": scenes,
    "dvae": dvae,
    "vae": vae,
    "gan": gan,
    "tiny": tiny,
    **LARGE_PRESETS,
}
