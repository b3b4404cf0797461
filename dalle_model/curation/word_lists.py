"""Listed words in captions: the profanity list that comes with the package, and lists of a user's own.

A list is a text file, one term a line: a word, a phrase, or a word with ``*`` for any ending. ``#`` begins a comment.
Words are compared after folding: compatibility forms, accents, look-alike letters of other alphabets, digits and signs
put for letters, and letters drawn out (Unicode NFKC and NFD, then own tables), so that disguises do not help.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from importlib.resources import files
from itertools import product

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dalle_model.curation.texts import Scores, Words, words_of
from dalle_model.errors import DataError

_LETTERS = r"\p{L}\p{M}\p{N}@$!*"
_LOOKALIKES = str.maketrans("авеёкмнорстухіјѕһԁԛԝαβεικνορτυχ", "abeekmhopctyxijshdqwabeikvoptux")
_SIGNS = str.maketrans("013457@$!", "oieastasi")
_DRAWN_OUT = re.compile(r"(.)\1{2,}")
MAX_TERM_WORDS = 6


@dataclass(frozen=True)
class WordList:
    """Terms to look for: single words, beginnings of words, phrases. ``digest`` is that of the file."""

    words: frozenset[str]
    beginnings: tuple[str, ...]
    phrases: tuple[tuple[str, ...], ...]
    digest: str

    def counts(self, captions: pa.Array) -> Scores:
        """Listed terms in each caption, float64 [R]."""
        words = words_of(captions, letters=_LETTERS)
        forms = [folded(word) for word in words.vocabulary]
        hit = self._hits(forms)
        counts = np.bincount(words.row[hit[words.codes]], minlength=words.rows).astype(np.float64)
        terms = {term for phrase in self.phrases for term in phrase}
        codes: dict[str, list[int]] = {}
        for code, known in enumerate(forms):
            if not terms.isdisjoint(known):
                for term in known & terms:
                    codes.setdefault(term, []).append(code)
        for phrase in self.phrases:
            if all(term in codes for term in phrase):
                counts += _phrase(words, [codes[term] for term in phrase])
        return counts

    def found(self, caption: str) -> list[str]:
        """The words of one caption that are listed, as they stand in it."""
        words = words_of(pa.array([caption]), letters=_LETTERS)
        return [words.vocabulary[code] for code in words.codes if self._hits([folded(words.vocabulary[code])])[0]]

    @cached_property
    def _begun(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.beginnings)) or "(?!)")  # that matches nothing

    def _hits(self, words: Sequence[frozenset[str]]) -> npt.NDArray[np.bool_]:
        listed, begun = self.words, self._begun.match
        return np.array([not listed.isdisjoint(forms) or any(map(begun, forms)) for forms in words], bool)


def _phrase(words: Words, codes: list[list[int]]) -> Scores:
    """How often each caption has words of these codes one after the other, float64 [R]."""
    at = np.arange(max(len(words.codes) - len(codes) + 1, 0))
    for offset, wanted in enumerate(codes):
        at = at[np.isin(words.codes[at + offset], wanted)]
    whole = at[words.row[at] == words.row[at + len(codes) - 1]]
    return np.bincount(words.row[whole], minlength=words.rows).astype(np.float64)


@lru_cache(maxsize=200_000)
def folded(word: str) -> frozenset[str]:
    """The forms under which a word is looked up; all are lower case without accents."""
    if word.isascii() and word.isalpha() and not _DRAWN_OUT.search(word):
        return frozenset((word.lower(),))  # nothing to see through
    plain = unicodedata.normalize("NFKC", word).casefold()
    plain = "".join(c for c in unicodedata.normalize("NFD", plain) if not unicodedata.combining(c))
    forms = {plain.strip("@$!*")}
    for lookalikes, signs in product((False, True), repeat=2):
        form = plain.translate(_LOOKALIKES) if lookalikes else plain
        if signs and any(c.isalpha() for c in form):  # a plain number is no word in disguise
            form = form.rstrip("!").translate(_SIGNS)
        forms.add(form.strip("@$!*"))
    forms |= {_DRAWN_OUT.sub(r"\1", form) for form in forms}
    return frozenset(forms)


def parse_list(data: bytes, name: str) -> WordList:
    """A list file -> WordList. DataError when it is not UTF-8, or a term has no letter or too many words."""
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"the word list {name} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    words, beginnings, phrases = set(), set(), set()
    for number, line in enumerate(lines, start=1):
        term = line.partition("#")[0].strip()
        if not term:
            continue
        parts = tuple(_plain(part) for part in term.rstrip("*").split())
        if not 1 <= len(parts) <= MAX_TERM_WORDS or not all(parts) or (term.endswith("*") and len(parts) > 1):
            raise DataError(
                f"line {number} of the word list {name}, {term[:40]!r}, is no term; write a word, a word with * at its end, or 2 to {MAX_TERM_WORDS} words"
            )
        if term.endswith("*"):
            beginnings.add(parts[0])
        elif len(parts) == 1:
            words.add(parts[0])
        else:
            phrases.add(parts)
    digest = hashlib.sha256(data).hexdigest()
    return WordList(frozenset(words), tuple(sorted(beginnings)), tuple(sorted(phrases)), digest)


def _plain(word: str) -> str:
    text = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", word).casefold())
    return "".join(c for c in text if not unicodedata.combining(c) and (c.isalnum() or c in "@$!"))


@cache
def profanity() -> WordList:
    """The list that comes with the package; its version is a line of the file, its digest part of every fingerprint."""
    name = "profanity.en.txt"
    return parse_list(files("dalle_model.curation").joinpath("lists", name).read_bytes(), name)
