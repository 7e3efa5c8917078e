"""Metrics against SciPy, closed forms and definitions by loops."""

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from jgen.errors import UserError
from jgen.metrics import divergences as dv
from jgen.metrics.frechet import Statistics, bootstrap_interval, frechet_distance, statistics
from jgen.metrics.kernel import inception_score, kernel_distance
from jgen.metrics.neighbours import memorisation, neighbour_scores

RNG = np.random.default_rng(0)


def by_scipy(a, b):
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    return np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2 * np.real(root))


def test_frechet_distance_against_scipy_and_closed_forms():
    x, y = RNG.standard_normal((300, 12)) @ RNG.standard_normal((12, 12)), RNG.standard_normal((200, 12)) + 0.5
    a, b = statistics(x), statistics(y)
    np.testing.assert_allclose(a.covariance, np.cov(x.T), rtol=1e-10)
    np.testing.assert_allclose(frechet_distance(a, b), by_scipy(a, b), rtol=1e-8)
    np.testing.assert_allclose(frechet_distance(a, b), frechet_distance(b, a), rtol=1e-10)
    assert frechet_distance(a, a) < 1e-9
    # Gaussians with the same axes: |m1 - m2|^2 + sum (s1 - s2)^2.
    s1, s2, m = np.array([1.0, 2.0, 0.0]), np.array([3.0, 0.5, 1.0]), np.array([0.0, 1.0, 2.0])
    found = frechet_distance(Statistics(9, 0 * m, np.diag(s1**2)), Statistics(9, m, np.diag(s2**2)))
    np.testing.assert_allclose(found, np.sum(m**2) + np.sum((s1 - s2) ** 2), rtol=1e-12)


def test_frechet_distance_of_fewer_images_than_features():
    """Rank 4 in 30 dimensions, along known axes: the closed form again, where a matrix root fails."""
    x = np.zeros((5, 30))
    x[:, :4] = RNG.standard_normal((5, 4))
    a, b = statistics(x), statistics(2 * x + 1)
    expected = np.sum((x.mean(0) + 1) ** 2) + np.trace(a.covariance)
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-7)


def test_bootstrap_interval_covers_repeated_draws():
    """The spread of the distance over new draws of 200 is about that over draws again from one of them."""
    real = statistics(RNG.standard_normal((5000, 5)) + 1.0)
    draws = [frechet_distance(statistics(RNG.standard_normal((200, 5))), real) for _ in range(100)]
    low, high = bootstrap_interval(RNG.standard_normal((200, 5)), real)
    width = np.quantile(draws, 0.975) - np.quantile(draws, 0.025)
    assert 0.6 < (high - low) / width < 1.6
    assert low < np.quantile(draws, 0.9) and high > np.quantile(draws, 0.1)


def test_kernel_distance_is_unbiased_and_its_error_is_right():
    """Of one distribution it is zero on average, as often above as below; of others it is the double sum."""
    x, y = RNG.standard_normal((40, 6)), RNG.standard_normal((30, 6)) + 0.3
    kernel = lambda a, b: (a @ b / 6 + 1) ** 3
    within = sum(np.mean([kernel(p, q) for i, p in enumerate(z) for j, q in enumerate(z) if i != j]) for z in (x, y))
    between = np.mean([kernel(p, q) for p in x for q in y])
    np.testing.assert_allclose(kernel_distance(x, y)[0], within - 2 * between, rtol=1e-9)
    some = np.random.default_rng(1)
    parts = x[some.permutation(40)[:20]], y[some.permutation(30)[:20]]
    np.testing.assert_allclose(kernel_distance(x, y, most=20, seed=1), kernel_distance(*parts), rtol=1e-9)

    values, errors = np.transpose([kernel_distance(*RNG.standard_normal((2, 100, 6))) for _ in range(400)])
    assert abs(values.mean()) < 3 * values.std() / 20 and 0.6 < values.std() / errors.mean() < 0.9  # 1 / sqrt 2
    draw = lambda: (RNG.standard_normal((150, 6)), 1.2 * RNG.standard_normal((100, 6)) + 0.5)
    values, errors = np.transpose([kernel_distance(*draw()) for _ in range(400)])
    assert 0.85 < errors.mean() / values.std() < 1.15


def test_inception_score_of_known_classifiers():
    sure = np.log(np.eye(10)[np.arange(1000) % 10] + 1e-30)
    assert inception_score(sure)[0] == pytest.approx(10, rel=1e-6)
    assert inception_score(np.zeros((100, 10)))[0] == pytest.approx(1)
    assert inception_score(np.tile(sure[:1], (100, 1)))[0] == pytest.approx(1)


def test_neighbour_scores_by_their_definitions():
    x, y, k, kd = RNG.standard_normal((30, 3)), RNG.standard_normal((40, 3)) * 1.3, 3, 5
    ball = lambda z, i, n: np.sort(np.linalg.norm(z - z[i], axis=1))[n]  # the 0-th is itself
    inside = lambda p, z, i, n: np.linalg.norm(p - z[i]) <= ball(z, i, n)
    precision = np.mean([any(inside(p, y, i, k) for i in range(40)) for p in x])
    recall = np.mean([any(inside(q, x, i, k) for i in range(30)) for q in y])
    density = np.mean([sum(inside(p, y, i, kd) for i in range(40)) / kd for p in x])
    coverage = np.mean([any(inside(p, y, i, kd) for p in x) for i in range(40)])
    np.testing.assert_allclose(neighbour_scores(x, y, k, kd), (precision, recall, density, coverage), rtol=1e-12)
    far = neighbour_scores(x + 100, y, k, kd)
    assert far == (0, 0, 0, 0)


def test_memorisation_tells_copies_from_draws():
    train, test, fake = RNG.standard_normal((3, 300, 4))
    assert memorisation(train[:200] + 1e-3, train, test)["ratio"] > 0.95
    assert 0.4 < memorisation(fake, train, test)["ratio"] < 0.6


def test_divergences_of_tables():
    p, q = RNG.dirichlet(np.ones(6)), RNG.dirichlet(np.ones(6))
    places = RNG.standard_normal(6)
    np.testing.assert_allclose(dv.kl(p, q), scipy.stats.entropy(p, q), rtol=1e-10)
    from scipy.spatial.distance import jensenshannon

    np.testing.assert_allclose(dv.jensen_shannon(p, q), jensenshannon(p, q) ** 2, rtol=1e-10)
    np.testing.assert_allclose(dv.total_variation(p, q), np.abs(p - q).sum() / 2)
    np.testing.assert_allclose(
        dv.wasserstein1(p, q, places), scipy.stats.wasserstein_distance(places, places, p, q), rtol=1e-10
    )
    assert dv.kl([0.5, 0.5], [1.0, 0.0]) == np.inf and dv.kl([1.0, 0.0], [0.5, 0.5]) == pytest.approx(np.log(2))


def test_divergences_of_gaussians_from_samples():
    n, m = 40_000, 0.7
    x, y = RNG.standard_normal(n), RNG.standard_normal(n) + m
    log_p, log_q = scipy.stats.norm(0, 1).logpdf, scipy.stats.norm(m, 1).logpdf
    value, error = dv.kl_estimate(log_p(x), log_q(x))
    assert abs(value - m**2 / 2) < 5 * error and error < 0.01
    value, error = dv.total_variation_estimate(log_p(x), log_q(x))
    assert abs(value - (2 * scipy.stats.norm.cdf(m / 2) - 1)) < 5 * error
    grid = np.linspace(-10, 10, 20_001)
    p, q = (np.exp(f(grid)) / np.exp(f(grid)).sum() for f in (log_p, log_q))
    value, error = dv.jensen_shannon_estimate(log_p(x), log_q(x), log_p(y), log_q(y))
    assert abs(value - dv.jensen_shannon(p, q)) < 5 * error
    assert dv.wasserstein1_estimate(x, y) == pytest.approx(scipy.stats.wasserstein_distance(x, y), rel=1e-9)
    assert dv.wasserstein1_estimate(x, y) == pytest.approx(m, abs=0.03)
    # E exp(-(x - y)^2 / 2) of Gaussians whose difference has mean d and variance 2: exp(-d^2 / 6) / sqrt(3).
    expected = 2 / np.sqrt(3) * (1 - np.exp(-(m**2) / 6))
    values = [dv.mmd2_estimate(a[:, None], b[:, None], 1.0) for a, b in zip(x.reshape(40, -1), y.reshape(40, -1))]
    assert abs(np.mean(values) - expected) < 5 * np.std(values) / np.sqrt(40)


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: statistics(np.zeros((1, 3))), "1 images"),
        (lambda: statistics(np.zeros((4, 3, 3))), "(images, width)"),
        (lambda: statistics(np.full((4, 3), np.nan)), "not finite"),
        (lambda: frechet_distance(statistics(np.zeros((4, 3))), statistics(np.zeros((4, 2)))), "wide"),
        (lambda: kernel_distance(np.zeros((3, 3)), np.zeros((9, 3))), "at least 4"),
        (lambda: inception_score(np.zeros((5, 10))), "at least 10"),
        (lambda: neighbour_scores(np.zeros((5, 3)), np.zeros((9, 3))), "at least 6"),
        (lambda: dv.kl([0.5, 0.6], [0.5, 0.5]), "sums to"),
        (lambda: dv.kl([0.5, 0.5], [1.0]), "same outcomes"),
    ],
)
def test_bad_input_is_one_line(call, words):
    with pytest.raises(UserError) as caught:
        call()
    assert words in str(caught.value) and "\n" not in str(caught.value)
