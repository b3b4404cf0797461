"""From features and thresholds to verdicts, duplicates, clusters and splits: a few passes over plain arrays.

About 45 bytes per pair stay in memory; captions and pictures do not.
"""

import re
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dalle_model.config import CurateConfig
from dalle_model.curation.clusters import SPLITS, captions_per_picture, cluster, first_of_each, held_out, split_of
from dalle_model.curation.features import digest64
from dalle_model.curation.rules import Check, checks
from dalle_model.errors import DataError, UsageError

DUPLICATE = Check("duplicate", "duplicate", "drop_duplicates", high=1)
PLACEHOLDER = Check("captions_per_picture", "placeholder", "max_captions_per_picture")
SET_RULES = (DUPLICATE.rule, PLACEHOLDER.rule)  # judged over the whole set: they have no score of a single pair


@dataclass(frozen=True, slots=True)
class Selection:
    """Verdicts over all rows of a pairs artifact, in its order."""

    verdict: npt.NDArray[np.uint8]  # 0 = kept, k = failed the k-th of `tests`
    tests: tuple[Check, ...]
    split: npt.NDArray[np.uint8]  # index into SPLITS; of kept rows
    clusters: npt.NDArray[np.uint64]  # 0 for rejected rows

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        return np.equal(self.verdict, 0)

    def funnel(self) -> list[list[Any]]:
        """[[stage, rows left]], from all rows down."""
        counts = np.bincount(self.verdict, minlength=len(self.tests) + 1)
        left = len(self.verdict)
        steps: list[list[Any]] = [["pairs", left]]
        for number, test in enumerate(self.tests, start=1):
            left -= int(counts[number])
            steps.append([test.reason, left])
        return steps

    def reasons(self) -> dict[str, int]:
        """Rejected rows per reason, most frequent first."""
        counts = Counter({test.reason: int((self.verdict == n).sum()) for n, test in enumerate(self.tests, start=1)})
        return {
            reason: count for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if count
        }

    def splits(self) -> dict[str, int]:
        """Kept rows per split."""
        counts = np.bincount(self.split[self.kept], minlength=len(SPLITS))
        return {name: int(count) for name, count in zip(SPLITS, counts, strict=True)}


def select(features: Iterable[pa.Table], config: CurateConfig) -> Selection:
    """Judge all rows. Raises UsageError for a bad pattern, DataError when nothing or no training row is left."""
    pattern = _pattern(config.holdout_pattern)
    tests = checks(config)
    columns = [array("Q") for _ in range(4)]
    verdicts, held = [], bytearray()
    for table in features:
        verdict = _verdicts(table, tests)
        verdicts.append(verdict)
        captions = table["caption"].to_pylist()
        columns[0].extend(int(i[:16], 16) for i in table["id"].to_pylist())
        columns[1].frombytes(table["picture"].to_numpy().tobytes())
        columns[2].extend(digest64(caption.encode()) for caption in captions)
        columns[3].frombytes(table["phash"].to_numpy().tobytes())
        held.extend(bool(pattern and pattern.search(c) and held_out(c, config.holdout_every)) for c in captions)
    ids, pictures, captions_, phashes = (
        np.frombuffer(column, np.uint64) if column else np.zeros(0, np.uint64) for column in columns
    )
    all_verdicts = np.concatenate(verdicts) if verdicts else np.zeros(0, np.uint8)
    alive = np.flatnonzero(all_verdicts == 0)
    survives = first_of_each([pictures[alive], captions_[alive]], ids[alive])
    captions_of_each = captions_per_picture(pictures[alive], survives)
    if config.drop_duplicates:
        tests = (*tests, DUPLICATE)
        all_verdicts[alive[~survives]] = len(tests)
    if config.max_captions_per_picture:
        tests = (*tests, replace(PLACEHOLDER, high=config.max_captions_per_picture))
        crowded = alive[captions_of_each > config.max_captions_per_picture]
        all_verdicts[crowded[all_verdicts[crowded] == 0]] = len(tests)
    selection = _with_splits(all_verdicts, tests, pictures, phashes, np.frombuffer(bytes(held), np.bool_), config)
    _refuse_empty(selection, config)
    return selection


def _verdicts(table: pa.Table, tests: tuple[Check, ...]) -> npt.NDArray[np.uint8]:
    """Number of the first test that each row fails, 0 for none."""
    verdict = np.zeros(table.num_rows, np.uint8)
    for number, test in enumerate(tests, start=1):
        scores = table[test.rule].to_numpy()
        verdict[(verdict == 0) & ~test.passed(np.asarray(scores, np.float64))] = number
    return verdict


def _with_splits(
    verdict: npt.NDArray[np.uint8],
    tests: tuple[Check, ...],
    pictures: npt.NDArray[np.uint64],
    phashes: npt.NDArray[np.uint64],
    held: npt.NDArray[np.bool_],
    config: CurateConfig,
) -> Selection:
    kept = verdict == 0
    clusters, split = np.zeros(len(verdict), np.uint64), np.zeros(len(verdict), np.uint8)
    clusters[kept] = cluster(pictures[kept], phashes[kept], config.near_duplicate_bits)
    split[kept] = split_of(clusters[kept], config.valid_share, config.test_share, config.seed)
    # A picture with several captions is held out when any of them is: else it would be trained on under another name.
    # Look-alikes are not: siblings that differ in one attribute are the very thing composition is measured with.
    split[kept & np.isin(pictures, pictures[kept & held])] = SPLITS.index("heldout")
    return Selection(verdict, tests, split, clusters)


def _pattern(text: str) -> re.Pattern[str] | None:
    try:
        return re.compile(text) if text else None
    except re.error as error:
        raise UsageError(
            f"curate.holdout_pattern {text!r} is no regular expression ({error}); see Python's `re`"
        ) from error


def _refuse_empty(selection: Selection, config: CurateConfig) -> None:
    total = len(selection.verdict)
    if not selection.kept.any():
        reasons = selection.reasons()
        if not reasons:
            raise DataError("the pairs artifact holds no pairs; ingest a source that has some")
        reason, count = next(iter(reasons.items()))
        test = next(t for t in selection.tests if t.reason == reason)
        raise DataError(
            f"none of {total} pairs survives curation: {count} are dropped as {reason} ({test.words}); move that threshold, or use preset none"
        )
    splits = selection.splits()
    if not splits["train"]:
        others = ", ".join(f"{count} {name}" for name, count in splits.items() if count)
        raise DataError(
            f"no training pair is left of {int(selection.kept.sum())} kept ones ({others}); lower curate.valid_share ({config.valid_share:g}) or test_share ({config.test_share:g}), narrow curate.holdout_pattern, or bring more pairs"
        )
