"""Curation rules and their thresholds. A rule gives a score; a check compares it. They move apart: thresholds alone.

A rule's version rises when its score changes its meaning. A score of NaN or null means that the rule has nothing to say
about a record; such a record passes.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dalle_model.config import CurateConfig

RULES_VERSION = 2  # of the set as a whole: raised with any rule's version, since features are stored for all rules


@dataclass(frozen=True, slots=True)
class Rule:
    """A named score, and what it says to a person."""

    name: str
    version: int
    meaning: str


# Depend on the pair alone: measured once and stored, whatever the thresholds.
RULES: tuple[Rule, ...] = (
    Rule("side_px", 1, "Shorter side of the source picture, px; vector pictures have none."),
    Rule("aspect", 1, "Long side over short side."),
    Rule(
        "caption_words",
        2,
        "Words of the caption between spaces, or two characters of a script that puts none between them.",
    ),
    Rule("caption_chars", 1, "Characters of the caption."),
    Rule("word_repetition", 1, "Share of the most frequent word, of captions of four words or more."),
    Rule(
        "boilerplate", 2, "Share of the caption in known stock phrases: photo dates, camera file names, agency words."
    ),
    Rule("profanity", 1, "Words of the caption on the package's list of profanity."),
    Rule("personal_data", 1, "E-mail addresses, telephone numbers, payment cards and street addresses in the caption."),
    Rule("entropy_bits", 1, "Entropy of the grey histogram, bits: 0 for one flat colour."),
    Rule("blur", 1, "How little the picture changes when blurred once more: 0 sharp, 1 blurred."),
    Rule("text_share", 1, "Share of the picture in bands that look like lines of print."),
    Rule("watermark", 1, "How strongly fine detail repeats at a fixed distance, as a tiled mark does."),
    Rule("aesthetic", 1, "Colourfulness, contrast, richness and sharpness in one; a sampling weight, never a cut."),
)
# Depend on settings, on the whole set or on a model that was given: columns beside those above.
FOREIGN = Rule("foreign", 1, "How certain it is that the caption is in none of the languages kept.")
MINED = Rule("mined_boilerplate", 1, "Share of the caption's words in phrases that many captions of this set share.")
POLICY = Rule("policy", 1, "Words of the caption on your own list.")
NSFW = Rule("nsfw", 1, "What the given classifier thinks of the picture: 0 harmless, 1 not safe for work.")
AGREEMENT = Rule("agreement", 1, "How well caption and picture fit, by the model that was given.")
BEAUTY = Rule("aesthetic_model", 1, "What the given judge of beauty says; a sampling weight, never a cut.")


def rules_of(config: CurateConfig) -> tuple[Rule, ...]:
    """The rules that have a score under this config, in the order of the ledger."""
    given = (
        (FOREIGN, bool(languages_of(config))),
        (MINED, config.boilerplate_min_share > 0),
        (POLICY, bool(config.policy_file)),
        (NSFW, bool(config.nsfw_model)),
        (AGREEMENT, bool(config.agreement_model)),
        (BEAUTY, bool(config.aesthetic_model)),
    )
    return (*RULES, *(rule for rule, there in given if there))


def not_checked(config: CurateConfig) -> dict[str, str]:
    """What this curation says nothing about, and how it would: silence is no verdict."""
    missing = {
        "language": ("" if languages_of(config) else "set curate.languages, e.g. en, or a preset that keeps English"),
        "nsfw": "" if config.nsfw_model else "set curate.nsfw_model; unchecked pictures are not known to be safe",
        "image_text_agreement": "" if config.agreement_model else "set curate.agreement_model to a model",
        "own_policy_list": "" if config.policy_file else "set curate.policy_file to a list of words",
        "faces": "no rule looks for faces of people",
        "names": "no rule looks for names of people in captions",
        "tilted_text_and_single_watermarks": "text_share and watermark see upright lines and tiled marks only",
    }
    return {name: remedy for name, remedy in missing.items() if remedy}


@dataclass(frozen=True, slots=True)
class Check:
    """A verdict: the score of ``rule`` must lie within [low, high], else the row is rejected with ``reason``."""

    rule: str
    reason: str
    knob: str  # the config field that holds the threshold
    low: float = -math.inf
    high: float = math.inf

    def passed(self, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Verdict of each score; NaN (the rule says nothing) passes."""
        return np.isnan(scores) | ((scores >= self.low) & (scores <= self.high))

    @property
    def words(self) -> str:
        """The threshold for a person."""
        if math.isinf(self.low) and math.isinf(self.high):
            return self.knob
        bound = self.low if math.isinf(self.high) else self.high
        return f"curate.{self.knob} = {bound:g}"


# Thresholds of published sets, under the names of our config. What they ask beyond is not checked and said so.
PRESETS: dict[str, dict[str, float]] = {
    "none": {},
    # DataComp's basic filter (arXiv 2304.14108): more than 2 words and 5 characters, aspect at most 3, shorter side
    # at least 200 px; English, there by fastText.
    "datacomp_basic": {"min_caption_words": 3, "min_caption_chars": 6, "max_aspect": 3.0, "min_side_px": 200},
    # DALL-E (arXiv 2102.12092): aspect 1/2 to 2, no captions that are mainly boilerplate, no short ones (threshold
    # unpublished: DataComp's); English, there by cld3.
    "dalle2021": {"min_caption_words": 3, "min_caption_chars": 6, "max_aspect": 2.0, "max_boilerplate": 0.5},
}
PRESET_LANGUAGES = {"none": "", "datacomp_basic": "en", "dalle2021": "en"}


def languages_of(config: CurateConfig) -> str:
    """Codes of the languages kept, between commas; empty = language is not judged."""
    return config.languages or PRESET_LANGUAGES[config.preset]


def checks(config: CurateConfig) -> tuple[Check, ...]:
    """The verdicts in the order of the funnel: cheap and plain first. Of preset and config the stricter one counts."""
    preset = PRESETS[config.preset]

    def low(knob: str) -> float:
        return max(float(getattr(config, knob)), preset.get(knob, -math.inf))

    def high(knob: str) -> float:
        return min(float(getattr(config, knob)), preset.get(knob, math.inf))

    every = (
        Check("side_px", "side_too_small", "min_side_px", low=low("min_side_px")),
        Check("aspect", "aspect_too_long", "max_aspect", high=high("max_aspect")),
        Check("caption_words", "too_few_words", "min_caption_words", low=low("min_caption_words")),
        Check("caption_chars", "caption_too_short", "min_caption_chars", low=low("min_caption_chars")),
        Check("caption_chars", "caption_too_long", "max_caption_chars", high=high("max_caption_chars")),
        Check("word_repetition", "repeated_word", "max_word_repetition", high=high("max_word_repetition")),
        Check("boilerplate", "boilerplate", "max_boilerplate", high=high("max_boilerplate")),
        Check("mined_boilerplate", "mined_boilerplate", "max_mined_boilerplate", high=high("max_mined_boilerplate")),
        Check("foreign", "foreign_language", "max_foreign", high=high("max_foreign")),
        Check("profanity", "profanity", "max_profanity", high=high("max_profanity")),
        Check("policy", "listed_word", "max_policy", high=high("max_policy")),
        Check("personal_data", "personal_data", "max_personal_data", high=high("max_personal_data")),
        Check("entropy_bits", "blank_image", "min_entropy_bits", low=low("min_entropy_bits")),
        Check("blur", "blurred_image", "max_blur", high=high("max_blur")),
        Check("text_share", "text_in_image", "max_text_share", high=high("max_text_share")),
        Check("watermark", "watermark", "max_watermark", high=high("max_watermark")),
        Check("nsfw", "not_safe_for_work", "max_nsfw", high=high("max_nsfw")),
        Check("agreement", "caption_does_not_fit", "min_agreement", low=low("min_agreement")),
    )
    scored = {rule.name for rule in rules_of(config)}
    return tuple(check for check in every if check.rule in scored)
