"""Listed words in captions: the profanity list that comes with the package, and lists of a user's own.

A list is a text file, one term a line: a word, a phrase, or a word with ``*`` for any ending. ``#`` begins a comment.
Words are compared after folding: compatibility forms, accents, look-alike letters of other alphabets, digits and signs
put for letters (Unicode NFKC and NFD, then own tables), letters drawn out, and stars in the place of letters, so that
disguises do not help.
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
_TWICE = re.compile(r"(.)\1")
_RUN = re.compile(r"(.)\1*")
_SELDOM_DOUBLED = frozenset("aiuhjkqwxy")  # a word of English with one of them doubled is hardly ever another word
MAX_TERM_WORDS = 6


@dataclass(frozen=True)
class WordList:
    """Terms to look for: single words, beginnings of words, phrases. ``digest`` is that of the file.

    A letter drawn out to three or more is that letter, one written twice only where English does not write it so:
    "god" is not "good". doubled: whether any letter may stand twice, for a list that was held against ordinary words.
    """

    words: frozenset[str]
    beginnings: tuple[str, ...]
    phrases: tuple[tuple[str, ...], ...]
    digest: str
    doubled: bool = False

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

    @cached_property
    def _begun_stretched(self) -> re.Pattern[str]:
        return re.compile("|".join(map(self._stretched, self.beginnings)) or "(?!)")

    def _stretched(self, term: str) -> str:
        """A pattern of a term and of the same with letters drawn out."""
        parts = []
        for letter, count in _runs(term):
            once = count == 1 and not self._may_double(letter)
            sign = re.escape(letter)
            parts.append(f"(?:{sign}{{3,}}|{sign})" if once else f"{sign}{{{count},}}")
        return "".join(parts)

    def _may_double(self, letter: str) -> bool:
        return self.doubled or letter in _SELDOM_DOUBLED

    @cached_property
    def _by_letters(self) -> dict[str, list[tuple[tuple[str, int], ...]]]:
        """Words under their letters with runs as one: those that a word with drawn-out letters may be."""
        found: dict[str, list[tuple[tuple[str, int], ...]]] = {}
        for word in sorted(self.words):
            found.setdefault(_RUN.sub(r"\1", word), []).append(_runs(word))
        return found

    def _is_stretched(self, form: str) -> bool:
        if not _TWICE.search(form):
            return False
        known = self._by_letters.get(_RUN.sub(r"\1", form), ())
        return bool(self._begun_stretched.match(form)) or any(self._stretches(_runs(form), term) for term in known)

    def _stretches(self, form: tuple[tuple[str, int], ...], term: tuple[tuple[str, int], ...]) -> bool:
        pairs = zip(form, term, strict=True)
        return all(n == m or (n > m and (n > 2 or self._may_double(letter))) for (letter, n), (_, m) in pairs)

    def _is_masked(self, form: str) -> bool:
        """Whether a word with stars inside is a listed one: each star a letter, the first and one more as listed."""
        if not form[:1].isalpha() or sum(map(str.isalpha, form)) < 2:
            return False
        begin = any(
            len(form) >= len(term) and form[: len(term)].strip("*") != form[0] and _fits(form[: len(term)], term)
            for term in self.beginnings
        )
        return begin or any(len(form) == len(word) and _fits(form, word) for word in self.words)

    def _hits(self, words: Sequence[frozenset[str]]) -> npt.NDArray[np.bool_]:
        return np.array([self._is_listed(forms) for forms in words], bool)

    def _is_listed(self, forms: frozenset[str]) -> bool:
        if not self.words.isdisjoint(forms) or any(map(self._begun.match, forms)):
            return True
        return any(self._is_stretched(form) or ("*" in form and self._is_masked(form)) for form in forms)


def _runs(word: str) -> tuple[tuple[str, int], ...]:
    """Letters and how often each stands in a row."""
    return tuple((run.group(1), len(run.group())) for run in _RUN.finditer(word))


def _fits(masked: str, term: str) -> bool:
    return all(a in ("*", b) for a, b in zip(masked, term, strict=True))


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


def parse_list(data: bytes, name: str, *, doubled: bool = False) -> WordList:
    """A list file -> WordList; ``doubled``: see there. DataError when it is not UTF-8, or a term has no letter or too many words."""
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
    return WordList(frozenset(words), tuple(sorted(beginnings)), tuple(sorted(phrases)), digest, doubled)


def _plain(word: str) -> str:
    text = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", word).casefold())
    return "".join(c for c in text if not unicodedata.combining(c) and (c.isalnum() or c in "@$!"))


@cache
def profanity() -> WordList:
    """The list that comes with the package; its version is a line of the file, its digest part of every fingerprint."""
    name = "profanity.en.txt"
    return parse_list(files("dalle_model.curation").joinpath("lists", name).read_bytes(), name, doubled=True)
