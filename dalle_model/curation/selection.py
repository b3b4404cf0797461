"""From features and thresholds to verdicts, duplicates, clusters and splits: a few passes over plain arrays.

About 80 bytes per pair stay in memory, and the embedding where one is asked for; captions and pictures do not.
"""

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dalle_model.config import CurateConfig
from dalle_model.curation.clusters import (
    SPLITS,
    TIERS,
    best_of_each,
    captions_per_picture,
    first_of_each,
    fold_of,
    held_out,
    kinship,
    split_of,
    survivor_rank,
)
from dalle_model.curation.contamination import touching
from dalle_model.curation.features import digest64
from dalle_model.curation.hashes import UInt64Array
from dalle_model.curation.rules import Check, checks
from dalle_model.errors import DataError, UsageError

DUPLICATE = Check("duplicate", "duplicate", "drop_duplicates", high=1)
PLACEHOLDER = Check("captions_per_picture", "placeholder", "max_captions_per_picture")
REMOVED = Check("consent", "removed", "dalle forget")
CONTAMINATION = Check("contamination", "touches_evaluation", "exclude_bits")
KIN = Check("cluster", "near_duplicate", "max_pairs_per_cluster")
# Judged over the whole set, or by what lies outside it: they have no score of a single pair.
SET_RULES = tuple(test.rule for test in (DUPLICATE, PLACEHOLDER, REMOVED, CONTAMINATION, KIN))


@dataclass(frozen=True, slots=True)
class Selection:
    """Verdicts over all rows of a pairs artifact, in its order."""

    verdict: npt.NDArray[np.uint8]  # 0 = kept, k = failed the k-th of `tests`
    tests: tuple[Check, ...]
    split: npt.NDArray[np.uint8]  # index into SPLITS; of kept rows
    clusters: npt.NDArray[np.uint64]  # of kept rows and of those that kin or duplicates replaced, else 0
    kin: npt.NDArray[np.bool_]  # rows that have a cluster
    tier: npt.NDArray[np.uint8]  # index into TIERS, see clusters.Kinship
    distance: npt.NDArray[np.float32]

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


@dataclass(frozen=True, slots=True)
class Outside:
    """What curation reads beside the pairs and their features.

    removed: which rows of a feature table somebody withdrew. embeddings: [n, d] of all pairs in order, for the third
    tier. evaluation: (picture, perceptual hash, embeddings or None) of the sets that training must not touch. unit:
    what turns a distance of embeddings into the one of the config.
    """

    removed: Callable[[pa.Table], npt.NDArray[np.bool_]] | None = None
    embeddings: npt.NDArray[Any] | None = None
    evaluation: tuple[UInt64Array, UInt64Array, npt.NDArray[Any] | None] | None = None
    unit: float = 1.0


Arrays = tuple[UInt64Array, UInt64Array, UInt64Array, npt.NDArray[np.int64]]


class Columns:
    """What is kept of every row while the set is judged."""

    def __init__(self) -> None:
        self._ids, self._pictures, self._captions, self._phashes = (array("Q") for _ in range(4))
        self._sides, self._chars = array("f"), array("f")

    def add(self, table: pa.Table, captions: list[str]) -> None:
        """Rows of a table of ``judging.judged``, and their captions."""
        self._ids.extend(int(i[:16], 16) for i in table["id"].to_pylist())
        self._pictures.frombytes(table["picture"].to_numpy().tobytes())
        self._captions.extend(digest64(caption.encode()) for caption in captions)
        self._phashes.frombytes(table["phash"].to_numpy().tobytes())
        for column, name in ((self._sides, "side_px"), (self._chars, "caption_chars")):
            column.frombytes(np.asarray(table[name].to_numpy(), np.float32).tobytes())

    def arrays(self) -> Arrays:
        """Pictures, captions, perceptual hashes; and every row's place under the survivor rule."""
        ids, pictures, captions, phashes = (
            np.frombuffer(column, np.uint64) if column else np.zeros(0, np.uint64)
            for column in (self._ids, self._pictures, self._captions, self._phashes)
        )
        sides, chars = (
            np.frombuffer(column, np.float32) if column else np.zeros(0, np.float32)
            for column in (self._sides, self._chars)
        )
        return pictures, captions, phashes, survivor_rank(ids, sides, chars)


def select(features: Iterable[pa.Table], config: CurateConfig, outside: Outside = Outside()) -> Selection:
    """Judge all rows. Raises UsageError for a bad pattern, DataError when nothing or no training row is left."""
    pattern = _pattern(config.holdout_pattern)
    by_score = checks(config)
    tests = (REMOVED, *by_score) if outside.removed else by_score
    columns, verdicts, held = Columns(), [], bytearray()
    for table in features:
        verdict = _verdicts(table, by_score)
        if outside.removed:
            verdict[verdict > 0] += 1
            verdict[outside.removed(table)] = 1
        verdicts.append(verdict)
        captions = table["caption"].to_pylist()
        columns.add(table, captions)
        held.extend(bool(pattern and pattern.search(c) and held_out(c, config.holdout_every)) for c in captions)
    arrays = columns.arrays()
    all_verdicts = np.concatenate(verdicts) if verdicts else np.zeros(0, np.uint8)
    tests, kin = _judge_set(all_verdicts, tests, arrays, config, outside)
    selection = _with_splits(all_verdicts, tests, arrays[0], np.frombuffer(bytes(held), np.bool_), kin, config)
    _refuse_empty(selection, config)
    return selection


def _judge_set(
    verdict: npt.NDArray[np.uint8],
    tests: tuple[Check, ...],
    arrays: Arrays,
    config: CurateConfig,
    outside: Outside,
) -> tuple[tuple[Check, ...], "_Kin"]:
    """The rules over the whole set, on the rows that passed all others; in place."""
    pictures, captions, phashes, rank = arrays
    alive = np.flatnonzero(verdict == 0)
    survives = first_of_each([pictures[alive], captions[alive]], rank[alive])
    captions_of_each = captions_per_picture(pictures[alive], survives)
    if config.drop_duplicates:
        tests = (*tests, DUPLICATE)
        verdict[alive[~survives]] = len(tests)
    related = np.ones(len(alive), bool)
    if config.max_captions_per_picture:
        tests = (*tests, replace(PLACEHOLDER, high=config.max_captions_per_picture))
        related = captions_of_each <= config.max_captions_per_picture
        crowded = alive[~related]
        verdict[crowded[verdict[crowded] == 0]] = len(tests)
    kin = _related(alive[related], pictures, phashes, rank, config, outside)
    return _judge_kin(kin, verdict, tests, (pictures, phashes, rank), config, outside), kin


def survivors(alive: npt.NDArray[np.bool_], arrays: Arrays, config: CurateConfig) -> npt.NDArray[np.bool_]:
    """Which of the rows ``alive`` [n] the rules over the whole set keep, as in ``select`` without anything outside."""
    verdict = np.where(alive, 0, 1).astype(np.uint8)
    if not config.max_pairs_per_cluster:  # kinship drops nothing then, and is the dear part
        config = config.model_copy(update={"near_duplicate_bits": -1})
    _judge_set(verdict, (REMOVED,), arrays, config, Outside())
    return np.equal(verdict, 0)


@dataclass(frozen=True, slots=True)
class _Kin:
    """``clusters.Kinship`` of some of the rows, spread over all."""

    there: npt.NDArray[np.bool_]
    cluster: UInt64Array
    tier: npt.NDArray[np.uint8]
    distance: npt.NDArray[np.float32]


def _related(
    rows: npt.NDArray[np.int64],
    pictures: UInt64Array,
    phashes: UInt64Array,
    rank: npt.NDArray[np.int64],
    config: CurateConfig,
    outside: Outside,
) -> _Kin:
    place = np.empty(len(rows), np.int64)
    place[np.argsort(rank[rows])] = np.arange(len(rows))
    vectors = None if outside.embeddings is None else outside.embeddings[rows]
    found = kinship(
        pictures[rows],
        phashes[rows],
        place,
        config.near_duplicate_bits,
        vectors,
        config.embedding_distance / outside.unit,
    )
    count = len(pictures)
    kin = _Kin(
        np.zeros(count, bool), np.zeros(count, np.uint64), np.zeros(count, np.uint8), np.full(count, np.nan, np.float32)
    )
    kin.there[rows], kin.cluster[rows], kin.tier[rows] = True, found.cluster, found.tier
    scale = np.where(found.tier == TIERS.index("embedding"), outside.unit, 1.0)
    kin.distance[rows] = found.distance * scale
    return kin


def _judge_kin(
    kin: _Kin,
    verdict: npt.NDArray[np.uint8],
    tests: tuple[Check, ...],
    columns: tuple[UInt64Array, UInt64Array, npt.NDArray[np.int64]],
    config: CurateConfig,
    outside: Outside,
) -> tuple[Check, ...]:
    """Drop what touches an evaluation set, with all its kin, and what a cluster has too much of; in place."""
    pictures, phashes, rank = columns
    if outside.evaluation is not None:
        tests = (*tests, replace(CONTAMINATION, high=config.exclude_bits))
        near = touching(
            (pictures, phashes, outside.embeddings),
            outside.evaluation,
            config.exclude_bits,
            config.embedding_distance / outside.unit,
        )
        tainted = kin.there & np.isin(kin.cluster, kin.cluster[near & kin.there])
        verdict[(tainted | near) & (verdict == 0)] = len(tests)
    if config.max_pairs_per_cluster:
        tests = (*tests, replace(KIN, high=config.max_pairs_per_cluster))
        rows = np.flatnonzero(kin.there & (verdict == 0))
        best = best_of_each([kin.cluster[rows]], rank[rows], config.max_pairs_per_cluster)
        verdict[rows[~best]] = len(tests)
    return tests


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
    pictures: UInt64Array,
    held: npt.NDArray[np.bool_],
    kin: _Kin,
    config: CurateConfig,
) -> Selection:
    kept = verdict == 0
    split = np.zeros(len(verdict), np.uint8)
    clusters = kin.cluster[kept]
    split[kept] = split_of(clusters, config.valid_share, 0.0 if config.folds else config.test_share, config.seed)
    if config.folds:
        fold = np.full(len(verdict), -1)
        fold[kept] = fold_of(clusters, config.folds, config.seed)
        split[fold == config.fold] = SPLITS.index("test")
    # A picture with several captions is held out when any of them is: else it would be trained on under another name.
    # Look-alikes are not: siblings that differ in one attribute are the very thing composition is measured with.
    split[kept & np.isin(pictures, pictures[kept & held])] = SPLITS.index("heldout")
    return Selection(verdict, tests, split, kin.cluster, kin.there, kin.tier, kin.distance)


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
    if config.folds and not splits["test"]:
        clusters = len(np.unique(selection.clusters[selection.kept]))
        raise DataError(
            f"fold {config.fold} of {config.folds} is empty: the {int(selection.kept.sum())} kept pairs are {clusters} clusters of kin, "
            "and each is in one fold as a whole; lower curate.folds, or bring more pairs"
        )
    if not splits["train"]:
        others = ", ".join(f"{count} {name}" for name, count in splits.items() if count)
        folds = (
            f", take another curate.fold than {config.fold} or more than {config.folds} curate.folds"
            if config.folds
            else ""
        )
        raise DataError(
            f"no training pair is left of {int(selection.kept.sum())} kept ones ({others}); lower curate.valid_share ({config.valid_share:g}) or test_share ({config.test_share:g}){folds}, narrow curate.holdout_pattern, or bring more pairs"
        )
