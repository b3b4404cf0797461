"""Knobs of the transformer, of its training, and of the generators that read no prompt."""

from typing import Literal, Self

from pydantic import Field, model_validator

from dalle_model.config.base import Section
from dalle_model.config.sampler import SamplerConfig
from dalle_model.config.tokens import OptimConfig


class ModelConfig(Section):
    """The decoder-only text + image transformer."""

    dim: int = Field(256, ge=16, le=16384, multiple_of=2, description="Width (paper: 3968).")
    depth: int = Field(6, ge=1, le=256, description="Layers (paper: 64).")
    heads: int = Field(8, ge=1, le=256, description="Attention heads (paper: 62).")
    mode: Literal["modern", "paper"] = Field(
        "modern",
        description="modern: rotary positions, query-key norm, SwiGLU, full attention. paper: as in the DALL-E paper: row and column embeddings, row, column and convolutional masks, GELU.",
    )
    mlp_ratio: float = Field(
        8 / 3,
        gt=0,
        le=16,
        description="Hidden width of the SwiGLU MLP over dim; 8/3 has the parameters of a plain MLP of 4.",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on residual branches.")
    norm: Literal["layer", "rms"] = Field(
        "rms",
        description="rms: as in recent models. layer: layer norm without a bias; on a CPU an update of the quick start takes 8 % less time with it.",
    )

    @property
    def hidden(self) -> int:
        """Hidden width of the MLP, rounded to a multiple of 8 for the matrix kernels."""
        return max(8, round(self.dim * self.mlp_ratio / 8) * 8)

    @model_validator(mode="after")
    def _heads(self) -> Self:
        if self.dim % self.heads or (self.dim // self.heads) % 4:
            raise ValueError(
                f"dim {self.dim} must be a multiple of 4 x heads {self.heads}: rotary positions split each head in four"
            )
        return self


class TrainConfig(Section):
    """Training of the transformer."""

    text_loss_share: float = Field(
        0.125,
        ge=0,
        le=1,
        description="Weight of the text loss; the image loss has the rest (paper: 1/8). Of [image][text] it is the weight of the image loss.",
    )
    condition_dropout: float = Field(
        0.1, ge=0, lt=1, description="Share of rows trained without their caption, so that guidance works."
    )
    bpe_dropout: float = Field(0.0, ge=0, lt=1, description="BPE merges dropped at random in training (paper: 0.1).")
    token_swap: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the image tokens read in training that come from another picture of the batch, so that the model trusts the caption more than its own last tokens.",
    )
    rarity: float = Field(
        0.0,
        ge=0,
        le=4,
        description="Rows are seen in proportion to (mean information of their caption's tokens) to this power: above 0, captions of rare words more often.",
    )
    image_first_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of updates trained as [image][text], so that the model also describes pictures and scores captions (mode modern).",
    )
    optim: OptimConfig = Field(default_factory=OptimConfig)
    objective: Literal["text_to_image", "text"] = Field(
        "text_to_image",
        description="text_to_image: captions and pictures. text: captions alone, a GPT; pictures can be learnt later from its weights (`--init-from`). What concerns pictures (condition_dropout, token_swap, image_first_share, text_loss_share) is then without effect.",
    )

    @model_validator(mode="after")
    def _pictures_count(self) -> Self:
        if self.text_loss_share == 1 and self.objective == "text_to_image":
            raise ValueError("text_loss_share 1 leaves pictures untrained; lower it, or set objective text")
        return self

    @property
    def directions(self) -> tuple[str, ...]:
        """What a model trained so can do; stored with its weights."""
        if self.objective == "text":
            return ("text",)
        text = ("text",) if self.text_loss_share else ()
        return ("text_to_image", *text, *(("image_to_text",) if self.image_first_share and text else ()))


class FitConfig(Section):
    """What the step that trains the transformer reads."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    sampler: SamplerConfig = Field(default_factory=SamplerConfig, description="Stored with the model as its default.")

    @model_validator(mode="after")
    def _directions(self) -> Self:
        if self.model.mode == "paper" and self.train.image_first_share:
            raise ValueError("image_first_share above 0 needs model.mode modern: the paper's masks read text first")
        return self


class GeneratorConfig(Section):
    """A generator that reads no prompt, beside the transformer for comparison: a Gaussian VAE or a DCGAN."""

    kind: Literal["vae", "gan"] = Field(
        "vae",
        description="vae: variational autoencoder with a Gaussian latent (Kingma and Welling 2013). gan: DCGAN (Radford et al. 2015).",
    )
    image_px: int = Field(64, ge=8, le=512, description="Side of the square pictures, px.")
    latent_dim: int = Field(128, ge=1, le=4096, description="Numbers from which a picture is made (DCGAN: 100).")
    width: int = Field(64, ge=4, le=1024, description="Channels at the finest resolution, doubled at each halving.")
    downsampling: int = Field(
        8, ge=2, le=64, description="vae: pixels along a side of the coarsest cell; a power of two."
    )
    blocks_per_group: int = Field(1, ge=1, le=8, description="vae: residual blocks per resolution of the encoder.")
    decoder_blocks: int = Field(
        0, ge=0, le=16, description="vae: residual blocks per resolution of the decoder, 0 = as blocks_per_group."
    )
    loss: Literal["l1_l2", "logit_laplace"] = Field(
        "logit_laplace", description="vae: the likelihood. Only with logit_laplace and kl_weight 1 is the loss a bound."
    )
    kl_weight: float = Field(1.0, ge=0, le=1000, description="vae: weight of the KL term; 1 = the evidence bound.")
    critic_lr: float = Field(2e-4, gt=0, le=1, description="gan: peak step size of the critic.")
    upsampling: Literal["transposed", "resize"] = Field(
        "transposed",
        description="gan: transposed convolutions as published, or nearest neighbour and a convolution, which leaves no checkerboard.",
    )
    critic_norm: Literal["batch", "spectral"] = Field(
        "batch", description="gan: batch norm in the critic as published, or spectral norms of its weights."
    )
    critic_loss: Literal["logistic", "hinge"] = Field(
        "logistic", description="gan: the non-saturating logistic loss as published, or hinge."
    )
    critic_shift: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="gan: share of the side by which real and made pictures are shifted at random before the critic, at most; it then learns few pictures by heart less soon.",
    )
    optim: OptimConfig = Field(default_factory=lambda: OptimConfig(betas=(0.9, 0.999), weight_decay=0.0, batch_size=64))

    @model_validator(mode="after")
    def _generator_sizes(self) -> Self:
        if self.kind == "gan" and (self.image_px < 16 or self.image_px & (self.image_px - 1)):
            raise ValueError(f"kind gan doubles 4 px up to image_px {self.image_px}: take 16, 32, 64, 128, 256 or 512")
        if self.downsampling & (self.downsampling - 1) or self.image_px % self.downsampling:
            raise ValueError(
                f"downsampling {self.downsampling} must be a power of two that divides image_px {self.image_px}"
            )
        return self
