"""Scores of captions, column-wise: Arrow and NumPy do the work, Python sees distinct words and suspects only.

All functions take normalised captions (``records.normalise_caption``) as a pa.Array of strings [R] and give float64 [R];
NaN means that the rule has nothing to say about the row.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Words:
    """Captions cut into words: ``codes`` [W] index into ``vocabulary``, ``row`` [W] is the caption of each word."""

    vocabulary: list[str]
    codes: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    rows: int

    @cached_property
    def per_row(self) -> npt.NDArray[np.int64]:
        """Words of each caption, int64 [R]."""
        return np.bincount(self.row, minlength=self.rows)


def words_of(captions: pa.Array, *, letters: str = "") -> Words:
    """Lower-case captions, cut at spaces, or at all that is not in ``letters`` (the inside of an RE2 character class).

    Joiners of zero width cut nothing there: a word is the same with and without them.
    """
    captions = one_array(captions)
    text = pc.utf8_lower(captions)
    if letters:
        odd = pc.match_substring_regex(text, rf"[^{letters} ]|  |^ | $")
        if pc.any(odd).as_py():  # most captions have single spaces alone; to look costs a fifth of replacing
            joined = pc.replace_substring_regex(text.filter(odd), "[\u200c\u200d]", "")
            spaced = pc.replace_substring_regex(joined, f"[^{letters}]+", " ")
            text = pc.replace_with_mask(text, odd, pc.utf8_trim_whitespace(spaced))
    lists = pc.split_pattern(text, " ")
    flat = pc.list_flatten(lists)
    row = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    encoded = flat.dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    vocabulary = encoded.dictionary.to_pylist()
    filled = np.array([word != "" for word in vocabulary], bool)[codes] if vocabulary else np.zeros(0, bool)
    return Words(vocabulary, codes[filled], row.astype(np.int64)[filled], len(captions))


def one_array(column: Any) -> pa.Array:
    """A table's column as one pa.Array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


# Scripts that put no spaces between words.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"


def caption_words(captions: pa.Array) -> Scores:
    """Words between spaces; where a script puts none between words, two of its characters count as a word."""
    captions = one_array(captions)
    words = np.asarray(pc.count_substring(captions, " ").to_numpy(zero_copy_only=False), np.float64) + 1
    foreign = np.flatnonzero(~pc.string_is_ascii(captions).to_numpy(zero_copy_only=False))
    if len(foreign):
        found = pc.count_substring_regex(captions.take(pa.array(foreign)), _UNSPACED).to_numpy(zero_copy_only=False)
        words[foreign] += np.maximum(found // 2 - 1, 0)
    return words


def caption_chars(captions: pa.Array) -> Scores:
    """Characters (code points)."""
    return np.asarray(pc.utf8_length(captions).to_numpy(zero_copy_only=False), np.float64)


def word_repetition(captions: pa.Array) -> Scores:
    """Share of the most frequent word, of captions of four words or more."""
    words = words_of(captions)
    keys, counts = np.unique(words.row * max(len(words.vocabulary), 1) + words.codes, return_counts=True)
    most = np.zeros(words.rows, np.int64)
    np.maximum.at(most, keys // max(len(words.vocabulary), 1), counts)
    per_row = words.per_row
    return np.where(per_row >= 4, most / np.maximum(per_row, 1), np.nan)


_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_WEEKDAY = r"(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*,? )?"
_TIME = r"(?: \d{1,2}:\d{2}(?::\d{2})?)?"
_DATE = (
    rf"{_WEEKDAY}(?:\d{{1,4}}[-/.]\d{{1,2}}[-/.]\d{{1,4}}|\d{{1,2}}(?:st|nd|rd|th)? {_MONTH},? \d{{2,4}}"
    rf"|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?,?{_TIME},? \d{{2,4}}){_TIME}"
)
# For RE2, whose work grows with the length of a caption and no faster: with Python's re, "monmonmon ..." was tried to its
# end from each of its beginnings.
_STOCK = (
    r"(?i)"
    rf"(?:(?:photo|photograph|picture|image|shot)(?:graph)? )?(?:was )?(?:taken|captured|shot|uploaded|created|posted)(?: (?:on|at|in|by))? {_DATE}"
    rf"|{_DATE}"
    r"|(?:stock|royalty[- ]free|free) (?:photos?|images?|pictures?|vectors?|illustrations?)"
    r"|all rights reserved|click (?:here|to enlarge)|(?:img|dsc|dscn|dscf)[_-]?\d{3,}(?:\.jpe?g)?"
)
# Most captions leave here: the long pattern costs 20 times as much.
_STOCK_HINT = r"(?i)stock|free|rights|click|\d[-/.]\d|(?:19|20)\d\d|(?:img|dsc[nf]?)[_-]?\d"


def boilerplate(captions: pa.Array) -> Scores:
    """Share of the caption in known stock phrases: dates of a photo in many formats, camera file names, agency words."""
    scores = np.zeros(len(captions), np.float64)
    hits = pc.match_substring_regex(captions, _STOCK_HINT).to_numpy(zero_copy_only=False)
    if not hits.any():
        return scores
    suspects = captions.take(pa.array(np.flatnonzero(hits)))
    chars = caption_chars(suspects)
    scores[hits] = (chars - caption_chars(pc.replace_substring_regex(suspects, _STOCK, ""))) / chars
    return scores
