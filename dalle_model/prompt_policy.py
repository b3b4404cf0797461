"""Which prompts are not drawn: versioned rules over the folded text, each decision with its rule and what it found.

A prompt is folded before it is looked at (``curation.word_lists``: compatibility forms, accents, look-alike letters,
digits and signs in the place of letters), and read again with more letters that look like Latin ones put back and with
its spaced-out letters joined, so that ``p o r n``, ``p/o/r/n`` and ``pоrn`` with a Cyrillic letter are the word they look
like. Lists find words, not meanings: what passes is not thereby safe.
"""

import re
import unicodedata
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dalle_model.curation.word_lists import WordList, profanity

POLICY_VERSION = 4  # raised with any rule below; the digests of the lists are recorded beside it
MAX_PROMPT_CHARS = 2000

# Letters that stand alone, three or more in a row, at most three signs between two: "p o r n", "p.o.r.n", "p / o / r / n".
# No character is both a letter and a sign between letters here, else a row of "_" could be cut up in 2^n ways.
_SPACED = re.compile(r"(?<![^\W_])(?:[^\W_][\W_]{1,3}){2,}[^\W_](?![^\W_])")
_SIGNS_INSIDE = re.compile(
    r"(?<=[^\W_])[^\w\s@$!*#'’ʼ＇]+(?=[^\W_])|(?<=[^\W_])_+(?=[^\W_])"
)  # "po-rn"; not "Adele's hit"
_MASK = re.compile(r"(?<=[^\W_])[#*]+(?=[^\W_])")  # "p#rn"; word_lists reads the stars
# Nobody sees these, or they are drawn around the letter before them (U+20DD to U+20E4).
_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u20dd-\u20e0\u20e2-\u20e4"
    "\ufe00-\ufe0f\ufeff\U000e0000-\U000e007f\U000e0100-\U000e01ef]"
)
_A_TO_Z = "abcdefghijklmnopqrstuvwxyz"


def _lookalikes() -> dict[int, str]:
    """Letters beyond those that ``word_lists`` sees through: small capitals, strokes, Armenian, letters in boxes and flags."""
    pairs = {
        "ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘꞯʀꜱᴛᴜᴠᴡʏᴢ": "abcdefghijklmnopqrstuvwyz",
        "ɑɡıɩɴʋøđðłħŧƀɓɗɠɦƙƥƭⱱⱳƴȥ": "agiinvoddlhtbbdghkptvwyz",
        "օսհոյգզց": "ouhnjqqg",
        "гпӏѵү": "rnlvy",
    }
    table = {ord(a): b for letters, latin in pairs.items() for a, b in zip(letters, latin, strict=True)}
    for first in (0x1F150, 0x1F170, 0x1F1E6):  # in circles and squares, as flags
        table |= {first + number: letter for number, letter in enumerate(_A_TO_Z)}
    return table


_LOOKALIKES = _lookalikes()


@dataclass(frozen=True)
class Refusal:
    """Why a prompt is not drawn. rule: its name, e.g. ``profanity``; found: the words or the figure behind it."""

    rule: str
    found: str

    @property
    def reason(self) -> str:
        """One line for the row of the picture that was not made."""
        return f"policy {POLICY_VERSION}, {self.rule}: {self.found}"


@dataclass(frozen=True)
class PromptPolicy:
    """Lists of words by name; a prompt that holds a listed word is refused. No list = every prompt is drawn."""

    lists: tuple[tuple[str, WordList], ...] = ()

    @classmethod
    def standard(cls, own: WordList | None = None, *, packaged: bool = True) -> "PromptPolicy":
        """The list that comes with the package and, where one is given, a list of one's own."""
        lists = (("profanity", profanity()),) if packaged else ()
        return cls((*lists, ("own list", own)) if own else lists)

    def judge(self, prompt: str, negative: str = "", guidance: float = 1.0) -> Refusal | None:
        """The first rule that a prompt breaks, None when it is drawn. An empty prompt and one that is too long are refused.

        negative: what ``guidance`` leads away from; too long a one is refused, and a listed word in it where guidance is
        below 1, which leads towards it.
        """
        if not prompt.strip():
            return Refusal("empty", "no prompt")
        for what, text in (("too long", prompt), ("negative prompt too long", negative)):
            if len(text) > MAX_PROMPT_CHARS:
                return Refusal(what, f"{len(text)} characters, {MAX_PROMPT_CHARS} at most")
        return self._listed(prompt) or (self._listed(negative) if negative and guidance < 1.0 else None)

    def _listed(self, prompt: str) -> Refusal | None:
        readings = _readings(prompt)
        for name, words in self.lists:
            for reading in readings:
                if words.counts(pa.array([reading]))[0]:
                    return Refusal(name, ", ".join(dict.fromkeys(words.found(reading))) or "a listed phrase")
        return None

    def record(self) -> dict[str, Any]:
        """What was applied, for manifests: version and digest of each list."""
        return {"version": POLICY_VERSION, "lists": {name: words.digest for name, words in self.lists}}


def _readings(prompt: str) -> list[str]:
    """A prompt as written and as its disguises read, each once."""
    text = _UNSEEN.sub("", unicodedata.normalize("NFKC", prompt))
    text = _MASK.sub(lambda match: "*" * len(match.group()), text)
    # both: a list of one's own may hold words in the scripts whose letters are put back
    seen = (text, text.lower().translate(_LOOKALIKES))
    spaced = (_SPACED.sub(lambda match: re.sub(r"[\W_]+", "", match.group()), reading) for reading in seen)
    cut = (_SIGNS_INSIDE.sub("", reading) for reading in seen)
    return list(dict.fromkeys((*seen, *spaced, *cut)))
