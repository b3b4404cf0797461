"""What other thresholds would keep: a scan of stored scores, no picture is opened.

Of every pair stay in memory what ``selection.select`` keeps of it and a byte per threshold.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import ValidationError

from dalle_model.config import CurateConfig
from dalle_model.curation.rules import PRESETS, Check, checks
from dalle_model.curation.selection import DUPLICATE, KIN, PLACEHOLDER, Columns, survivors

FACTORS = (0.5, 0.8, 1.0, 1.25, 2.0)
# Of thresholds that are off or zero, to which factors say nothing: these and the present one.
_ALTERNATIVES = {
    "min_side_px": (64, 128, 200, 256),
    "min_caption_words": (0, 2, 3, 5),
    "min_caption_chars": (0, 2, 5, 10),
    "max_word_repetition": (0.5, 0.7, 0.9),
    "max_boilerplate": (0.25, 0.5, 0.75),
    "max_mined_boilerplate": (0.25, 0.5, 0.75, 0.99),
    "max_foreign": (0.5, 0.7, 0.9),
    "max_profanity": (0, 1, 2, 1000),
    "max_policy": (0, 1, 2, 1000),
    "max_personal_data": (0, 1, 2, 1000),
    "min_entropy_bits": (0.1, 0.5, 1, 2),
    "max_blur": (0.4, 0.5, 0.6, 0.7, 0.8),
    "max_text_share": (0.01, 0.02, 0.05, 0.1),
    "max_watermark": (0.3, 0.5, 0.7),
    "max_nsfw": (0.2, 0.5, 0.8),
    "min_agreement": (-0.5, 0.0, 0.2, 0.25, 0.28, 0.5, 1.0),
}
_OF_SETS = ((DUPLICATE, (0, 1)), (PLACEHOLDER, (0, 2, 4, 8, 16, 32)), (KIN, (0, 1, 2, 4, 8)))


@dataclass(frozen=True, slots=True)
class Move:
    """One threshold moved alone, the others as they are."""

    reason: str
    knob: str
    threshold: float
    kept: int
    gained: int  # rows that come in
    lost: int  # rows that go


def what_if(
    features: Iterable[pa.Table],
    config: CurateConfig,
    factors: tuple[float, ...] = FACTORS,
    removed: Callable[[pa.Table], npt.NDArray[np.bool_]] | None = None,
) -> list[Move]:
    """Rows kept, gained and lost for each threshold times each factor, in the order of the funnel.

    ``features`` are tables of ``judging.judged``; ``removed`` says which of their rows somebody withdrew. The figures
    are those of a curation with that threshold, duplicates and placeholders judged anew, unless ``not_judged`` names
    what is left out. Thresholds that are off are tried at usual values; those that the config does not allow, or that
    are looser than its preset's and so would not count, are left out.
    """
    if not_judged(config):
        config = config.model_copy(update={"max_pairs_per_cluster": 0})
    moved = [_moved(test, config, factors) for test in checks(config)]
    columns = Columns()
    passes: list[list[npt.NDArray[np.uint8]]] = [[] for _ in moved]  # how many of the options each row passes
    gone = []
    for table in features:
        columns.add(table, table["caption"].to_pylist())
        gone.append(removed(table) if removed else np.zeros(table.num_rows, bool))
        for options, counts in zip(moved, passes, strict=True):
            scores = np.asarray(table[options[0].rule].to_numpy(), np.float64)
            counts.append(np.sum([option.passed(scores) for option in options], axis=0, dtype=np.uint8))
    arrays = columns.arrays()
    levels = [np.concatenate([np.zeros(0, np.uint8), *counts]) for counts in passes]
    present = [
        _passed(options, level, options.index(test))
        for options, level, test in zip(moved, levels, checks(config), strict=True)
    ]
    failures = np.sum([~passed for passed in present], axis=0) + np.concatenate([np.zeros(0, bool), *gone])
    alive = failures == 0
    kept = survivors(alive, arrays, config)
    moves = []
    for options, level, passed in zip(moved, levels, present, strict=True):
        others = failures - ~passed == 0
        for number, option in enumerate(options):
            let = others & _passed(options, level, number)
            after = kept if np.array_equal(let, alive) else survivors(let, arrays, config)
            moves.append(_move(option, bound_of(option), kept, after))
    for test, values in _OF_SETS:
        if test is KIN and (_embedded(config) or config.exclude):
            continue
        for value in sorted({*map(float, values), float(getattr(config, test.knob))}):
            other = config.model_copy(update={test.knob: int(value)})
            moves.append(_move(test, value, kept, survivors(alive, arrays, other)))
    return moves


def not_judged(config: CurateConfig) -> str:
    """What ``what_if`` leaves out, for a person: it opens no picture and has no embeddings. Empty = nothing."""
    left = ["what is near the sets of curate.exclude"] if config.exclude else []
    if config.max_pairs_per_cluster and (_embedded(config) or config.exclude):
        left.append("curate.max_pairs_per_cluster")
    return " and ".join(left)


def _embedded(config: CurateConfig) -> bool:
    return bool(config.embedding_model) or config.embedding != "none"


def bound_of(test: Check) -> float:
    """The threshold itself."""
    return test.low if math.isfinite(test.low) else test.high


def _passed(options: Sequence[Check], level: npt.NDArray[np.uint8], number: int) -> npt.NDArray[np.bool_]:
    """Which rows pass an option. They rise, so who passes k of them passes the k lowest bounds below, or highest above."""
    low = math.isfinite(options[number].low)
    return np.greater(level, number) if low else np.greater_equal(level, len(options) - number)


def _move(test: Check, value: float, kept: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]) -> Move:
    gained, lost = int((after & ~kept).sum()), int((kept & ~after).sum())
    return Move(test.reason, test.knob, value, int(after.sum()), gained, lost)


def _moved(test: Check, config: CurateConfig, factors: tuple[float, ...]) -> list[Check]:
    """The check at other thresholds, in ascending order, its present one among them."""
    bound, low = bound_of(test), math.isfinite(test.low)
    whole = CurateConfig.model_fields[test.knob].annotation is int
    values = [bound * factor for factor in factors]
    if test.knob in _ALTERNATIVES and bound in (-1000.0, 0.0, 1.0, 1000.0):
        values = list(map(float, _ALTERNATIVES[test.knob]))
    # As they are shown: who sets what was printed gets what was counted.
    rounded = {float(round(value)) if whole else float(f"{value:.4g}") for value in values}
    limit = PRESETS[config.preset].get(test.knob, -math.inf if low else math.inf)
    usable = {v for v in rounded if (v >= limit if low else v <= limit) and _allowed(test.knob, v)}
    return [replace(test, low=value) if low else replace(test, high=value) for value in sorted({bound, *usable})]


def _allowed(knob: str, value: float) -> bool:
    try:
        CurateConfig.model_validate({knob: value})
    except ValidationError:
        return False
    return True
