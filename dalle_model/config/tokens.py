"""Knobs of the optimizer, of the image tokenizers and of what is encoded with them."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dalle_model.config.base import Section

_Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Section):
    """How one network is optimised. The same section for every network: there is one training loop."""

    steps: int = Field(1000, ge=1, description="Optimiser updates.")
    batch_size: int = Field(64, ge=1, description="Rows per update, over all ranks.")
    micro_batch_size: int = Field(
        0,
        ge=0,
        description="Rows per forward pass and rank; 0 = all rows of the rank at once. Halved on out-of-memory.",
    )
    optimizer: Literal["adamw", "muon"] = Field("adamw", description="muon: matrices by Muon, the rest by AdamW.")
    lr: float = Field(1e-3, gt=0, le=1, description="Peak step size of AdamW.")
    muon_lr: float = Field(0.02, gt=0, le=1, description="Peak step size of Muon's matrices; without effect for adamw.")
    betas: tuple[_Decay, _Decay] = Field(
        (0.9, 0.96), description="AdamW's decay rates; the paper's transformer uses 0.9, 0.96."
    )
    weight_decay: float = Field(
        0.045, ge=0, le=10, description="Decay of matrices; gains, biases and embeddings are never decayed."
    )
    warmup_steps: int = Field(100, ge=0, description="Linear warm-up, updates.")
    schedule: Literal["constant", "cosine", "linear", "wsd", "halving", "dvae"] = Field(
        "cosine",
        description="After the warm-up. wsd: stable, then linear decay over the last fifth. halving: the paper's five halvings, at even distances. dvae: cosine over the first 40 %, then constant, as the paper's dVAE.",
    )
    final_lr_share: float = Field(
        0.05, ge=0, le=1, description="Step size at the end over the peak; without effect for constant and halving."
    )
    clip_norm: float = Field(1.0, ge=0, description="Gradient norm limit, 0 = off.")
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay of the averaged weights, 0 = off; less in the first updates. The averaged weights are the ones published.",
    )
    seed: int = Field(0, ge=0, description="Seed of initial weights, data order, augmentation and dropout.")
    checkpoint_every: int = Field(200, ge=1, description="Updates between checkpoints: the most work a kill can cost.")
    keep_checkpoints: int = Field(2, ge=1, description="Checkpoints kept while training.")
    log_every: int = Field(20, ge=1, description="Updates between points of the loss curve.")
    sharding: Literal["none", "ddp", "fsdp2"] = Field(
        "ddp",
        description="Several ranks (DALLE_RANKS): ddp holds the whole network on each; fsdp2 spreads weights, gradients and optimiser state over them, for networks that one device does not hold; none refuses more than one rank.",
    )
    activation_checkpointing: bool = Field(
        False,
        description="Compute the inside of each block again in the backward pass instead of keeping it: less memory, about a third more time.",
    )
    compile: bool = Field(
        False,
        description="torch.compile of each block. Off, because on a CPU in bfloat16 it gains nothing after tens of seconds of compiling; for long runs on a GPU switch it on and compare.",
    )
    divergence_factor: float = Field(
        3.0,
        ge=0,
        description="The run is stopped when the loss stays above this multiple of its best and more than half of what was learnt is lost, 0 = never.",
    )
    divergence_points: int = Field(
        5, ge=1, description="Points of the curve in a row that must be so before the run is stopped."
    )
    preflight: int = Field(
        0,
        ge=0,
        description="Updates on one fixed batch before training begins, 0 = off. The loss must fall, or something is wrong with data, loss or step size; the weights are then put back.",
    )
    sample_every: int = Field(
        0,
        ge=0,
        description="Updates between samples from fixed prompts (or reconstructions) made while training, 0 = none.",
    )


class TokenizerConfig(Section):
    """Image tokenizer: a picture as a grid of discrete codes."""

    kind: Literal["fsq", "vq", "dvae"] = Field(
        "fsq",
        description="fsq: finite scalar quantisation. vq: vector quantisation with a learnt codebook. dvae: the DALL-E paper's discrete VAE.",
    )
    image_px: int = Field(64, ge=8, le=1024, description="Side of the square picture the tokenizer sees, px.")
    downsampling: int = Field(8, ge=2, le=32, description="Pixels per token along a side; a power of two.")
    fsq_levels: tuple[int, ...] = Field(
        (8, 8, 8, 8), description="FSQ levels per dimension; their product is the vocabulary."
    )
    num_codes: int = Field(8192, ge=2, le=65536, description="Vocabulary of vq and dvae; without effect for fsq.")
    vq_dim: int = Field(8, ge=2, le=512, description="vq: dimensions of a code; few keep the codes in use.")
    width: int = Field(
        64, ge=4, le=1024, description="Channels of the first group; doubled at each downsampling (paper: 256)."
    )
    blocks_per_group: int = Field(2, ge=1, le=8, description="Residual blocks per resolution (paper: 2).")
    decoder_blocks: int = Field(
        0, ge=0, le=16, description="Residual blocks per resolution of the fsq and vq decoder, 0 = as blocks_per_group."
    )
    l1_share: float = Field(
        0.5, ge=0, le=1, description="fsq, vq: weight of the mean absolute error; the mean squared error has the rest."
    )
    kl_weight: float = Field(
        6.6, ge=0, description="Final weight of the dVAE's KL term, in the paper's scaling (recipe 1A)."
    )
    final_temperature: float = Field(1 / 16, gt=0, le=1, description="Final Gumbel-softmax temperature of the dVAE.")
    temperature_share: float = Field(
        0.05, gt=0, le=1, description="dvae: share of the updates in which the temperature falls (paper: 0.05)."
    )
    kl_ramp_share: float = Field(
        0.002, gt=0, le=1, description="dvae: share of the updates in which the KL weight rises (paper: 0.002)."
    )
    likelihood: Literal["logit_laplace", "normal"] = Field(
        "logit_laplace",
        description="dvae: density of a value given the codes: the paper's, or normal with deviation 0.1, which is the squared error. A run of some hundred updates on white grounds ends in white pictures with the former.",
    )
    start: Literal["paper", "data"] = Field(
        "paper",
        description="dvae: initial weights as in the paper, or set by training pictures: codes begin as clusters of features, the drawing as the mean picture. For runs of some hundred updates.",
    )
    block_gain: float = Field(
        0.0,
        ge=0,
        le=1,
        description="dvae: what a residual branch is multiplied by, 0 = one over the squared number of blocks (paper). In some hundred updates the paper's branches learn little, and each code stays a square of one colour.",
    )
    encoder_lr_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="dvae: step size of the encoder over that of the decoder (paper: 1). A slower encoder keeps more codes in use.",
    )
    min_perplexity_share: float = Field(
        0.02,
        ge=0,
        lt=1,
        description="The step fails when the code perplexity is below this share of the vocabulary: the codebook has collapsed.",
    )
    optim: OptimConfig = Field(
        default_factory=lambda: OptimConfig(betas=(0.9, 0.999), weight_decay=1e-4, batch_size=64)
    )
    loss: Literal["l1_l2", "logit_laplace"] = Field(
        "l1_l2",
        description="fsq, vq: absolute and squared error mixed by l1_share, or the paper's logit-Laplace likelihood. For the dvae see likelihood.",
    )
    perceptual_weight: float = Field(
        0.0,
        ge=0,
        le=100,
        description="fsq, vq: weight of the distance between features of picture and reconstruction, 0 = off (VQGAN: 1).",
    )
    perceptual_file: str = Field(
        "",
        description="Weights of a VGG-16, with or without LPIPS heads, as safetensors; empty = fixed random features, which need no file.",
    )
    perceptual_sha256: str = Field(
        "", pattern=r"^([0-9a-f]{64})?$", description="SHA-256 of perceptual_file; another file is refused."
    )
    adversarial_weight: float = Field(
        0.0,
        ge=0,
        le=100,
        description="fsq, vq: weight of the patch critic on top of the adaptive one, 0 = no critic (VQGAN: 0.8).",
    )
    adversarial_start: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Share of the updates before the critic begins: it must not judge what is not yet a picture.",
    )
    critic_width: int = Field(64, ge=4, le=512, description="Channels of the critic's first layer (VQGAN: 64).")
    critic_lr: float = Field(2e-4, gt=0, le=1, description="Peak step size of the critic's AdamW.")
    augment: Literal["none", "paper"] = Field(
        "none",
        description="paper: random size, random crop and random flip of the training pictures (recipe 1A). A flip changes what text, flags and arrows mean.",
    )

    @property
    def vocab_size(self) -> int:
        """Number of distinct codes."""
        return math.prod(self.fsq_levels) if self.kind == "fsq" else self.num_codes

    @property
    def grid(self) -> int:
        """Tokens along one side."""
        return self.image_px // self.downsampling

    @property
    def num_tokens(self) -> int:
        """Tokens per picture."""
        return self.grid**2

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        if self.downsampling & (self.downsampling - 1):
            raise ValueError(f"downsampling {self.downsampling} must be a power of two: 2, 4, 8, 16 or 32")
        if self.image_px % self.downsampling:
            raise ValueError(f"image_px {self.image_px} must be a multiple of downsampling {self.downsampling}")
        if self.vocab_size > 65536:
            raise ValueError(f"the vocabulary has {self.vocab_size} codes; tokens are uint16, so at most 65536")
        if min(self.fsq_levels, default=2) < 2:
            raise ValueError(f"fsq_levels {self.fsq_levels}: each needs at least 2 levels")
        if self.kind == "fsq" and not self.fsq_levels:
            raise ValueError("fsq_levels () gives a single code; name one dimension at least, e.g. [8, 8, 8]")
        return self

    @model_validator(mode="after")
    def _loss_terms(self) -> Self:
        if self.kind == "dvae" and (self.perceptual_weight or self.adversarial_weight):
            raise ValueError(
                "kind dvae is trained with the paper's loss alone; set perceptual_weight and adversarial_weight to 0, or take fsq or vq"
            )
        if self.perceptual_file and self.image_px < 16:
            raise ValueError(
                f"perceptual_file is a VGG-16, which halves its maps four times: image_px {self.image_px} must be at least 16"
            )
        if self.perceptual_file and not self.perceptual_sha256:
            raise ValueError("perceptual_file needs perceptual_sha256, as sha256sum prints it: its content must count")
        return self


class AugmentConfig(Section):
    """Augmentation: further token rows of each training pair that keep its meaning."""

    copies: int = Field(
        0,
        ge=0,
        le=64,
        description="Token rows of each training pair beside its own, 0 = off. Each has a crop, a tone and a wording of its own.",
    )
    crop: float = Field(
        0.1,
        ge=0,
        le=0.5,
        description="Share of the side that a crop leaves out at most; more loses what the caption names.",
    )
    colour: float = Field(
        0.1,
        ge=0,
        le=0.5,
        description="Change of brightness and contrast at most, as a share; never of the hue, and not where the caption speaks of light or dark.",
    )
    mirror: bool = Field(
        True,
        description="Mirror half of the copies, but none whose caption names flags, writing, arrows, clocks or their like. Writing that no caption mentions is not seen: then switch it off.",
    )
    templates: tuple[str, ...] = Field(
        (),
        description='Sentences around the caption, e.g. ["a picture of {}"]; each takes as many copies as the plain caption does.',
    )
    aliases: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of copies whose caption is another name that the source gives, where it gives one.",
    )
    keywords: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of copies with one of the source's own keywords after the caption, where it has some.",
    )
    seed: int = Field(0, ge=0, description="Seed of all copies.")

    @model_validator(mode="after")
    def _places(self) -> Self:
        for template in self.templates:
            if template.count("{}") != 1:
                raise ValueError(f"template {template!r} must hold {{}} once: the place of the caption")
        return self


class ImportTokenizerConfig(Section):
    """Import of OpenAI's published dVAE as an image tokenizer."""

    encoder: str = Field(description="OpenAI's encoder.pkl: a path or s3:// URI. Nothing in it is executed.")
    decoder: str = Field(description="OpenAI's decoder.pkl, likewise.")
    image_px: int = Field(
        256, ge=8, le=1024, description="Side of the pictures it will be given, px; a multiple of 8 (published: 256)."
    )


class EncodeConfig(Section):
    """Encode: pictures to image tokens, captions to text tokens, as Parquet."""

    rows_per_shard: int = Field(2048, ge=1, le=1_000_000, description="Token rows per Parquet shard.")
    batch_size: int = Field(64, ge=1, description="Pictures per forward pass.")
    text_vocab_size: int = Field(
        2048, ge=260, le=65000, description="BPE vocabulary trained on the training captions (paper: 16384)."
    )
    max_text_tokens: int = Field(
        32, ge=2, le=512, description="Text positions; longer captions are cut and counted (paper: 256)."
    )
    augment: AugmentConfig = Field(
        default_factory=AugmentConfig, description="Further rows of the training pairs; of no other split."
    )
