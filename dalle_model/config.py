"""Every knob of the system, once, in the order of the pipeline.

One section per concern; a step's fingerprint covers just the sections it reads. All models are frozen and refuse
unknown keys. What can be derived (vocabulary sizes, grid, sequence length) is a property and is computed nowhere else.
Each description gives the unit, and the reason for the default where it is not plain; bounds are enforced.
"""

import hashlib
import json
import math
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8, no NaN. Hashes are taken over this."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _for_forms(schema: dict[str, Any]) -> None:
    """What a form made from the JSON schema needs: titles in words, and the bounds where a person reads them."""
    schema["title"] = schema["title"].removesuffix("Config")
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    for name, knob in schema.get("properties", {}).items():
        knob.setdefault("title", name.replace("_", " ").capitalize())
        if bounds := [f"{text} {knob[key]:,}" for key, text in words.items() if key in knob]:
            knob["description"] = f"{knob.get('description', '')} Allowed: {', '.join(bounds)}.".lstrip()


class Section(BaseModel):
    """Base of all config sections."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=False, json_schema_extra=_for_forms)

    def digest(self) -> str:
        """SHA-256 of the canonical JSON of this section."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json"))).hexdigest()


class FetchConfig(Section):
    """Fetch: how pictures behind URLs are asked for. Only the opt-out rule is part of an artifact's address."""

    obey_opt_out: bool = Field(
        True,
        description="Respect robots.txt, X-Robots-Tag (noai, noimageai, noindex, noimageindex, noml) and TDM reservations. What was decided stands in the ledger, row by row. Turn off only for sites of your own.",
    )
    contact: str = Field(
        "", description="Where the owner of a site reaches you, a URL or an e-mail; part of the user agent."
    )
    concurrency: int = Field(32, ge=1, le=512, description="Requests under way at once, over all hosts.")
    per_host_per_s: float = Field(
        5.0,
        gt=0,
        le=1000,
        description="Requests per second to one host. A longer Crawl-delay or Retry-After of the site counts.",
    )
    timeout_s: float = Field(30.0, gt=0, le=600, description="Seconds one request may take in all.")
    retries: int = Field(
        2,
        ge=0,
        le=10,
        description="Tries after the first for what may pass: timeouts, broken connections, 429 and 5xx.",
    )
    min_success: float = Field(
        0.2,
        ge=0,
        le=1,
        description="The step stops when fewer than this share of a shard's fetches succeed: then the network or the list is the trouble. What the owner or our rules refuse does not count. Lists of the open web succeed with half or more.",
    )
    allow_addresses: str = Field(
        "",
        description="Addresses or networks that may be contacted although they are not global, e.g. 10.1.2.3, 10.8.0.0/16; empty = none.",
    )


class IngestConfig(Section):
    """Ingest: where pairs come from and what a picture must satisfy to be decoded."""

    source: str = Field(
        "openmoji",
        description="openmoji, openclipart[:PATH], scenes[:COUNT], imagefolder:PATH, hf:NAME[:config][:split], parquet:PATH, jsonl:PATH, csv:PATH, webdataset:PATH, urls:LIST. Several: SOURCE + SOURCE * WEIGHT, where the weight says how often a pair is seen in training relative to the others.",
    )
    limit: int = Field(
        0, ge=0, description="Rows to read of each source, 0 = all. The first rows in the source's own order."
    )
    image_px: int = Field(
        64,
        ge=8,
        le=4096,
        description="Longest side kept, px. Larger pictures are scaled down; vector pictures are drawn at this size.",
    )
    rows_per_shard: int = Field(
        512, ge=1, le=100_000, description="Input rows per shard: the unit of work, retry and resume."
    )
    background: str = Field("#ffffff", pattern=r"^#[0-9a-fA-F]{6}$", description="Colour behind transparent pictures.")
    max_image_bytes: int = Field(20_000_000, ge=1, description="Encoded size limit in bytes, checked before decoding.")
    max_image_mpx: float = Field(
        25.0, gt=0, le=1000, description="Pixel limit in megapixels, checked in the header before decoding."
    )
    max_decode_s: float = Field(
        10.0,
        gt=0,
        description="Seconds one picture may take to decode, half of it on the CPU, before its child process is stopped.",
    )
    max_caption_chars: int = Field(
        20_000, ge=1, description="Characters of a caption at most; longer ones are documents, not captions."
    )
    max_rejected_share: float = Field(
        0.9,
        ge=0,
        le=1,
        description="The step fails when more than this share of rows is rejected: then the source is wrong, not the rows.",
    )
    caption_column: str = Field(
        "", description="Caption column of hf: and parquet: sources; empty = the first of text, caption, prompt, title."
    )
    image_column: str = Field(
        "",
        description="Image column of hf: and parquet: sources, URL column of urls:; empty = the first of image, bytes, jpg, png, or of url, image_url, image.",
    )
    fetch: FetchConfig = Field(FetchConfig(), description="How pictures behind URLs are asked for.")
    retry: Literal["none", "transient"] = Field(
        "none",
        description="transient: take the earlier pairs that are given and fetch again only what failed for a passing reason (timeouts, broken connections, 429 and 5xx).",
    )


class CurateConfig(Section):
    """Curate: which pairs are good enough, and which split each belongs to."""

    preset: Literal["none", "datacomp_basic", "dalle2021"] = Field(
        "none", description="Published rule set. Its thresholds and those below both apply: the stricter one counts."
    )
    min_side_px: int = Field(
        16, ge=1, description="Shorter side of the source picture at least, px. Vector pictures have no size and pass."
    )
    max_aspect: float = Field(3.0, ge=1, description="Long side over short side at most.")
    min_caption_words: int = Field(1, ge=0, description="Words in the caption at least.")
    min_caption_chars: int = Field(2, ge=0, description="Characters in the caption at least.")
    max_caption_chars: int = Field(1000, ge=1, description="Characters in the caption at most.")
    max_word_repetition: float = Field(
        0.7, gt=0, le=1, description="Share of the most frequent word at most (captions of four words or more)."
    )
    max_boilerplate: float = Field(
        1.0, gt=0, le=1, description="Share of the caption in stock phrases such as date stamps at most, 1 = off."
    )
    min_entropy_bits: float = Field(
        0.1, ge=0, description="Entropy of the grey histogram at least, bits; drops blank pictures."
    )
    near_duplicate_bits: int = Field(
        -1,
        ge=-1,
        le=12,
        description="Pictures whose 64-bit perceptual hashes differ in at most this many bits share a cluster, -1 = only equal pictures do. Clusters never straddle train, valid and test. Unrelated pictures begin to meet near 12.",
    )
    drop_duplicates: bool = Field(
        True,
        description="Keep one pair per identical (image, caption): that of the larger source picture, then the smallest id.",
    )
    max_captions_per_picture: int = Field(
        8,
        ge=0,
        description="Different captions that one picture may have, 0 = any number. With more of them it is a placeholder, and all its pairs go.",
    )
    valid_share: float = Field(0.02, ge=0, lt=1, description="Share of clusters held for validation.")
    test_share: float = Field(0.0, ge=0, lt=1, description="Share of clusters held for testing.")
    holdout_pattern: str = Field(
        "", description="Regular expression of captions from which compositions are held out of training; empty = none."
    )
    holdout_every: int = Field(
        10,
        ge=1,
        description="One in this many matching captions goes to the split `heldout`, 1 = all (by hash of the caption, whatever the seed). Every caption of the same picture goes with it; look-alikes do not.",
    )
    seed: int = Field(0, ge=0, description="Seed of the split.")
    embedding: Literal["none", "thumbnail", "random"] = Field(
        "none",
        description="Third tier of kinship, beside equal pictures and near hashes. thumbnail: 8 x 8 in colour; it finds recompressed, recoloured and slightly cropped copies. random: fixed untrained convolutions, for texture. Off, for near pictures of a small set are often siblings.",
    )
    embedding_distance: float = Field(
        0.04,
        ge=0,
        le=10,
        description="Pictures whose embeddings are at most this far apart share a cluster. thumbnail: root mean square error, 1 = the full range; a crop by 5 % is at 0.05. Icons over plain ground want 0.01: there strangers begin at 0.015.",
    )
    max_pairs_per_cluster: int = Field(
        0,
        ge=0,
        description="Pairs kept of one cluster, 0 = all. Survivors are those with the larger source picture, then the longer caption, then the smaller id.",
    )
    folds: int = Field(
        0, ge=0, le=100, description="Folds of a cross-validation, by cluster so that kin is in one fold; 0 = off."
    )
    fold: int = Field(
        0, ge=0, description="The fold that is held out as split `test`, from 0; instead of test_share. Needs folds."
    )
    exclude: tuple[str, ...] = Field(
        (),
        description="References of pairs or curated artifacts that training must not touch, such as foreign evaluation sets. What is near them is dropped with all its kin, as `touches_evaluation`.",
    )
    exclude_bits: int = Field(
        4,
        ge=0,
        le=12,
        description="Near an excluded picture is what differs from it in at most this many bits of the perceptual hash (or by embedding_distance, where an embedding is set).",
    )
    languages: str = Field(
        "",
        pattern=r"^([a-z]{2}(,[a-z]{2})*)?$",
        description="Languages of captions kept, ISO 639-1 codes between commas, e.g. en,de; empty = those of the preset (dalle2021 and datacomp_basic keep en, none keeps all). Captions below four words count only by their alphabet.",
    )
    max_foreign: float = Field(
        0.7,
        ge=0,
        le=1,
        description="How certain it may be, at most, that a caption is in another language. At 0.7 two of 3,953 English emoji names were lost (of places), and 84 to 100 % of those in 13 other languages went; on other captions it can do worse, and doubt keeps a row.",
    )
    boilerplate_min_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Share of all captions (and 20 at least) that must hold a phrase of 3 to 8 words, or be equal, to be mined as boilerplate; 0 = nothing is mined.",
    )
    max_mined_boilerplate: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the caption's words in mined phrases at most, 1 = off: what is frequent may be content, so read the report's list first.",
    )
    boilerplate_allow: str = Field(
        "", description="Phrases between semicolons that are content: mined phrases that hold one of them do not count."
    )
    max_profanity: int = Field(
        0, ge=0, description="Words on the package's list of profanity in a caption at most; 1000 = off."
    )
    policy_file: str = Field(
        "",
        description="Path of an own list of words: UTF-8, one term a line (a word, a word with * for any ending, a phrase), # for comments. Its content enters the fingerprint, not its place.",
    )
    max_policy: int = Field(0, ge=0, description="Terms of the own list in a caption at most.")
    mask_personal_data: bool = Field(
        True,
        description="Replace e-mail addresses, telephone numbers, payment cards and street addresses in captions by words such as [email]. The masked caption is what goes on.",
    )
    max_personal_data: int = Field(
        1000, ge=0, description="Findings of personal data in a caption at most, masked or not; 1000 = off."
    )
    max_blur: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Blur at most, 0 sharp to 1, 1 = off; measured on the stored picture, so a picture that was scaled down looks sharp.",
    )
    max_text_share: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the picture in lines of upright print at most, 1 = off. 0.02 finds captions burnt into photographs of 128 px or more; of drawings it takes many without any text.",
    )
    max_watermark: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Repetition of fine detail at most, 1 = off. 0.5 parts photographs with a tiled mark from those without; patterns and stripes score high too.",
    )
    nsfw_model: str = Field(
        "",
        description="Classifier of pictures: nudenet (`pip install .[nsfw]`), or the path of a Hugging Face image-classification folder with a label nsfw. Empty = not checked, which does not mean safe.",
    )
    max_nsfw: float = Field(
        0.8, ge=0, le=1, description="Score of that classifier at most. nudenet gives 0.4 to harmless icons."
    )
    agreement_model: str = Field(
        "",
        description="Model that scores whether caption and picture fit: a model artifact of this store (fingerprint or name), or the path of a Hugging Face CLIP folder. Empty = not checked.",
    )
    min_agreement: float = Field(
        -1000.0,
        ge=-1000,
        description="Agreement at least: cosine of a CLIP model (LAION kept 0.28), or nats per caption token that the picture brings to a model artifact. -1000 = off, the score is filed alone.",
    )
    aesthetic_weight: float = Field(
        0.0,
        ge=0,
        le=0.9,
        description="How far the aesthetic score moves a pair's sampling weight: weight = 1 + aesthetic_weight x (2 x score - 1). 0 = all weights are 1.",
    )

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.valid_share + self.test_share >= 1:
            raise ValueError("valid_share + test_share must leave a share for training (sum below 1)")
        if self.folds == 1 or (self.fold and self.fold >= self.folds):
            raise ValueError(
                f"fold {self.fold} of {self.folds} folds: folds is 0 (off) or 2 and more, and fold is below it"
            )
        return self


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
    betas: tuple[float, float] = Field(
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
    final_lr_share: float = Field(0.05, ge=0, le=1, description="Step size at the end over the peak.")
    clip_norm: float = Field(1.0, ge=0, description="Gradient norm limit, 0 = off.")
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay of the averaged weights, 0 = off. The averaged weights are the ones published.",
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
        description="fsq, vq: absolute and squared error mixed by l1_share, or the paper's logit-Laplace likelihood. The dvae always has the latter.",
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
        return self

    @model_validator(mode="after")
    def _loss_terms(self) -> Self:
        if self.kind == "dvae" and (self.perceptual_weight or self.adversarial_weight):
            raise ValueError(
                "kind dvae is trained with the paper's loss alone; set perceptual_weight and adversarial_weight to 0, or take fsq or vq"
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
        "layer",
        description="layer: gain-only layer norm, fused on every device. rms: as in recent models; 6.7 times slower than layer on a CPU (torch 2.13).",
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
        0.125, ge=0, le=1, description="Weight of the text loss; the image loss has the rest (paper: 1/8)."
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
        description="text_to_image: captions and pictures. text: captions alone, a GPT; pictures can be learnt later from its weights (`--init-from`).",
    )

    @property
    def directions(self) -> tuple[str, ...]:
        """What a model trained so can do; stored with its weights."""
        if self.objective == "text":
            return ("text",)
        text = ("text",) if self.text_loss_share else ()
        return ("text_to_image", *text, *(("image_to_text",) if self.image_first_share and text else ()))


class SamplerConfig(Section):
    """How a token is drawn from the logits. Stored with every model and every picture."""

    temperature: float = Field(1.0, ge=0, le=10, description="0 = the most probable token.")
    top_k: int = Field(0, ge=0, description="Draw among the k most probable tokens, 0 = all.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Draw among the most probable tokens that together reach this probability."
    )
    guidance: float = Field(1.0, ge=0, le=50, description="Classifier-free guidance; 1 = off.")
    min_p: float = Field(
        0.0, ge=0, lt=1, description="Draw among tokens of at least this share of the best one's probability, 0 = all."
    )
    guidance_from: int = Field(
        0, ge=0, le=65536, description="First image token with guidance; before it the caption alone decides."
    )
    guidance_to: int = Field(
        0, ge=0, le=65536, description="First image token without guidance again, 0 = guided to the end."
    )
    weights: Literal["full", "int8"] = Field(
        "full",
        description="full: as trained, in the device's type. int8: each layer's weights rounded to 8 bits with a scale per output; faster where reading weights takes the time (few pictures at once).",
    )

    @model_validator(mode="after")
    def _interval(self) -> Self:
        if 0 < self.guidance_to <= self.guidance_from:
            raise ValueError(
                f"guidance_to {self.guidance_to} must be above guidance_from {self.guidance_from}, or 0 for the end"
            )
        return self


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
    sampler: SamplerConfig | None = Field(
        None, description="None: as stored with the model. Sampler: with these settings."
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


class GenerateConfig(Section):
    """Generate: a list of prompts to pictures."""

    prompts: tuple[str, ...] = Field((), description="Prompts drawn in this order.")
    prompts_uri: str = Field(
        "", description="File of prompts (txt, jsonl, csv, parquet) read after `prompts`; a path or s3:// URI."
    )
    n: int = Field(
        4,
        ge=1,
        le=10_000,
        title="Pictures per prompt",
        description="How often each prompt is drawn, each time with a seed of its own.",
    )
    seed: int = Field(
        0, ge=0, description="Root seed; each picture's own seed derives from (model, prompt, seed, index)."
    )
    batch_size: int = Field(
        0,
        ge=0,
        le=4096,
        description="Pictures drawn at once, 0 = as many as the memory holds; a picture is the same in any batch.",
    )
    rows_per_shard: int = Field(256, ge=1, description="Pictures per shard: the unit of work, retry and resume.")
    upscale_px: int = Field(128, ge=8, le=4096, description="Side at which pictures are shown in the gallery, px.")
    sampler: SamplerConfig | None = Field(
        None, description="None: as stored with the model. Sampler: with these settings."
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
    weights: Literal["", "full", "int8"] = Field(
        "",
        description="Weights to draw with: empty = as the sampler says; int8 is faster where few pictures are drawn at once; its pictures are others.",
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
