"""Runs of tokens and of words that a training set has: against brute force, and what patching together costs."""

import numpy as np
import pytest

from dalle_model.errors import DataError
from dalle_model.ngrams import grid_runs_known, word_runs_known


def test_runs_at_the_same_place_are_those_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 3, (6, 20)), rng.integers(0, 3, (700, 20))
    for n in (1, 5, 9):
        known = [{tuple(row[i : i + n]) for row in b} for i in range(21 - n)]
        expected = [np.mean([tuple(row[i : i + n]) in known[i] for i in range(21 - n)]) for row in a]
        assert grid_runs_known(a, b, n) == pytest.approx(expected)


def test_a_collage_of_training_pictures_is_told_from_a_new_picture() -> None:
    """No single training picture is near to it; the nearest one differs in three quarters of the tokens."""
    rng = np.random.default_rng(1)
    training, fresh = rng.integers(0, 256, (100, 64)), rng.integers(0, 256, (5, 64))
    collage = np.stack(
        [np.concatenate([training[4 * i + q, 16 * q : 16 * q + 16] for q in range(4)]) for i in range(5)]
    )
    assert (grid_runs_known(collage, training, 8) == pytest.approx(36 / 57)) and not grid_runs_known(
        fresh, training, 8
    ).any()
    assert (grid_runs_known(training[:3], training, 8) == 1.0).all()
    moved = np.roll(training[:3], 16, axis=1)
    assert not grid_runs_known(moved, training, 8).any(), "at another place it is another picture"


def test_word_runs_know_no_capitals_and_nothing_of_texts_that_are_too_short() -> None:
    known = ["a red circle above a small green square", "two blue stars"]
    assert word_runs_known(["A red circle above two blue stars", "Red", "", known[0]], known, 3) == [
        0.6,
        None,
        None,
        1.0,
    ]


def test_runs_that_cannot_be_are_refused() -> None:
    with pytest.raises(DataError, match="no runs of 9"):
        grid_runs_known(np.zeros((2, 8)), np.zeros((3, 8)), 9)
