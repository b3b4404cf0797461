"""Nominal 95 % intervals hold the truth and the figure itself, in repeated trials whose truth is known."""

import math

import numpy as np
import pytest

from dalle_model.distances import Neighbourhood, frechet, sliced_wasserstein
from dalle_model.errors import DataError
from dalle_model.intervals import (
    distance_interval,
    jackknife,
    left_out,
    mean_interval,
    set_interval,
    student_95,
    wilson_interval,
)


def normal(seed, n, d=4):
    return np.random.default_rng(seed).normal(size=(n, d))


def two_sets(seed, n, d, *, paired, scale=1.0, shift=0.0):
    """Standard normal rows, and rows of scale times that plus a shift; paired ones are correlated by 0.6."""
    a, b = normal(seed, n, d), normal(10_000 + seed, n, d)
    b = (0.6 * a + 0.8 * b if paired else b) * scale
    b[:, 0] += shift
    return a, b


def held(truth, trials):
    """(share of (value, (low, high)) whose interval holds the truth, mean value); each holds its own value."""
    assert all(low <= value <= high for value, (low, high) in trials)
    return np.mean([low <= truth <= high for _, (low, high) in trials]), np.mean([value for value, _ in trials])


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1.0, 1.0), (1.5, 1.0)])
def test_a_frechet_distance_between_known_gaussians(paired, scale, shift):
    d = 3
    truth = shift**2 + d * (scale - 1) ** 2
    trials = [
        distance_interval(frechet, *two_sets(s, 24, d, paired=paired, scale=scale, shift=shift)) for s in range(100)
    ]
    share, mean = held(truth, trials)
    assert share >= 0.90
    plain = np.mean([frechet(*two_sets(s, 24, d, paired=paired, scale=scale, shift=shift)) for s in range(100)])
    assert abs(mean - truth) < abs(plain - truth), "less biased than the plain figure"


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_a_sliced_wasserstein_distance_of_a_shift(shift):
    def sliced(a, b):
        return sliced_wasserstein(a, b, num_projections=64)

    directions = np.random.Generator(np.random.Philox(0)).normal(size=(3, 64))
    directions /= np.linalg.norm(directions, axis=0)
    truth = shift * math.sqrt((directions[0] ** 2).mean())  # of these very directions
    trials = [distance_interval(sliced, *two_sets(s, 24, 3, paired=False, shift=shift), root=True) for s in range(100)]
    assert held(truth, trials)[0] >= 0.90


def test_figures_of_neighbours_of_two_samples_of_one_distribution():
    n, k = 30, 5
    covered = 1 - math.prod((n - i) / (2 * n - i) for i in range(1, k + 1))  # Naeem et al. 2020, equation 8
    trials = {"density": [], "coverage": [], "precision": [], "recall": []}
    for seed in range(100):
        near = Neighbourhood(*two_sets(seed, n, 3, paired=False), k)
        for name, each in trials.items():
            each.append((near.values(name).mean(), near.interval(name)))
    # Precision and recall have no closed form: the mean of the trials is what is expected.
    for name, each in trials.items():
        truth = {"density": 1.0, "coverage": covered}.get(name, np.mean([value for value, _ in each]))
        share, mean = held(truth, each)
        assert share >= 0.90 and mean == pytest.approx(truth, abs=0.03), name


def test_a_naive_bootstrap_holds_neither_the_truth_nor_the_figure():
    """The reason for the jackknife: a set with duplicates lies further from another one than the set itself."""
    missed_truth = missed_figure = 0
    for seed in range(10):
        a, b = two_sets(seed, 24, 6, paired=False)
        rng = np.random.default_rng(seed)
        draws = rng.integers(0, 24, (60, 2, 24))
        low = np.quantile([frechet(a[rows_a], b[rows_b]) for rows_a, rows_b in draws], 0.025)
        missed_truth += low > 0
        missed_figure += low > frechet(a, b)
        assert distance_interval(frechet, a, b)[1][0] == 0.0
    assert missed_truth == 10 and missed_figure >= 3


@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.97])
def test_a_share_of_bernoulli_trials(p):
    rng = np.random.default_rng(0)
    trials = []
    for _ in range(400):
        values = rng.random(40) < p
        trials.append((values.mean(), mean_interval(values)))
    assert held(p, trials)[0] >= 0.90


@pytest.mark.parametrize("n", [8, 40])
def test_a_mean_of_few_skewed_values(n):
    rng = np.random.default_rng(1)
    trials = []
    for _ in range(200):
        values = rng.gamma(4.0, size=n)
        trials.append((values.mean(), mean_interval(values, resamples=400)))
    assert held(4.0, trials)[0] >= 0.90


def test_wilsons_interval_is_the_published_one_and_never_without_width():
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    low, high = mean_interval(np.zeros(20))
    assert low == 0.0 and high == pytest.approx(0.1611, abs=1e-4)
    assert mean_interval(np.ones(20)) == pytest.approx((1 - high, 1.0)) and mean_interval(np.ones(20))[1] == 1.0


def test_students_quantiles_are_those_of_the_table():
    for freedom, value in ((1, 12.7062), (2, 4.3027), (3, 3.1824), (5, 2.5706), (10, 2.2281), (39, 2.0227)):
        assert student_95(freedom) == pytest.approx(value, rel=0.005)


def test_the_jackknife_of_a_mean_is_the_textbook_variance_and_takes_off_the_bias_of_a_plain_variance():
    x = normal(0, 23, 1)[:, 0]
    one_by_one = [np.delete(x, i).mean() for i in range(23)]
    value, variance = jackknife(x.mean(), one_by_one, [1] * 23)
    assert value == pytest.approx(x.mean()) and variance == pytest.approx(x.var(ddof=1) / 23)
    corrected, _ = jackknife(x.var(), [np.delete(x, i).var() for i in range(23)], [1] * 23)
    assert corrected == pytest.approx(x.var(ddof=1))
    groups = left_out(23, groups=5)
    assert sorted(np.concatenate(groups)) == list(range(23)) and {len(rows) for rows in groups} == {4, 5}
    value, _ = jackknife(x.mean(), [np.delete(x, rows).mean() for rows in groups], [len(rows) for rows in groups])
    assert value == pytest.approx(x.mean())


def test_figures_are_the_same_in_every_run_and_stay_within_what_is_possible():
    a, b = two_sets(0, 20, 4, paired=True)
    assert distance_interval(frechet, a, b) == distance_interval(frechet, a, b)
    assert mean_interval([0, 0.5, 1]) == mean_interval([0, 0.5, 1])
    assert set_interval(0.9, [0.5, 1.0, 0.9], [1, 1, 1], top=1.0)[1] == 1.0
    assert distance_interval(frechet, a, a) == (pytest.approx(0, abs=1e-9), (0.0, pytest.approx(0, abs=1e-9)))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: distance_interval(frechet, normal(0, 5), normal(1, 6)), "sets of equal number"),
        (lambda: distance_interval(frechet, normal(0, 2), normal(1, 2)), "too few"),
        (lambda: mean_interval([]), "no values"),
    ],
)
def test_too_little_to_tell_is_named(call, match):
    with pytest.raises(DataError, match=match):
        call()
