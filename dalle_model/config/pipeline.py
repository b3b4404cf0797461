"""Knobs of evaluate and generate, and the whole chain."""

from typing import Any, Literal

from pydantic import Field, model_validator

from dalle_model.config.base import Section
from dalle_model.config.data import CurateConfig, IngestConfig
from dalle_model.config.sampler import SamplerChange
from dalle_model.config.tokens import EncodeConfig, TokenizerConfig
from dalle_model.config.training import FitConfig, GeneratorConfig


class EvaluateConfig(Section):
    """Evaluate: what is measured on a trained model."""

    num_captions: int = Field(
        96, ge=1, le=100_000, description="Training captions spread over the set that are drawn for `recognisability`."
    )
    num_heldout: int = Field(32, ge=0, le=100_000, description="Held-out compositions drawn beside them.")
    max_reference: int = Field(
        20_000, ge=2, description="Training pictures among which the nearest is sought; more are thinned out evenly."
    )
    batch_size: int = Field(32, ge=1, description="Pictures drawn at once; a picture is the same in any batch.")
    seed: int = Field(0, ge=0, description="Seed of the drawn pictures.")
    sampler: SamplerChange = Field(
        default_factory=SamplerChange,
        description="Changes of the sampler that is stored with the model; what is not set here stays as it is there.",
    )
    judge_steps: int = Field(
        300,
        ge=0,
        le=100_000,
        description="Updates of the small dual encoder that tells how well drawings fit their captions, 0 = without. It is trained on the training split once and shared by all evaluations of it.",
    )
    num_unseen: int = Field(
        256,
        ge=0,
        le=100_000,
        description="Pairs of each split whose bits per pixel are measured through the whole chain, spread evenly, 0 = none.",
    )
    baseline: str = Field(
        "",
        pattern=r"^([0-9a-f]{64})?$",
        description="Fingerprint of the evaluation of another model, with which the report compares; empty = none. `dalle evaluate --against REF` fills it in.",
    )
    packaged: bool = Field(
        True,
        description="Distances also on EfficientNet-Lite0, whose weights the extra `features` installs; left out, and said so, where it is absent.",
    )
    inception: str = Field(
        "",
        description="File of the TorchScript Inception that clean-fid uses (inception-2015-12-05.pt), for FID; empty = without. Never downloaded.",
    )
    inception_sha256: str = Field(
        "", pattern=r"^([0-9a-f]{64})?$", description="Its SHA-256; part of the figure's record."
    )
    clip: str = Field(
        "",
        description="Folder of a CLIP model of transformers, for CLIPScore and CMMD; empty = without. Never downloaded.",
    )
    clip_sha256: str = Field(
        "", pattern=r"^([0-9a-f]{64})?$", description="SHA-256 of its model.safetensors; part of the figures' records."
    )


MAX_N = 10_000
"""Pictures of one prompt, at most."""
MAX_SEED = 2**63 - 1
"""What a column of 64 bits holds."""


class GenerateConfig(Section):
    """Generate: a list of prompts to pictures."""

    prompts: tuple[str, ...] = Field((), description="Prompts drawn in this order.")
    prompts_uri: str = Field(
        "", description="File of prompts (txt, jsonl, csv, parquet) read after `prompts`; a path or s3:// URI."
    )
    own_captions: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Captions of the model's own pairs to draw after the prompts, half of them held out from training where there are such: what to look at first when the pictures are yours.",
    )
    n: int = Field(
        4,
        ge=1,
        le=MAX_N,
        title="Pictures per prompt",
        description="How often each prompt is drawn, each time with a seed of its own.",
    )
    seed: int = Field(
        0,
        ge=0,
        le=MAX_SEED,
        description="Root seed; each picture's own seed derives from (model, prompt, seed, index).",
    )
    batch_size: int = Field(
        0,
        ge=0,
        le=4096,
        description="Pictures drawn at once, 0 = as many as the memory holds; a picture is the same in any batch.",
    )
    rows_per_shard: int = Field(256, ge=1, description="Pictures per shard: the unit of work, retry and resume.")
    upscale_px: int = Field(128, ge=8, le=4096, description="Side at which pictures are shown in the gallery, px.")
    sampler: SamplerChange = Field(
        default_factory=SamplerChange,
        description="Changes of the sampler that is stored with the model; what is not set here stays as it is there.",
    )
    format: Literal["png", "webp"] = Field(
        "png", description="Encoding of the pictures, both lossless and both with their origin inside; webp is smaller."
    )
    prompt_policy: Literal["standard", "off"] = Field(
        "standard",
        description="standard: prompts with a word of the package's list are not drawn, and stand in the batch with the reason. off: only the own list counts.",
    )
    policy_file: str = Field(
        "",
        description="Own list of words that are not drawn, a path or s3:// URI: UTF-8, one term a line (a word, a word with * for any ending, a phrase), # for comments. Its content counts, not its place.",
    )
    weights: Literal["", "full", "half", "int8"] = Field(
        "",
        description="Weights to draw with: empty = as the sampler says; int8 is faster where few pictures are drawn at once, half where many are on a CPU without bfloat16; their pictures are others.",
    )
    nsfw_model: str = Field(
        "",
        description="Classifier of the drawn pictures: nudenet (`pip install .[nsfw]`), or the path of a Hugging Face image-classification folder with a label nsfw. Empty = not checked, which does not mean safe.",
    )
    max_nsfw: float = Field(
        0.8,
        ge=0,
        le=1,
        description="Score of that classifier at most; above it the row keeps its reason and no picture.",
    )


class PipelineConfig(Section):
    """The whole chain. A preset is a function that returns one of these, complete."""

    ingest: IngestConfig = Field(default_factory=IngestConfig)
    curate: CurateConfig = Field(default_factory=CurateConfig)
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig)
    encode: EncodeConfig = Field(default_factory=EncodeConfig)
    fit: FitConfig = Field(default_factory=FitConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    generate: GenerateConfig = Field(default_factory=GenerateConfig)
    family: Literal["dalle", "vae", "gan"] = Field(
        "dalle",
        description="dalle: tokenizer and transformer. vae, gan: a generator without prompts, trained on the pictures alone; it decides generator.kind.",
    )
    generator: GeneratorConfig = Field(default_factory=GeneratorConfig)

    @model_validator(mode="before")
    @classmethod
    def _family_decides(cls, values: Any) -> Any:
        """One switch: the family names the kind of generator, whatever the section says."""
        family = values.get("family") if isinstance(values, dict) else None
        if family not in ("vae", "gan"):
            return values
        section = values.get("generator", {})
        given = section.model_dump() if isinstance(section, GeneratorConfig) else section
        return values | {"generator": {**given, "kind": family}} if isinstance(given, dict) else values
