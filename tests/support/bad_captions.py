"""A generator of captions that go wrong: hostile, empty of meaning, private, foreign, obscene; each with its outcome.

``captions(seed)`` mixes the fixed cases below with random strings, so that no two seeds meet the same corpus.
"""

import random
from dataclasses import dataclass

SCRIPT = "<script>alert(1)</script>"


@dataclass(frozen=True)
class Case:
    """A caption and what curation with ``STRICT`` does: kept, or the reason; ``goes_on`` is the caption that is kept."""

    caption: str
    outcome: str
    goes_on: str | None = None


# Thresholds under which every case below has one outcome.
STRICT = {
    "languages": "en",
    "min_caption_words": 2,
    "min_caption_chars": 4,
    "max_caption_chars": 400,
    "max_boilerplate": 0.5,
    "max_word_repetition": 0.6,
    "boilerplate_min_share": 0.0,
    "valid_share": 0.0,
}

CASES = (
    Case("a plain picture of a boat", "kept"),
    # markup, formulas, paths and special tokens are words like others: kept, and shown harmless
    Case(f"{SCRIPT} on a wall", "kept"),
    Case("\" onerror=alert(1) x='y' painted sign", "kept"),
    Case("</style></svg><img src=x onerror=alert(2)> poster", "kept"),
    Case("{{ 7 * 7 }} {% raw %} on a blackboard", "kept"),
    Case("=cmd|' /C calc'!A0 spreadsheet", "kept"),
    Case("[pad] <pad> </s> <|endoftext|> a token museum", "kept"),
    Case("../../etc/passwd printed on paper", "kept"),
    Case("%s %n {0} ${HOME} written in sand", "kept"),
    Case("see javascript:alert(3) on a screen", "kept"),
    # nothing to learn from
    Case("cat", "too_few_words"),
    Case("1 2", "caption_too_short"),
    Case("dog dog dog dog cat", "repeated_word"),
    Case("word " * 200, "caption_too_long"),
    Case("Photo taken on 12 March 2016", "boilerplate"),
    Case("Picture was taken 2016-03-12", "boilerplate"),
    Case("IMG_20160312.jpg DSC00123", "boilerplate"),
    Case("royalty free images", "boilerplate"),
    # other languages: told by the alphabet at any length, by words only where there are enough of them
    Case("красный дом", "foreign_language"),
    Case("שלום לכולם", "foreign_language"),
    Case("le chat est sur la table et il dort", "foreign_language"),
    Case("ein Hund spielt im Garten mit dem Ball", "foreign_language"),
    Case("roter Hund", "kept"),  # two words: no verdict
    # obscene, also in disguise
    Case("fucking great boat", "profanity"),
    Case("ｆｕｃｋ this boat", "profanity"),
    Case("a sh1t boat here", "profanity"),
    Case("Scunthorpe pier and an assassin bug", "kept"),
    # private
    Case("boat for sale, mail jane@example.org", "kept", "boat for sale, mail [email]"),
    Case("boat for sale, call +49 30 1234567", "kept", "boat for sale, call [phone]"),
    Case("paid with card 4111 1111 1111 1111 here", "kept", "paid with card [card] here"),
    Case("boat at 12 Main Street today", "kept", "boat at [address] today"),
)

_ALPHABETS = (
    "abcdefghij klmnop qrstuvwxyz   ",
    "<>&\"'{}[]()=;:/\\|%$#@!*+-_.,?~`^ ",
    "абвгд еёжз ийклмн",
    "אבגדה וזחטי ",
    "漢字かなカナ한글 ",
    "éèüñçåøßÆŒ İıſﬁ ",
    "🔥👩‍🚒🏽🇩🇪1️⃣ ",
    "0123456789 -/.:+()",
    "\u0301\u0308\u20dd\ufe0f a",
)


def captions(seed: int, count: int = 60) -> list[str]:
    """``count`` random captions over alphabets that break things; every one has a printable character."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        alphabet = "".join(rng.sample(_ALPHABETS, rng.randint(1, 3)))
        text = "".join(rng.choice(alphabet) for _ in range(rng.choice((1, 2, 5, 20, 100, 1000))))
        made.append(f"x{number} {text}")
    return made
