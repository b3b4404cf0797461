"""Boilerplate mined from the corpus itself: phrases that stand in many captions, and captions of many pictures.

Frequent is not bad: "skin tone" is content of a set of emoji. So what is mined is an artifact to be read by a person,
and a cut only where ``curate.max_mined_boilerplate`` says so; phrases that are content go into
``curate.boilerplate_allow``.

Two passes over the captions, in memory that does not grow with them: the first counts word n-grams in a sketch of
fixed size that never counts too low (Cormode and Muthukrishnan 2005, one row), the second counts exactly what may be
frequent. The result does not depend on the order of the captions.
"""

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dalle_model.curation.texts import Scores, Words, words_of

MIN_WORDS, MAX_WORDS = 3, 8
MIN_CAPTIONS = 20  # below that nothing is frequent, however small the corpus
MAX_PHRASES = 500
_LETTERS = r"\p{L}\p{M}\p{N}'’#"
_SKETCH_BITS = 22
_WHOLE = np.uint64(
    0xD1B54A32D192ED03
)  # mixed into the hash of a whole caption, so that it is no phrase of the same words

UInt64 = npt.NDArray[np.uint64]
_PRIME = np.uint64(0x100000001B3)
_SPREAD = np.uint64(0x9E3779B97F4A7C15)

PHRASES = pa.schema(
    [
        pa.field("phrase", pa.string(), nullable=False),  # lower case, digits as #
        pa.field("kind", pa.string(), nullable=False),  # phrase | caption (the whole caption, word for word)
        pa.field("words", pa.int32(), nullable=False),
        pa.field("captions", pa.int64(), nullable=False),  # captions that hold it
        pa.field("share", pa.float64(), nullable=False),  # of all captions
        pa.field("allowed", pa.bool_(), nullable=False),  # named in curate.boilerplate_allow: does not count
    ],
    metadata={"record": "Phrase", "record_version": "1"},
)


def template(captions: pa.Array) -> pa.Array:
    """Captions as they are compared: lower case, digits as #, so that dates and numbers make one phrase."""
    return pc.replace_substring_regex(pc.utf8_lower(captions), r"\p{Nd}", "#")


@dataclass
class _Grams:
    """Hashes of the n-grams of a table: ``first`` is the place of the first word, ``size`` the number of words."""

    hashes: UInt64
    row: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]  # 0 = the whole caption


def mine(tables: Callable[[], Iterable[pa.Array]], min_share: float, allow: str = "") -> pa.Table:
    """Phrases in at least ``min_share`` of the captions -> PHRASES, most captions first.

    ``tables`` is called twice and gives arrays of captions [R]; ``allow`` are phrases between semicolons. Of phrases
    that stand in each other and in nearly the same captions the longest is kept.
    """
    sketch = np.zeros(1 << _SKETCH_BITS, np.uint32)
    total = 0
    for captions in tables():
        total += len(captions)
        grams = _distinct(_grams(words_of(template(captions), letters=_LETTERS)))
        np.add.at(sketch, _cells(grams.hashes), 1)
    least = max(MIN_CAPTIONS, math.ceil(min_share * total))
    found = _Found()
    for captions in tables():
        words = words_of(template(captions), letters=_LETTERS)
        grams = _distinct(_grams(words))
        likely = np.flatnonzero(sketch[_cells(grams.hashes)] >= least)
        found.add(words, grams, likely)
    counted = [(text, size, count) for (text, size), count in found.phrases().items() if count >= least]
    kept = _maximal(counted)[:MAX_PHRASES]
    allowed = [_key(part) for part in allow.split(";") if part.strip()]
    rows = [
        {
            "phrase": text,
            "kind": "phrase" if size else "caption",
            "words": text.count(" ") + 1,
            "captions": count,
            "share": round(count / max(total, 1), 6),
            "allowed": any(f" {part} " in f" {text} " for part in allowed),
        }
        for text, size, count in kept
    ]
    return pa.Table.from_pylist(rows, schema=PHRASES)


def _key(text: str) -> str:
    cleaned = template(pa.array([text]))
    return str(pc.utf8_trim_whitespace(pc.replace_substring_regex(cleaned, f"[^{_LETTERS}]+", " "))[0].as_py())


class _Found:
    """Exact counts of what may be frequent, with the words of each."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._texts: dict[int, tuple[str, int]] = {}

    def add(self, words: Words, grams: _Grams, places: npt.NDArray[np.int64]) -> None:
        hashes, first, counts = np.unique(grams.hashes[places], return_index=True, return_counts=True)
        for value, place, count in zip(hashes.tolist(), places[first].tolist(), counts.tolist(), strict=True):
            if value not in self._counts:
                start, size = int(grams.first[place]), int(grams.size[place])
                length = size or int(words.per_row[grams.row[place]])
                text = " ".join(words.vocabulary[code] for code in words.codes[start : start + length])
                self._texts[value] = (text, size)
            self._counts[value] = self._counts.get(value, 0) + count

    def phrases(self) -> dict[tuple[str, int], int]:
        return {self._texts[value]: count for value, count in self._counts.items()}


def _maximal(found: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Without what stands inside a longer one in at most a fifth more captions; most words x captions first."""
    ordered = sorted(found, key=lambda item: (-item[0].count(" "), item[1], item[0]))
    # A frequent phrase has few longer ones around it: comparing within its own words keeps this small.
    holders: dict[str, list[tuple[str, int]]] = {}
    kept = []
    for text, size, count in ordered:
        rarest = min(text.split(" "), key=lambda word: len(holders.get(word, ())))
        inside = any(f" {text} " in f" {longer} " and count <= 1.2 * times for longer, times in holders.get(rarest, ()))
        if not inside:
            kept.append((text, size, count))
            for word in set(text.split(" ")):
                holders.setdefault(word, []).append((text, count))
    return sorted(kept, key=lambda item: (-item[2] * (item[0].count(" ") + 1), item[0], item[1]))


@dataclass(frozen=True)
class Phrasebook:
    """Mined phrases as a rule: the share of a caption's words that stand in one."""

    phrases: frozenset[str] = field(default_factory=frozenset)
    captions: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def of(cls, table: pa.Table) -> "Phrasebook":
        """From PHRASES; allowed ones are left out."""
        rows = [row for row in table.to_pylist() if not row["allowed"]]
        return cls(
            frozenset(row["phrase"] for row in rows if row["kind"] == "phrase"),
            frozenset(row["phrase"] for row in rows if row["kind"] == "caption"),
        )

    def shares(self, captions: pa.Array) -> Scores:
        """Captions [R] -> float64 [R] within 0..1."""
        words = words_of(template(captions), letters=_LETTERS)
        scores = np.zeros(words.rows, np.float64)
        if not len(words.codes) or not (self.phrases or self.captions):
            return scores
        known = _hashes_of(self)
        grams = _grams(words)
        hit = np.isin(grams.hashes, known)
        covered = np.zeros(len(words.codes) + 1, np.int64)
        length = np.where(grams.size == 0, words.per_row[grams.row], grams.size)[hit]
        np.add.at(covered, grams.first[hit], 1)
        np.add.at(covered, grams.first[hit] + length, -1)
        inside = np.cumsum(covered[:-1]) > 0
        return np.bincount(words.row, weights=inside, minlength=words.rows) / np.maximum(words.per_row, 1)


@lru_cache(maxsize=4)
def _hashes_of(book: Phrasebook) -> UInt64:
    known = []
    for texts, whole in ((book.phrases, False), (book.captions, True)):
        for text in sorted(texts):
            grams = _grams(words_of(pa.array([text])))
            size = 0 if whole else text.count(" ") + 1
            known.append(grams.hashes[grams.size == size][:1])
    return np.concatenate(known)


def _grams(words: Words) -> _Grams:
    """All n-grams of MIN_WORDS to MAX_WORDS words, and each whole caption."""
    word = _word_hashes(words.vocabulary)[words.codes]
    place = np.arange(len(word))
    hashes, rows, firsts, sizes = [], [], [], []
    rolling = np.zeros(len(word), np.uint64)
    for size in range(1, MAX_WORDS + 1):
        count = len(word) - size + 1
        if count <= 0:
            break
        rolling = rolling[:count] * _PRIME + word[size - 1 :]
        if size >= MIN_WORDS:
            same = words.row[:count] == words.row[size - 1 :]
            hashes.append(_mixed(rolling + np.uint64(size))[same])
            rows.append(words.row[:count][same])
            firsts.append(place[:count][same])
            sizes.append(np.full(int(same.sum()), size))
    starts = np.flatnonzero(np.diff(words.row, prepend=-1))
    if len(starts):
        # Each word mixed with its place: the sum over the caption knows the order. (Weighing words by their place is
        # not enough: a sum of multiples is the same for many orders of the same words.)
        offset = place - np.repeat(starts, np.diff(np.append(starts, len(word))))
        hashes.append(np.add.reduceat(_mixed(word + offset.astype(np.uint64) * _SPREAD), starts) ^ _WHOLE)
        rows.append(words.row[starts])
        firsts.append(starts)
        sizes.append(np.zeros(len(starts), np.int64))
    if not hashes:
        empty = np.zeros(0, np.int64)
        return _Grams(np.zeros(0, np.uint64), empty, empty, empty)
    return _Grams(np.concatenate(hashes), np.concatenate(rows), np.concatenate(firsts), np.concatenate(sizes))


def _mixed(values: UInt64) -> UInt64:
    """The finaliser of SplitMix64 (Steele et al. 2014): every bit of the input moves every bit of the output."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _distinct(grams: _Grams) -> _Grams:
    """Each n-gram once per caption."""
    order = np.lexsort((grams.hashes, grams.row))
    hashes, row = grams.hashes[order], grams.row[order]
    new = np.ones(len(order), bool)
    new[1:] = (hashes[1:] != hashes[:-1]) | (row[1:] != row[:-1])
    chosen = order[new]
    return _Grams(grams.hashes[chosen], grams.row[chosen], grams.first[chosen], grams.size[chosen])


def _cells(hashes: UInt64) -> UInt64:
    return hashes >> np.uint64(64 - _SKETCH_BITS)


def _word_hashes(vocabulary: list[str]) -> UInt64:
    digests = b"".join(hashlib.blake2b(word.encode(), digest_size=8).digest() for word in vocabulary)
    return np.frombuffer(digests, "<u8").astype(np.uint64)
