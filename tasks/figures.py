"""What each figure means in plain words, its unit, and which way is better. The report and the Prefect UI ask here."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from tasks.pages import Better, Metric

if TYPE_CHECKING:
    from tasks.findings import Record  # its import loads torch, which a page about figures does not need


@dataclass(frozen=True)
class _Known:
    better: Better
    meaning: str
    unit: str = ""


_KNOWN: dict[str, _Known] = {
    "recognisability": _Known(
        "higher", "Share of captions whose drawing is nearer to its own original than to any other training picture."
    ),
    "recognisability_of_reconstructions": _Known(
        "higher",
        "The same for originals sent through the tokenizer and back: the most that any model could reach with this tokenizer.",
    ),
    "distance_to_own_picture": _Known(
        "lower", "Mean squared difference between a drawing and its original; colours run from 0 to 1."
    ),
    "loss_image": _Known(
        "lower",
        "How surprised the model is by each image token. A model that learned nothing stands at ln(vocabulary).",
        "nats",
    ),
    "loss_text": _Known("lower", "How surprised the model is by each word piece of a caption.", "nats"),
    "bits_per_pixel": _Known("lower", "Surprise by the image tokens alone, spread over the pixels.", "bits"),
    "bits_per_pixel_chain": _Known(
        "lower",
        "Surprise by whole pictures through tokenizer and transformer together, all three channels of a pixel; comparable between tokenizers. 24 is noise.",
        "bits",
    ),
    "reconstruction_ssim": _Known(
        "higher", "Likeness of structure between a picture and its reconstruction; 1 is the same."
    ),
    "reconstruction_psnr": _Known(
        "higher", "How close a picture is to itself after it was turned into tokens and back.", "dB"
    ),
    "round_trip_psnr": _Known(
        "higher", "How close a picture is to itself after it was turned into tokens and back.", "dB"
    ),
    "psnr": _Known("higher", "How close a picture is to itself after it was turned into tokens and back.", "dB"),
    "ssim": _Known("higher", "Likeness of structure between a picture and its reconstruction; 1 is the same."),
    "reconstruction_frechet": _Known(
        "lower",
        "Frechet distance between pictures and their reconstructions on a fixed untrained network; compares tokenizers of this project only.",
    ),
    "perplexity": _Known(
        "higher", "How many of the tokenizer's codes carry the load; few mean that pictures look alike to it."
    ),
    "dead_codes": _Known("lower", "Codes of the tokenizer that no picture uses."),
    "code_perplexity_of_drawings": _Known(
        "", "How many of the tokenizer's codes the drawings use; far below the originals' means that all look alike."
    ),
    "code_perplexity_of_originals": _Known("", "The same for the true pictures of the same captions."),
    "agreement": _Known(
        "higher",
        "Share of the other captions that fit a drawing less well than its own, by a small judge trained on the training pictures; chance is 0.5. No CLIP score.",
    ),
    "agreement_of_originals": _Known("higher", "The same for true pictures: what the judge itself can tell."),
    "agreement_of_wrong_captions": _Known("", "The same with the captions mixed up: what chance gives."),
    "attribute_agreement": _Known(
        "higher",
        "The same against training captions that differ in exactly one word: is that word drawn? Chance is 0.5.",
    ),
    "attribute_agreement_of_originals": _Known("higher", "The same for true pictures: what the judge itself can tell."),
    "nearest_training_tokens": _Known(
        "", "Share of a drawing's tokens that differ from those of the training picture nearest to it; 0 is a copy."
    ),
    "token_runs_copied": _Known(
        "",
        "Share of a drawing's runs of 8 tokens that some training picture has at the same place: is it patched together from them? Far above that of held-out true pictures means yes.",
    ),
    "token_runs_copied_of_originals": _Known("", "The same for the true pictures of the same captions."),
    "caption_runs_copied": _Known(
        "", "Share of the runs of 4 words in captions the model wrote that stand in a training caption."
    ),
    "caption_runs_copied_of_originals": _Known("", "The same for the true captions of the same pictures."),
    "captions_copied": _Known("", "Share of the captions the model wrote that are a training caption, word for word."),
    "fid_clean": _Known(
        "lower",
        "FID on the supplied Inception, resized as clean-fid does; compares only at an equal number of pictures.",
    ),
    "cmmd": _Known("lower", "Distance of the sets on the supplied CLIP, times 1000 (CMMD)."),
    "clip_score": _Known("higher", "How well drawings fit their captions by the supplied CLIP (CLIPScore, 0 to 2.5)."),
    "frechet_random": _Known(
        "lower",
        "Frechet distance between drawings and true pictures on a fixed untrained network; compares runs of this project only, never with a published FID.",
    ),
    "frechet_random_of_reconstructions": _Known("lower", "The same for originals sent through the tokenizer and back."),
    "sliced_wasserstein_random": _Known(
        "lower", "Sliced Wasserstein distance between drawings and true pictures on a fixed untrained network."
    ),
    "sliced_wasserstein_tokenizer": _Known("lower", "The same on the features of the model's own tokenizer."),
    "sliced_wasserstein_model": _Known("lower", "The same on the hidden states of the transformer itself."),
    "sliced_wasserstein_judge": _Known("lower", "The same on the features of the small judge of words and pictures."),
    "frechet_efficientnet": _Known(
        "lower",
        "Frechet distance between drawings and true pictures on EfficientNet-Lite0, a network trained on photographs; compares runs of this project only, never with a published FID.",
    ),
    "sliced_wasserstein_efficientnet": _Known("lower", "Sliced Wasserstein distance on EfficientNet-Lite0."),
    "precision_efficientnet": _Known(
        "higher", "Share of drawings that lie among the true pictures, on EfficientNet-Lite0."
    ),
    "recall_efficientnet": _Known(
        "higher", "Share of true pictures that lie among the drawings, on EfficientNet-Lite0."
    ),
    "density_efficientnet": _Known(
        "higher",
        "How deep drawings lie among the true pictures, on EfficientNet-Lite0; about 1 for the same distribution.",
    ),
    "coverage_efficientnet": _Known(
        "higher",
        "Share of true pictures with a drawing close by, on EfficientNet-Lite0; about 0.97 for the same distribution.",
    ),
    "precision": _Known("higher", "Share of drawings that lie among the true pictures."),
    "recall": _Known("higher", "Share of true pictures that lie among the drawings: is every kind of picture drawn?"),
    "density": _Known("higher", "How deep drawings lie among the true pictures; about 1 for the same distribution."),
    "coverage": _Known(
        "higher", "Share of true pictures with a drawing close by; about 0.97 for the same distribution."
    ),
    "variety": _Known(
        "",
        "How much drawings of one caption differ, over how much those of different captions do. 0: always the same picture; 1: the caption has no say.",
    ),
    "variety_of_drawings": _Known(
        "",
        "How much drawings differ from each other, over how much true pictures do; 1 is as much, 0 is always the same.",
    ),
    "copied": _Known(
        "lower",
        "Share of drawings nearer to a training picture, in tokens or in features, than all but 2 in 1,000 training pictures are to another one; about 0.004 is what pictures that copy nothing would give.",
    ),
    "scene_count": _Known("higher", "Share of drawings with as many shapes as the caption says."),
    "scene_colour": _Known("higher", "Share of drawings that have every colour the caption says, as often as it says."),
    "scene_shape": _Known("higher", "Share of drawings that have every shape the caption says, as often as it says."),
    "scene_size": _Known("higher", "Share of drawings whose shapes are as small or large as the caption says."),
    "scene_place": _Known("higher", "Share of drawings whose shape lies where the caption says."),
    "scene_relation": _Known("higher", "Share of drawings whose two shapes lie to each other as the caption says."),
    "scene_binding": _Known(
        "higher", "Share of drawings in which each shape has the colour that the caption gives it."
    ),
    "scene_all": _Known("higher", "Share of drawings that show all that their caption says."),
    "scene_all_of_reconstructions": _Known(
        "higher", "The same for originals sent through the tokenizer and back: the most that any model could reach."
    ),
    "scene_all_chance": _Known("", "The same drawings judged by another drawing's caption: what chance would give."),
}
_SPLITS = {
    "train": ("training", "Measured on rows it was trained on."),
    "valid": ("validation", "Measured on rows it was not trained on."),
    "heldout": ("new combinations", "Measured on compositions that were kept out of training."),
    "test": ("test", "Measured on rows that nothing was chosen by."),
}  # fmt: skip


def metrics_of(
    figures: Mapping[str, float],
    *,
    previous: Mapping[str, float] | None = None,
    records: Mapping[str, "Record"] | None = None,
) -> tuple[Metric, ...]:
    """Rows of the table from flat figures: ``x_low`` and ``x_high`` become the interval of ``x``, known names are explained.

    ``previous`` has the same figures of the model before. Names that are not known are shown without an explanation.
    """
    bounds = _bounds(figures)
    return tuple(_metric(name, figures, previous or {}, records or {}) for name in figures if name not in bounds)


def figures_by_split(figures: Mapping[str, float]) -> dict[str, tuple[Metric, ...]]:
    """The same rows under the split that they are of (``training`` for all that name none), without it in their names."""
    groups: dict[str, list[Metric]] = {"training": []}
    bounds = _bounds(figures)
    for name in figures:
        if name not in bounds:
            base, split = _parted(name)
            metric = _metric(name, figures, {}, {})
            groups.setdefault(split or "training", []).append(
                replace(metric, name=base.replace("_", " "), meaning=_known(name)[0].meaning)
            )
    return {split: tuple(metrics) for split, metrics in groups.items() if metrics}


def better_of(name: str) -> Literal["higher", "lower"] | None:
    """Which way a figure is better, None where neither is or nobody knows."""
    known, _ = _known(name)
    return known.better or None


def spoken(name: str) -> str:
    """A figure's name in words: ``agreement_heldout`` -> agreement, new combinations."""
    base, where = _parted(name)
    return base.replace("_", " ") + (f", {where}" if where else "")


def _bounds(figures: Mapping[str, float]) -> set[str]:
    """The names that are the ends of another figure's interval."""
    return {name for x in figures for name in (f"{x}_low", f"{x}_high")} & figures.keys()


def _parted(name: str) -> tuple[str, str]:
    """A figure's name without its split, and the split in words, empty where there is none."""
    _, split = _known(name)
    base = name.removesuffix(f"_{split}") if split else name
    return base, _SPLITS.get(split, ("", ""))[0]


def _known(name: str) -> tuple[_Known, str]:
    """What is known of a figure, and the split at the end of its name."""
    base, _, split = name.rpartition("_")
    if name in _KNOWN or split not in _SPLITS:
        base, split = name, ""
    return _KNOWN.get(base, _Known("", "")), split


def _metric(
    name: str, figures: Mapping[str, float], previous: Mapping[str, float], records: Mapping[str, "Record"]
) -> Metric:
    known, split = _known(name)
    said = _SPLITS.get(split, ("", ""))[1]
    return Metric(
        name=spoken(name),
        value=figures[name],
        unit=known.unit,
        better=known.better,
        low=figures.get(f"{name}_low"),
        high=figures.get(f"{name}_high"),
        previous=previous.get(name),
        meaning=" ".join(part for part in (known.meaning, said) if part),
        protocol=_in_words(records[name]) if name in records else "",
    )


def _in_words(record: "Record") -> str:
    """A record in one line."""
    features = record.features + (f" {record.features_sha256[:12]}" if record.features_sha256 else "")
    return f"{record.measure}. n {record.n}; on {features}; against {record.reference}; seed {record.seed}"
