"""The language of a caption, with care: short captions are mostly not judged, and doubt keeps a row.

The alphabet decides where it can, at any length. Otherwise captions of ``MIN_WORDS`` words or more are given to
py3langid (naive Bayes over byte n-grams; Lui and Baldwin 2012), restricted to the languages below: over all of its
languages it is wrong on a third of short captions.
"""

import importlib.metadata
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dalle_model.errors import UsageError

# ISO 639-1 -> scripts (first words of Unicode character names) that the language is written in.
LANGUAGES: dict[str, frozenset[str]] = {
    **{
        code: frozenset({"LATIN"})
        for code in [
            "cs",
            "da",
            "de",
            "en",
            "es",
            "fi",
            "fr",
            "hu",
            "id",
            "it",
            "nl",
            "pl",
            "pt",
            "ro",
            "sv",
            "tr",
            "vi",
        ]
    },
    **{code: frozenset({"CYRILLIC"}) for code in ("ru", "uk")},
    **{code: frozenset({"ARABIC"}) for code in ("ar", "fa")},
    "el": frozenset({"GREEK"}),
    "he": frozenset({"HEBREW"}),
    "hi": frozenset({"DEVANAGARI"}),
    "ja": frozenset({"CJK", "HIRAGANA", "KATAKANA"}),
    "ko": frozenset({"HANGUL"}),
    "th": frozenset({"THAI"}),
    "zh": frozenset({"CJK"}),
}
MIN_WORDS = 4
_UNSPACED = frozenset({"CJK", "HIRAGANA", "KATAKANA", "THAI"})  # written without spaces: words cannot be counted
DETECTOR = "py3langid"


def detector() -> str:
    """Name and version of the detector, empty where its package is not installed."""
    try:
        return f"{DETECTOR} {importlib.metadata.version(DETECTOR)}"
    except importlib.metadata.PackageNotFoundError:
        return ""


@dataclass(frozen=True, slots=True)
class Language:
    """``code`` is of LANGUAGES, or a script in capitals where only that is certain, or empty: nothing to say."""

    code: str
    confidence: float  # 0..1


NOTHING = Language("", 0.0)


def language_of(caption: str) -> Language:
    """The language of one caption. UsageError where the detector is not installed."""
    scripts = Counter(_script(c) for c in caption if c.isalpha())
    if not scripts:
        return NOTHING
    script, count = max(scripts.items(), key=lambda item: (item[1], item[0]))
    main = script if count >= 0.5 * scripts.total() else ""
    written = [code for code, known in LANGUAGES.items() if main in known]
    if main and main != "LATIN" and len(written) <= 1 and count >= 0.8 * scripts.total():
        return Language(written[0] if written else main, 1.0)
    if len(caption.split(" ")) < MIN_WORDS and main not in _UNSPACED:
        return Language(main, 1.0) if main not in ("", "LATIN") else NOTHING
    code, confidence = _identifier().classify(caption)
    if main and main not in LANGUAGES[code]:
        return Language(main, 1.0) if main != "LATIN" else NOTHING  # the letters contradict the detector
    # Rounded: the last bits of a sum depend on the processor's kernels.
    return Language(code, round(float(confidence), 3))


def language_columns(captions: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Columns (code, confidence) of captions; every distinct caption is judged once."""
    encoded = captions.dictionary_encode()
    judged = [language_of(text) for text in encoded.dictionary.to_pylist()]
    codes = pa.array([j.code for j in judged], pa.string()).take(encoded.indices)
    return codes, pa.array([j.confidence for j in judged], pa.float64()).take(encoded.indices)


def foreign(codes: npt.NDArray[np.object_], confidence: npt.NDArray[np.float64], kept: str) -> npt.NDArray[np.float64]:
    """How certain it is that a caption is in none of the ``kept`` languages (codes between commas); NaN = not judged."""
    wanted = kept.split(",")
    scripts = frozenset().union(*(LANGUAGES[code] for code in wanted))
    ours = {*wanted, *scripts}
    known = np.array([str(code) in ours for code in codes], bool)
    silent = np.array([not code for code in codes], bool)
    return np.where(silent, np.nan, np.where(known, 0.0, confidence))


def check_codes(text: str) -> None:
    """UsageError for a code that is not of LANGUAGES."""
    for code in text.split(",") if text else ():
        if code not in LANGUAGES:
            raise UsageError(
                f"curate.languages: {code!r} is not known; give codes of {', '.join(sorted(LANGUAGES))} between commas"
            )


@cache
def _script(char: str) -> str:
    name = unicodedata.name(char, "")
    for prefix in ("HALFWIDTH ", "FULLWIDTH "):
        name = name.removeprefix(prefix)
    return name.partition(" ")[0].partition("-")[0]


@cache
def _identifier() -> Any:
    if not detector():
        raise UsageError(f"the language of captions needs {DETECTOR}; run `pip install {DETECTOR}`")
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(list(LANGUAGES))
    return identifier
