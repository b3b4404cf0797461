"""Distances against closed forms and brute force; they grow with damage."""

import numpy as np
import pytest

from dalle_model.distances import (
    Neighbourhood,
    frechet,
    mean_distance,
    sliced_wasserstein,
    squared_distances,
)
from dalle_model.errors import DataError


def normal(seed, n, d=4):
    return np.random.default_rng(seed).normal(size=(n, d))


def values(real, made, k, *names):
    near = Neighbourhood(real, made, k)
    return [near.values(name) for name in names]


def whitened(seed, n, d):
    """Rows whose mean is exactly 0 and whose covariance is exactly 1."""
    x = normal(seed, n, d)
    x -= x.mean(0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T


def test_frechet_is_the_closed_form_of_two_gaussians():
    a, b = whitened(0, 50, 3), whitened(1, 70, 3)
    root_a, root_b = np.diag([1.0, 2.0, 3.0]), np.diag([2.0, 2.0, 5.0])
    turn, _ = np.linalg.qr(normal(2, 3, 3))  # a common rotation keeps the covariances commuting, nothing more
    expected = 9.0 + 16.0 + 1.0 + 4.0  # |mean|^2 + sum of (root of eigenvalue differences)^2
    assert frechet(a @ root_a @ turn, (b @ root_b) @ turn + [3.0, 4.0, 0.0]) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_covariances_that_do_not_commute():
    a, b = whitened(0, 50, 2) @ np.diag([1.0, 3.0]), whitened(1, 50, 2) @ np.array([[2.0, 1.0], [0.0, 1.0]])
    product = np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)
    # In two dimensions tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)).
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.cov(a.T).trace() + np.cov(b.T).trace() - 2 * root
    assert frechet(a, b) == pytest.approx(expected, rel=1e-9)


def test_a_set_is_at_no_distance_from_itself_even_with_fewer_pictures_than_features():
    x = normal(0, 5, 30)
    assert frechet(x, x) == pytest.approx(0, abs=1e-6)
    assert sliced_wasserstein(x, x) == 0.0


def test_sliced_wasserstein_of_one_dimension_is_the_sorted_difference():
    a, b = normal(0, 40, 1), normal(1, 40, 1) + 2
    assert sliced_wasserstein(a, b) == pytest.approx(np.sqrt(((np.sort(a, 0) - np.sort(b, 0)) ** 2).mean()))


def test_sliced_wasserstein_of_a_shift_is_its_length_over_root_of_the_width():
    a = normal(0, 30, 6)
    shift = np.array([3.0, 0, 0, 4.0, 0, 0])
    assert sliced_wasserstein(a, a + shift, num_projections=20_000) == pytest.approx(5 / np.sqrt(6), rel=0.02)


def test_sliced_wasserstein_couples_sets_of_different_size_by_quantiles():
    a, b = normal(0, 6, 3), normal(1, 4, 3)
    assert sliced_wasserstein(a, b) == pytest.approx(sliced_wasserstein(np.repeat(a, 2, 0), np.repeat(b, 3, 0)))
    assert sliced_wasserstein(a, b) == sliced_wasserstein(b, a) == sliced_wasserstein(a, b)


def test_squared_distances_are_those_of_brute_force_and_zero_for_copies():
    a, b = normal(0, 30, 5) + 1000, normal(1, 20, 5) + 1000
    b[3] = a[7]
    assert squared_distances(a, b) == pytest.approx(((a[:, None] - b[None]) ** 2).sum(-1), abs=1e-8)
    assert squared_distances(a, b)[7, 3] == 0.0


def test_precision_recall_density_and_coverage_are_those_of_brute_force():
    real, made = normal(0, 40, 3), normal(1, 30, 3) * 1.3
    far = np.sqrt(((real[:, None] - made[None]) ** 2).sum(-1))

    def radius(x, k):
        return np.sort(np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1)), axis=1)[:, k]

    precision, recall = values(real, made, 3, "precision", "recall")
    assert (precision == [any(far[i, j] <= radius(real, 3)[i] for i in range(40)) for j in range(30)]).all()
    assert (recall == [any(far[i, j] <= radius(made, 3)[j] for j in range(30)) for i in range(40)]).all()
    density, coverage = values(real, made, 5, "density", "coverage")
    assert density == pytest.approx([sum(far[i, j] < radius(real, 5)[i] for i in range(40)) / 5 for j in range(30)])
    assert (coverage == [any(far[i, j] < radius(real, 5)[i] for j in range(30)) for i in range(40)]).all()


def test_two_samples_of_one_distribution_have_density_one_and_the_known_coverage():
    density, coverage = values(normal(0, 800, 3), normal(1, 800, 3), 5, "density", "coverage")
    assert density.mean() == pytest.approx(1.0, abs=0.05)
    assert coverage.mean() == pytest.approx(1 - 2**-5, abs=0.02)  # equation 9 of the paper, large sets


def test_dropped_modes_cost_recall_and_coverage_and_not_precision():
    centres = np.array([[0.0, 0], [20, 0], [0, 20], [20, 20]])
    real = np.concatenate([normal(i, 50, 2) + c for i, c in enumerate(centres)])
    made = np.concatenate([normal(9 + i, 100, 2) + c for i, c in enumerate(centres[:2])])
    precision, recall = values(real, made, 3, "precision", "recall")
    (coverage,) = values(real, made, 5, "coverage")
    assert precision.mean() > 0.9 and recall.mean() < 0.55 and coverage.mean() < 0.55


@pytest.mark.parametrize("distance", [frechet, sliced_wasserstein])
def test_distances_grow_with_noise_shift_and_mixing(distance):
    base, other, stranger = normal(0, 300), normal(1, 300), normal(2, 300) + 3
    for damaged in (
        lambda t: other + normal(3, 300) * t,
        lambda t: other + t,
        lambda t: np.concatenate([other[int(300 * t / 3) :], stranger[: int(300 * t / 3)]]),
    ):
        figures = [distance(base, damaged(t)) for t in (0.0, 0.5, 1.0, 2.0, 3.0)]
        assert figures == sorted(figures) and figures[-1] > 2 * figures[0]


def test_mean_distance_is_over_all_pairs():
    x = np.array([[0.0], [1.0], [10.0], [14.0]])
    assert mean_distance(x) == pytest.approx((1 + 10 + 14 + 9 + 13 + 4) / 6)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: frechet(normal(0, 5, 3), normal(0, 5, 4)), r"\[5, 3\], \[5, 4\]; expected"),
        (lambda: frechet(normal(0, 1), normal(0, 5)), "two pictures at least"),
        (lambda: sliced_wasserstein(normal(0, 3) * np.nan, normal(0, 3)), "not finite"),
        (lambda: Neighbourhood(normal(0, 5), normal(1, 5), 5), "measure at least 6"),
        (lambda: Neighbourhood(normal(0, 9), normal(1, 8), 5).interval("recall"), "sets of equal number"),
    ],
)
def test_bad_features_are_named(call, match):
    with pytest.raises(DataError, match=match):
        call()
