"""Knobs of ingest and curate: where pairs come from, and which are kept."""

from typing import Literal, Self

from pydantic import Field, model_validator

from dalle_model.config.base import Section


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
        "", description="Column of the caption; empty = the first of text, caption, prompt, title."
    )
    image_column: str = Field(
        "",
        description="Column of the picture, of its file (imagefolder:, jsonl:, csv:) or its URL (urls:); empty = the first of image, bytes, jpg, png, of file_name, filename, image, path, or of url, image_url, image.",
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
    embedding_model: str = Field(
        "",
        description="A vision model of transformers as that embedding: the folder of a CLIP (or DINOv2, ViT ...), or its name on the Hugging Face hub. embedding_distance is then between unit vectors, sqrt(2 - 2 cosine): copies of a picture lie within about 0.3 of CLIP.",
    )
    embedding_model_sha256: str = Field(
        "", pattern=r"^([0-9a-f]{64})?$", description="SHA-256 of its model.safetensors; another file is refused."
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
        description="Blur at most, 0 sharp to 1, 1 = off; measured on the stored picture, so a picture that was scaled down looks sharp. 0.5 suits photographs.",
    )
    max_text_share: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the picture in lines of upright print at most, 1 = off. 0.01 finds nine of ten captions burnt into photographs and takes one clean one of thirty; of drawings it takes many without any text.",
    )
    max_watermark: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Repetition of fine detail at most, 1 = off. 0.2 finds a tiled mark at 70 % on nearly every photograph and at 40 % on two of three, and takes one clean one of twenty; patterns and stripes score high too.",
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
    aesthetic_model: str = Field(
        "",
        description="A judge of beauty instead of the built-in guess: a file of linear layers on the embedding of embedding_model (LAION's .pth or .safetensors), or an image-classification model of transformers with one output, numbers as labels, or a label such as aesthetic (a folder, or its name on the hub). Weighs, never cuts.",
    )
    aesthetic_model_sha256: str = Field(
        "", pattern=r"^([0-9a-f]{64})?$", description="SHA-256 of that file, or of the folder's model.safetensors."
    )
    aesthetic_range: tuple[float, float] = Field(
        (0.0, 1.0),
        description="The judge's scores that count as 0 and as 1, e.g. [4, 7] for LAION's heads; what lies beyond is cut off.",
    )

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.valid_share + self.test_share >= 1:
            raise ValueError("valid_share + test_share must leave a share for training (sum below 1)")
        for name in ("embedding_model", "aesthetic_model"):
            if getattr(self, name) and not getattr(self, f"{name}_sha256"):
                raise ValueError(f"{name} needs {name}_sha256, as sha256sum prints it: its content must count")
        if self.embedding_model and self.embedding != "none":
            raise ValueError(f"embedding_model takes the place of embedding = {self.embedding}; set one of them")
        if not self.aesthetic_range[0] < self.aesthetic_range[1]:
            raise ValueError(f"aesthetic_range {list(self.aesthetic_range)} must rise: what counts as 0, then as 1")
        if self.folds == 1 or (self.fold and self.fold >= self.folds):
            raise ValueError(
                f"fold {self.fold} of {self.folds} folds: folds is 0 (off) or 2 and more, and fold is below it"
            )
        return self
