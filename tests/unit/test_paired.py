"""Paired comparison: it finds what is there, stays silent where nothing is, and is exact where it can be."""

import numpy as np
import pytest

from dalle_model.errors import DataError
from dalle_model.paired import compare_paired, pair_up, sign_test


def test_the_sign_test_is_that_of_the_textbook() -> None:
    assert sign_test(0, 0) == sign_test(5, 5) == 1.0
    assert sign_test(0, 6) == sign_test(6, 0) == pytest.approx(2 / 64)
    assert sign_test(9, 1) == pytest.approx(2 * 11 / 1024)


def test_without_a_difference_a_winner_is_declared_in_at_most_one_of_twenty() -> None:
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(300):
        hard = rng.random(60)
        first, second = rng.random(60) < hard, rng.random(60) < hard
        found += compare_paired(first, second, "higher", resamples=300).verdict != "no difference shown"
    assert found / 300 <= 0.05


def test_pairing_shows_a_small_gain_that_separate_intervals_hide() -> None:
    rng = np.random.default_rng(1)
    hard = rng.normal(0, 10, 80)
    first, second = hard + rng.normal(0, 0.3, 80), hard + 0.3 + rng.normal(0, 0.3, 80)
    told = compare_paired(first, second, "higher")
    assert told.verdict == "better" and told.low < 0.3 < told.high
    assert told.difference == pytest.approx(told.second - told.first)
    assert compare_paired(first, second, "lower").verdict == "worse"
    assert compare_paired(second, first, "higher").verdict == "worse"


def test_the_interval_covers_the_true_difference() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for seed in range(300):
        first = rng.normal(0, 1, 80)
        told = compare_paired(first, first + 0.2 + rng.normal(0, 1, 80), "higher", resamples=300, seed=seed)
        covered += told.low <= 0.2 <= told.high
    assert 0.90 <= covered / 300 <= 0.985


def test_only_what_both_have_is_paired_and_too_little_is_refused() -> None:
    first, second = pair_up({"a": 1.0, "b": 2.0, "z": 3.0}, {"b": 5.0, "a": 4.0, "q": 6.0})
    assert first.tolist() == [1.0, 2.0] and second.tolist() == [4.0, 5.0]
    with pytest.raises(DataError, match="2 prompts in common are too few"):
        compare_paired(first, second, "higher")
    with pytest.raises(DataError, match="do not pair up"):
        compare_paired([1.0] * 9, [1.0] * 8, "higher")
    with pytest.raises(DataError, match="not finite"):
        compare_paired([np.nan] * 9, [1.0] * 9, "higher")
