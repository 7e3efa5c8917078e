"""Metrics against SciPy, closed forms and definitions by loops."""

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from jgen.errors import UserError
from jgen.metrics import divergences as dv
from jgen.metrics.bootstrap import bootstrap
from jgen.metrics.frechet import Statistics, distance_of_features, distance_to, frechet_distance, statistics
from jgen.metrics.kernel import inception_score, kernel_distance
from jgen.metrics.neighbours import below, memorisation, neighbour_scores, neighbours

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
    distance = frechet_distance(Statistics(9, 0 * m, np.diag(s1**2)), Statistics(9, m, np.diag(s2**2)))
    np.testing.assert_allclose(distance, np.sum(m**2) + np.sum((s1 - s2) ** 2), rtol=1e-12)


def test_frechet_distance_of_fewer_images_than_features():
    """Rank 4 in 30 dimensions, along known axes: the closed form again, where a matrix root fails."""
    x = np.zeros((5, 30))
    x[:, :4] = RNG.standard_normal((5, 4))
    a, b = statistics(x), statistics(2 * x + 1)
    expected = np.sum((x.mean(0) + 1) ** 2) + np.trace(a.covariance)
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-7)


@pytest.mark.parametrize("n", [5, 20, 29, 30, 60])
def test_frechet_distance_of_unlike_subspaces(n):
    """tr (S1^1/2 S2 S1^1/2)^1/2 is the sum of the singular values of X Y^T, over both numbers of images less one."""
    x, y = RNG.standard_normal((8, 30)) * 3, RNG.standard_normal((n, 30)) + 1

    def centred(z):
        return (z - z.mean(0)) / np.sqrt(len(z) - 1)

    cross = np.linalg.svd(centred(x) @ centred(y).T, compute_uv=False).sum()
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.sum(centred(x) ** 2) + np.sum(centred(y) ** 2) - 2 * cross
    np.testing.assert_allclose(frechet_distance(statistics(x), statistics(y)), expected, rtol=1e-6)
    np.testing.assert_allclose(distance_of_features(statistics(x))(y), expected, rtol=1e-6)


def test_bootstrap_intervals_are_as_wide_as_repeated_draws_say():
    """The spread over new draws of 200 is about that over draws again from one of them."""
    to_real = distance_to(statistics(RNG.standard_normal((5000, 5)) + 1.0))

    def distance(x):
        return to_real(statistics(x))

    values = [distance(RNG.standard_normal((200, 5))) for _ in range(300)]
    intervals = [bootstrap(distance, RNG.standard_normal((200, 5))) for _ in range(20)]
    width = np.mean([high - low for _, low, high in intervals]) / (2 * 1.96)
    assert 0.85 < width / np.std(values) < 1.15
    covered = [low < np.mean(values) < high for _, low, high in intervals]
    assert np.mean(covered) > 0.75  # 0.95 of them, or 15 of 20 in all but a few of ten thousand cases
    # Of a part, its standard error is known; what cannot be exceeded is not.
    value, low, high = bootstrap(np.mean, np.arange(400) < 40, rounds=2000)
    assert value == 0.1 and (high - low) / 2 == pytest.approx(1.96 * np.sqrt(0.1 * 0.9 / 400), rel=0.1)
    value, low, high = bootstrap(np.mean, np.arange(10) < 9, most=1.0)
    assert value == 0.9 and high == 1.0 and 0 <= low < 0.8
    # Two samples are drawn again apart from each other.
    x, y = RNG.standard_normal(400), RNG.standard_normal(100)
    _, low, high = bootstrap(lambda a, b: 9 + a.mean() - b.mean(), x, y, rounds=2000)
    wanted = 1.96 * np.sqrt(x.var() / 400 + y.var() / 100)
    assert (high - low) / 2 == pytest.approx(wanted, rel=0.1)


def of_ten_classes(rng):
    """Twenty samples of each of ten far apart."""
    classes = np.repeat(np.arange(10), 20)
    return classes, 4 * np.random.default_rng(5).standard_normal((10, 3))[classes] + rng.standard_normal((200, 3))


@pytest.mark.slow
def test_intervals_of_balanced_samples_are_those_within_classes():
    """The numbers of the classes are given: drawn again over all, they would vary, and widen every interval."""
    rng = np.random.default_rng(11)
    real = of_ten_classes(rng)[1] + 1.0
    to_real = distance_to(statistics(real))

    def distance(x):
        return to_real(statistics(x))

    def half(interval):
        return (interval.high - interval.low) / (2 * 1.96)

    draws = [of_ten_classes(rng) for _ in range(300)]
    spread = np.std([distance(x) for _, x in draws])
    within = np.mean([half(bootstrap(distance, x, classes=classes)) for classes, x in draws[:20]])
    over_all = np.mean([half(bootstrap(distance, x)) for _, x in draws[:20]])
    assert 0.85 < within / spread < 1.15 < 2 < over_all / spread
    # The kernel distance's error is of both kinds of images: of many real ones, whose classes are drawn, less.
    means = 4 * np.random.default_rng(5).standard_normal((10, 3))

    def of_any_class(num):
        return means[rng.integers(0, 10, num)] + rng.standard_normal((num, 3))

    pairs = [(of_ten_classes(rng), 1.0 + of_any_class(1500)) for _ in range(60)]
    values, errors = np.transpose([kernel_distance(x, y, classes=classes) for (classes, x), y in pairs])
    assert 0.75 < errors.mean() / values.std() < 1.3
    assert np.mean([kernel_distance(x, y)[1] for (_, x), y in pairs[:10]]) > 1.5 * values.std()
    # Its value, of one distribution, is zero on average also where classes have the same numbers on one side alone;
    # over all pairs it would be low by the 0.9 / 199 of what pairs within and between the ten classes differ by.
    triples = [(*of_ten_classes(rng), of_any_class(300)) for _ in range(300)]
    pairs = [(kernel_distance(x, y)[0], kernel_distance(x, y, classes=c)[0]) for c, x, y in triples]
    plain, within = np.transpose(pairs)
    x = means[np.repeat(np.arange(10), 300)] + rng.standard_normal((3000, 3))
    kernel = ((x @ x.T / 3 + 1) ** 3).reshape(10, 300, 10, 300).mean((1, 3))
    differ = np.diag(kernel).mean() - (kernel.sum() - np.trace(kernel)) / 90
    np.testing.assert_allclose((within - plain).mean(), 0.9 / 199 * differ, rtol=0.1)
    assert abs(within.mean()) < 3 * within.std() / np.sqrt(300)
    # Classes of too few samples to be drawn from by themselves are drawn from together.
    classes, x = draws[0]
    assert bootstrap(distance, x, classes=np.arange(200) // 4) == bootstrap(distance, x)
    densities = [neighbour_scores(x, real, classes=c)["density"] for c in (None, classes)]
    assert densities[0]["value"] == densities[1]["value"] and densities[0] != densities[1]


def test_kernel_distance_is_unbiased_and_its_error_is_right():
    """Of one distribution it is zero on average, as often above as below; of others it is the double sum."""
    x, y = RNG.standard_normal((40, 6)), RNG.standard_normal((30, 6)) + 0.3

    def kernel(a, b):
        return (a @ b / 6 + 1) ** 3

    within = sum(np.mean([kernel(p, q) for i, p in enumerate(z) for j, q in enumerate(z) if i != j]) for z in (x, y))
    between = np.mean([kernel(p, q) for p in x for q in y])
    np.testing.assert_allclose(kernel_distance(x, y)[0], within - 2 * between, rtol=1e-9)
    some = np.random.default_rng(1)
    parts = x[some.permutation(40)[:20]], y[some.permutation(30)[:20]]
    np.testing.assert_allclose(kernel_distance(x, y, most=20, seed=1), kernel_distance(*parts), rtol=1e-9)

    values, errors = np.transpose([kernel_distance(*RNG.standard_normal((2, 100, 6))) for _ in range(400)])
    assert abs(values.mean()) < 3 * values.std() / 20 and 0.6 < values.std() / errors.mean() < 0.9  # 1 / sqrt 2

    def draw():
        return RNG.standard_normal((150, 6)), 1.2 * RNG.standard_normal((100, 6)) + 0.5

    values, errors = np.transpose([kernel_distance(*draw()) for _ in range(400)])
    assert 0.85 < errors.mean() / values.std() < 1.15


def test_inception_score_of_known_classifiers():
    sure = np.log(np.eye(10)[np.arange(1000) % 10] + 1e-30)
    assert inception_score(sure, splits=1)["value"] == pytest.approx(10, rel=1e-6)
    # Of sure answers the score of a split is the exponential of its classes' entropy; files may be sorted by class.
    for labels in (np.arange(1000) % 10, np.arange(1000) // 100):
        score = inception_score(np.log(np.eye(10)[labels] + 1e-30), seed=5)
        parts = np.split(labels[np.random.default_rng(5).permutation(1000)], 10)
        wanted = [np.exp(scipy.stats.entropy(np.bincount(part, minlength=10))) for part in parts]
        assert score["value"] == pytest.approx(np.mean(wanted), rel=1e-6) and score["value"] > 9
        assert score["spread"] == pytest.approx(np.std(wanted), rel=1e-5) and score["splits"] == 10
    assert inception_score(np.zeros((100, 10)))["value"] == pytest.approx(1)
    assert inception_score(np.tile(sure[:1], (100, 1)))["value"] == pytest.approx(1)
    assert inception_score(sure[:99])["splits"] == 1  # of fifty images or more


def test_neighbour_scores_by_their_definitions():
    x, y, k, kd = RNG.standard_normal((30, 3)), RNG.standard_normal((40, 3)) * 1.3, 3, 5

    def inside(p, z, i, n):
        radius = np.sort(np.linalg.norm(z - z[i], axis=1))[n]  # the 0-th is itself
        return np.linalg.norm(p - z[i]) <= radius

    precision = np.mean([any(inside(p, y, i, k) for i in range(40)) for p in x])
    recall = np.mean([any(inside(q, x, i, k) for i in range(30)) for q in y])
    density = np.mean([sum(inside(p, y, i, kd) for i in range(40)) / kd for p in x])
    coverage = np.mean([any(inside(p, y, i, kd) for p in x) for i in range(40)])
    scores = neighbours(x, y, k, kd)
    wanted = (precision, recall, density, coverage)
    np.testing.assert_allclose([np.mean(part) for part in scores], wanted, rtol=1e-12)
    assert all(np.all(part == 0) for part in neighbours(x + 100, y, k, kd))


def test_neighbour_scores_of_real_images_are_near_those_that_equal_numbers_have():
    """Of n and n images of one distribution, a ball to the fifth neighbour is empty with P about 2^-5."""
    x, y = RNG.standard_normal((400, 3)), RNG.standard_normal((4000, 3))
    scores = neighbour_scores(x, y)
    assert scores["neighbours_num"] == 400
    assert scores == neighbour_scores(x, y) != neighbour_scores(x, y, seed=1)
    for _ in range(2):
        assert scores["coverage"]["value"] == pytest.approx(
            1 - np.prod([(399 - j) / (799 - j) for j in range(5)]), abs=0.04
        )
        assert scores["density"]["value"] == pytest.approx(1, abs=0.15)
        scores = neighbour_scores(y, x)
    assert scores["neighbours_num"] == 400 and scores["coverage"]["low"] < scores["coverage"]["value"]
    assert scores["coverage"]["high"] <= 1.0
    same = neighbour_scores(x, x)
    assert {same[name]["value"] for name in ("precision", "recall", "coverage")} == {1.0}


def test_memorisation_tells_copies_from_draws():
    """Also of a train set ten times as large, where a copy's original is among many."""
    train, test, fake = (RNG.standard_normal((n, 4)) for n in (3000, 500, 400))
    copies, apart = train[:200] + 1e-3, memorisation(fake, train, test)
    assert memorisation(copies, train, test)["value"] > 0.99
    assert apart["low"] < 0.5 < apart["high"] and apart["high"] - apart["low"] < 0.2
    assert (apart["train_num"], apart["test_num"]) == (3000, 400)
    half = memorisation(np.concatenate([copies, fake[:200]]), train, test)["value"]
    assert half == pytest.approx(0.75, abs=0.05)  # all of the copies, half of the others
    assert memorisation(fake + 20, train, test)["value"] == 0.0
    np.testing.assert_allclose(apart["samples"], np.median(np.linalg.norm(fake[:, None] - train, axis=-1).min(1)))


def test_the_probability_of_being_below():
    x, y = RNG.integers(0, 5, 30), RNG.integers(0, 7, 20)
    wanted = np.mean([(a < b) + 0.5 * (a == b) for a in x for b in y])
    np.testing.assert_allclose(below(x, y), wanted, rtol=1e-12)


def test_divergences_of_tables():
    p, q = RNG.dirichlet(np.ones(6)), RNG.dirichlet(np.ones(6))
    places = RNG.standard_normal(6)
    np.testing.assert_allclose(dv.kl(p, q), scipy.stats.entropy(p, q), rtol=1e-10)
    from scipy.spatial.distance import jensenshannon

    np.testing.assert_allclose(dv.jensen_shannon(p, q), jensenshannon(p, q) ** 2, rtol=1e-10)
    events = (np.arange(2**6)[:, None] >> np.arange(6)) & 1  # all of them: TV is the largest difference over one
    np.testing.assert_allclose(dv.total_variation(p, q), np.max(events @ (p - q)), rtol=1e-10)
    np.testing.assert_allclose(
        dv.wasserstein1(p, q, places), scipy.stats.wasserstein_distance(places, places, p, q), rtol=1e-10
    )
    for wrong in (places[:5], np.append(places, 0.0), np.full(6, np.nan)):
        with pytest.raises(UserError, match="^places "):
            dv.wasserstein1(p, q, wrong)
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
        (lambda: inception_score(np.zeros((1, 10))), "at least 2"),
        (lambda: neighbours(np.zeros((5, 3)), np.zeros((9, 3))), "5 samples: this needs at least 6"),
        (lambda: neighbours(np.zeros((9, 3)), np.zeros((5, 3))), "5 real images: this needs at least 6"),
        (lambda: memorisation(np.zeros((9, 3)), np.zeros((9, 2)), np.zeros((9, 3))), "3 and 2 wide"),
        (lambda: dv.wasserstein1_estimate(np.array([0.0, np.nan]), np.zeros(3)), "not finite"),
        (lambda: dv.mmd2_estimate(np.zeros(5), np.zeros(5), 1.0), "(images, width)"),
        (lambda: dv.mmd2_estimate(np.full((5, 1), np.inf), np.zeros((5, 1)), 1.0), "not finite"),
        (lambda: dv.kl([0.5, 0.6], [0.5, 0.5]), "sums to"),
        (lambda: dv.kl([0.5, 0.5], [1.0]), "same outcomes"),
    ],
)
def test_bad_input_is_one_line(call, words):
    with pytest.raises(UserError) as caught:
        call()
    assert words in str(caught.value) and "\n" not in str(caught.value)
