"""Curation rules: small functions from a record to a score. Thresholds live elsewhere, so they can move alone.

A rule's version rises when its score changes its meaning. A score of None means that the rule has nothing to say
about a record; such a record passes.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dalle_model.config import CurateConfig

RULES_VERSION = 1  # of the set as a whole: raised with any rule's version, since features are stored for all rules


@dataclass(frozen=True, slots=True)
class Record:
    """What the rules look at. Source sizes are 0 for vector pictures; ``histogram`` has 256 grey levels."""

    caption: str
    width: int
    height: int
    source_width: int
    source_height: int
    histogram: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rule:
    """A named score."""

    name: str
    version: int
    score: Callable[[Record], float | None]


def side_px(record: Record) -> float | None:
    """Shorter side of the picture as the source had it."""
    return float(min(record.source_width, record.source_height)) or None


def aspect(record: Record) -> float:
    """Long side over short side."""
    return max(record.width, record.height) / min(record.width, record.height)


def caption_words(record: Record) -> float:
    """Words between spaces."""
    return float(record.caption.count(" ") + 1)  # the caption is normalised: single spaces, none at the ends


def caption_chars(record: Record) -> float:
    """Characters."""
    return float(len(record.caption))


def word_repetition(record: Record) -> float | None:
    """Share of the most frequent word, of captions of four words or more."""
    words = record.caption.lower().split(" ")
    return max(Counter(words).values()) / len(words) if len(words) >= 4 else None


_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_DATE = rf"(?:\d{{1,4}}[-/.]\d{{1,2}}[-/.]\d{{1,4}}|\d{{1,2}}(?:st|nd|rd|th)? {_MONTH},? \d{{2,4}}|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?,? \d{{2,4}})"
_STOCK = re.compile(
    rf"(?:(?:photo|photograph|picture|image|shot)(?:graph)? )?(?:was )?(?:taken|captured|shot|uploaded|created|posted)(?: (?:on|at|in|by))? {_DATE}"
    rf"|{_DATE}"
    r"|(?:stock|royalty[- ]free|free) (?:photos?|images?|pictures?|vectors?|illustrations?)"
    r"|all rights reserved|click (?:here|to enlarge)|(?:img|dsc|dscn|dscf)[_-]?\d{3,}(?:\.jpe?g)?",
    re.IGNORECASE,
)
_STOCK_WORDS = ("stock", "free", "rights", "click")
_DATE_HINT = re.compile(r"\d[-/.]\d|(?:19|20)\d\d|(?:img|dsc[nf]?)[_-]?\d")


def boilerplate(record: Record) -> float:
    """Share of the caption in stock phrases: dates of a photo in many formats, camera file names, agency words."""
    lowered = record.caption.lower()
    if not any(word in lowered for word in _STOCK_WORDS) and not _DATE_HINT.search(lowered):
        return 0.0  # most captions leave here: the long pattern costs 20 times as much
    return sum(len(match.group()) for match in _STOCK.finditer(record.caption)) / len(record.caption)


def entropy_bits(record: Record) -> float:
    """Entropy of the grey histogram: 0 for one flat colour, 8 at most."""
    counts = record.histogram[record.histogram > 0]
    total = int(counts.sum())
    # Rounded, so that the sum's order of additions cannot decide a verdict.
    return round(math.log2(total) - float((counts * np.log2(counts)).sum()) / total, 6) + 0.0


RULES: tuple[Rule, ...] = (
    Rule("side_px", 1, side_px),
    Rule("aspect", 1, aspect),
    Rule("caption_words", 1, caption_words),
    Rule("caption_chars", 1, caption_chars),
    Rule("word_repetition", 1, word_repetition),
    Rule("boilerplate", 1, boilerplate),
    Rule("entropy_bits", 1, entropy_bits),
)
NOT_CHECKED = ("language", "nsfw", "watermark", "image_text_agreement")


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
    # at least 200 px; also English by fastText.
    "datacomp_basic": {"min_caption_words": 3, "min_caption_chars": 6, "max_aspect": 3.0, "min_side_px": 200},
    # DALL-E (arXiv 2102.12092): aspect 1/2 to 2, no captions that are mainly boilerplate, no short ones (threshold
    # unpublished: DataComp's); also English by cld3.
    "dalle2021": {"min_caption_words": 3, "min_caption_chars": 6, "max_aspect": 2.0, "max_boilerplate": 0.5},
}


def checks(config: CurateConfig) -> tuple[Check, ...]:
    """The verdicts in the order of the funnel: cheap and plain first. Of preset and config the stricter one counts."""
    preset = PRESETS[config.preset]

    def low(knob: str) -> float:
        return max(float(getattr(config, knob)), preset.get(knob, -math.inf))

    def high(knob: str) -> float:
        return min(float(getattr(config, knob)), preset.get(knob, math.inf))

    return (
        Check("side_px", "side_too_small", "min_side_px", low=low("min_side_px")),
        Check("aspect", "aspect_too_long", "max_aspect", high=high("max_aspect")),
        Check("caption_words", "too_few_words", "min_caption_words", low=low("min_caption_words")),
        Check("caption_chars", "caption_too_short", "min_caption_chars", low=low("min_caption_chars")),
        Check("caption_chars", "caption_too_long", "max_caption_chars", high=high("max_caption_chars")),
        Check("word_repetition", "repeated_word", "max_word_repetition", high=high("max_word_repetition")),
        Check("boilerplate", "boilerplate", "max_boilerplate", high=high("max_boilerplate")),
        Check("entropy_bits", "blank_image", "min_entropy_bits", low=low("min_entropy_bits")),
    )
