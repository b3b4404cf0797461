"""More training rows from the same pairs: other crops, tones, mirror images and wordings that keep the meaning.

Everything here is a pure function of (seed, pair id, copy): a row is the same at any worker count and after any stop.
"""

import hashlib
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance

from dalle_model.config import AugmentConfig
from dalle_model.images import square
from dalle_model.records import normalise_caption

UInt8Array = npt.NDArray[np.uint8]


def _word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


# A picture whose caption has one of these words (singular or plural), a digit or a quotation is never mirrored: its
# mirror image means something else, or nothing.
NEVER_MIRRORED = _word_set(
    """
    flag banner emblem coat-of-arms coats-of-arms logo badge sign signpost signboard billboard poster placard label sticker stamp
    letter alphabet word text writing written font title numeral number digit keycap button input symbol latin
    barcode qr caption subtitle headline slogan inscription lettering handwriting handwritten calligraphy graffiti
    arrow left right leftward leftwards rightward rightwards east west eastward westward clockwise counterclockwise
    anticlockwise forward backward previous rewind fast-forward
    clock watch time hour minute hourglass o'clock oclock thirty stopwatch timer calendar date schedule chart graph
    compass map globe earth continent
    newspaper book magazine page scroll document receipt memo ticket menu keyboard typewriter screen music note score
    clef dollar euro pound yen yuan rupee ruble currency banknote coin percent plus minus division
    question exclamation ampersand hash hashtag comma bracket slash zodiac check tick
    license-plate licence-plate number-plate passport card speedometer gauge thermometer ruler abacus dice domino mahjong
    """
)
# A picture whose caption speaks of tone keeps its brightness and contrast: "light skin tone" must stay light.
TONE_WORDS = _word_set(
    """
    light dark medium-light medium-dark bright dim pale black white grey gray shadow shade night sunny gloomy
    glowing shining faded vivid tone
    """
)
_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
_QUOTED = re.compile(
    r"[\d\"“”„«»]|(?<!\w)['‘][^'’]{1,200}['’](?!\w)"
)  # bounded: from each of many "‘" to the end is n^2
_STREAMS = (
    "mirror",
    "crop",
    "left",
    "top",
    "brightness",
    "contrast",
    "alias",
    "which_alias",
    "keyword",
    "which_keyword",
    "template",
)


def augment(
    image: UInt8Array, caption: str, facts: Mapping[str, Any], pair_id: str, copy: int, config: AugmentConfig
) -> tuple[UInt8Array, str]:
    """Copy number ``copy`` of a pair: uint8 [H, W, 3] -> uint8 [s, s, 3], and its caption. Copy 0 is the pair itself.

    ``facts`` is the pair's ``extra``: ``aliases`` are other names of the thing, ``keywords`` or ``tags`` words about it.
    """
    if copy == 0:
        return square(image, min(image.shape[:2])), caption
    words = all_words(caption, facts)
    return augment_image(image, words, pair_id, copy, config), augment_caption(caption, facts, pair_id, copy, config)


def augment_caption(caption: str, facts: Mapping[str, Any], pair_id: str, copy: int, config: AugmentConfig) -> str:
    """The caption of a copy: perhaps another name, perhaps a keyword after it, perhaps inside a template."""
    if copy == 0:
        return caption
    draw = _draws(config.seed, pair_id, copy)
    text = caption
    aliases = [alias for alias in _words_of(facts, "aliases") if alias.casefold() != caption.casefold()]
    if aliases and draw["alias"] < config.aliases:
        text = aliases[int(draw["which_alias"] * len(aliases))]
    known = text.casefold()
    keywords = [word for word in _words_of(facts, "keywords", "tags") if word.casefold() not in known]
    if keywords and draw["keyword"] < config.keywords:
        text = f"{text}, {keywords[int(draw['which_keyword'] * len(keywords))]}"
    # One more place than templates: the plain caption stays among the forms that are seen.
    place = int(draw["template"] * (len(config.templates) + 1))
    return config.templates[place - 1].replace("{}", text) if place else text


def augment_image(image: UInt8Array, words: str, pair_id: str, copy: int, config: AugmentConfig) -> UInt8Array:
    """The picture of a copy: a square crop within the centre square, perhaps mirrored, its tone a little changed.

    ``words`` say what must not be changed: the caption, or ``all_words``.
    """
    draw = _draws(config.seed, pair_id, copy)
    full = min(image.shape[:2])
    side = max(1, full - int(draw["crop"] * config.crop * full))
    left = (image.shape[1] - full) // 2 + int(draw["left"] * (full - side + 1))
    top = (image.shape[0] - full) // 2 + int(draw["top"] * (full - side + 1))
    out = image[top : top + side, left : left + side]
    if config.mirror and draw["mirror"] < 0.5 and may_be_mirrored(words):
        out = out[:, ::-1]
    if config.colour and may_change_tone(words):
        picture = Image.fromarray(np.ascontiguousarray(out))
        for enhance, name in ((ImageEnhance.Brightness, "brightness"), (ImageEnhance.Contrast, "contrast")):
            picture = enhance(picture).enhance(1 + (2 * draw[name] - 1) * config.colour)
        out = np.asarray(picture)
    return np.ascontiguousarray(out)


def all_words(caption: str, facts: Mapping[str, Any]) -> str:
    """What is known of a picture in words: "France" may be the flag of France by another name."""
    return "; ".join([caption, *_words_of(facts, "aliases"), *_words_of(facts, "keywords", "tags")])


def may_be_mirrored(caption: str) -> bool:
    """Whether a mirror image still fits the caption: no flags, writing, arrows, clocks and their like are named in it.

    It reads the caption alone. Writing that the caption does not mention is not seen: switch ``mirror`` off for
    photographs with text in them.
    """
    return not _QUOTED.search(caption) and not _named(caption, NEVER_MIRRORED)


def may_change_tone(caption: str) -> bool:
    """Whether brightness and contrast may change: the caption does not speak of them."""
    return not _named(caption, TONE_WORDS)


def _named(caption: str, words: frozenset[str]) -> bool:
    found = _WORD.findall(caption.casefold().replace("’", "'"))
    pairs = map("-".join, pairwise(found))  # "license plate"
    triples = map("-".join, zip(found, found[1:], found[2:], strict=False))  # "coat of arms"
    for word in (*found, *pairs, *triples):
        forms = {
            word,
            word.removesuffix("s"),
            word.removesuffix("es"),
            re.sub("ies$", "y", word),
            word.removesuffix("'s"),
            *re.split(r"[-']", word),
        }
        if forms & words:
            return True
    return False


def _words_of(facts: Mapping[str, Any], *names: str) -> list[str]:
    """Texts under the first of the names that is there: a list, or one text with commas or semicolons."""
    for name in names:
        value = facts.get(name)
        items = re.split(r"[,;]", value) if isinstance(value, str) else value
        if isinstance(items, list | tuple):
            found = (normalise_caption(item) for item in items if isinstance(item, str))
            return [text for text in dict.fromkeys(found) if text]
    return []


def _draws(seed: int, pair_id: str, copy: int) -> dict[str, float]:
    """One number in [0, 1) for each decision; what one decision draws does not depend on the settings of another."""
    return {
        name: int.from_bytes(hashlib.sha256(f"augment:{seed}:{pair_id}:{copy}:{name}".encode()).digest()[:7], "big")
        / 2**56
        for name in _STREAMS
    }
