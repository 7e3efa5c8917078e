"""Gaussian mixtures against SciPy and scikit-learn, in every form of covariance; conditionals in closed form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from sklearn.cluster import KMeans
from sklearn.decomposition import FactorAnalysis
from sklearn.mixture import GaussianMixture

from jgen.core import keys as rng
from jgen.prob import gaussian_mixture as gm

DIM = 5
FORMS = {"full": gm.full(), "diagonal": gm.diagonal(), "low_rank": gm.low_rank(2)}


def data(n=400, seed=0):
    """Three clusters of unlike shapes, (n, DIM)."""
    gen = np.random.default_rng(seed)
    means, maps = 2 * gen.normal(size=(3, DIM)), gen.normal(size=(3, DIM, DIM)) / 2
    k = gen.choice(3, n, p=[0.5, 0.3, 0.2])
    return jnp.float32(means[k] + np.einsum("nij,nj->ni", maps[k], gen.normal(size=(n, DIM))))


@pytest.fixture(scope="module")
def fitted():
    """Of each form: the mixtures after 0, 1, ... 25 steps of EM on all the data, and the mean log p of each."""
    x, row = data(), jnp.zeros(400, jnp.int32)

    def fit(form):
        key = jax.random.key(3)
        centres, variances = gm.k_means(key, x, 3, jnp.ones(400), 5)
        start = form.start(jnp.full((1, 3), 1 / 3), centres, variances, key)

        def step(statistics, _):
            mixture = form.mixture_of(statistics, 1e-6)
            log_p, r = gm.log_density(form, mixture, x, row)
            return gm.move(form, statistics, mixture, r, x, row, 1.0), (mixture, jnp.mean(log_p))

        return jax.lax.scan(step, start, None, 26)[1]

    return {name: jax.device_get(jax.jit(partial(fit, form))()) for name, form in FORMS.items()}


def at(fitted, name, step):
    return jax.tree.map(lambda array: jnp.asarray(array[step]), fitted[name][0])


@pytest.mark.parametrize("name", FORMS)
def test_the_density_is_that_of_scipy(fitted, name):
    x, form, mixture = data(50, 1), FORMS[name], at(fitted, name, 10)
    log_p, r = gm.log_density(form, mixture, x, jnp.zeros(50, jnp.int32))
    joint = np.stack(
        [
            np.log(weight) + scipy.stats.multivariate_normal(mean, matrix).logpdf(x)
            for weight, mean, matrix in zip(mixture.weights[0], mixture.means, np.float64(form.matrices(mixture)))
        ],
        axis=1,
    )
    wanted = scipy.special.logsumexp(joint, axis=1)
    np.testing.assert_allclose(log_p, wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(r, np.exp(joint - wanted[:, None]), atol=1e-4)


@pytest.mark.parametrize("name", FORMS)
def test_em_on_all_data_never_lowers_the_likelihood(fitted, name):
    values = fitted[name][1]
    assert values[-1] > values[0] + 0.3 and np.all(np.diff(values) > -1e-5)


@pytest.mark.parametrize("name,kind", [("full", "full"), ("diagonal", "diag")])
def test_iterations_are_those_of_scikit_learn(fitted, name, kind):
    start, form = at(fitted, name, 2), FORMS[name]
    precisions = np.linalg.inv(np.float64(form.matrices(start)))
    precisions = np.stack([np.diag(each) for each in precisions]) if kind == "diag" else precisions
    given = {"weights_init": np.float64(start.weights[0]), "means_init": start.means, "precisions_init": precisions}
    given["weights_init"] /= given["weights_init"].sum()
    peer = GaussianMixture(3, covariance_type=kind, reg_covar=1e-6, max_iter=10, tol=0.0, **given)
    with pytest.warns(UserWarning, match="did not converge"):
        peer.fit(data())
    mixture = at(fitted, name, 12)
    np.testing.assert_allclose(mixture.weights[0], peer.weights_, atol=1e-3)
    np.testing.assert_allclose(mixture.means, peer.means_, atol=5e-3)
    assert fitted[name][1][12] == pytest.approx(peer.score(data()), rel=1e-4)


def test_one_component_of_low_rank_is_factor_analysis():
    x, form, row = data(), gm.low_rank(2), jnp.zeros(400, jnp.int32)
    moments = jnp.mean(x, axis=0, keepdims=True), jnp.var(x, axis=0)
    start = form.start(jnp.ones((1, 1)), *moments, jax.random.key(0))

    def step(statistics, _):
        mixture = form.mixture_of(statistics, 0.0)
        log_p, r = gm.log_density(form, mixture, x, row)
        return gm.move(form, statistics, mixture, r, x, row, 1.0), jnp.mean(log_p)

    values = jax.jit(lambda start: jax.lax.scan(step, start, None, 300)[1])(start)
    assert values[-1] == pytest.approx(FactorAnalysis(2, tol=1e-4, max_iter=5000).fit(x).score(x), rel=1e-3)


@pytest.mark.parametrize("name", FORMS)
def test_draws_have_the_moments_of_their_component(fitted, name):
    n, form, mixture = 20_000, FORMS[name], at(fitted, name, 10)
    keys = rng.image_keys(jax.random.key(0), jnp.arange(n))
    noise = np.asarray(jax.jit(lambda: form.noise(mixture, jnp.full(n, 1), keys))())
    wanted = np.asarray(form.matrices(mixture)[1])
    error = np.sqrt((np.diag(wanted)[:, None] * np.diag(wanted) + wanted**2) / n)  # of an entry of the sample's
    assert np.all(np.abs(np.cov(noise.T, bias=True) - wanted) < 5 * error)


@pytest.mark.slow
def test_completions_are_drawn_from_the_conditional_distribution(fitted):
    """Component, mean and covariance given two of five dimensions, by NumPy's closed form."""
    n, mixture, known = 20_000, at(fitted, "full", 10), np.array([True, False, False, True, False])
    matrices, x = np.float64(gm.full().matrices(mixture)), np.float32(data(1, 5)[0])
    inputs = (jnp.tile(v, (n, 1)) for v in (jnp.log(mixture.weights[0]), x, known))
    keys = rng.image_keys(jax.random.key(2), jnp.arange(n))
    complete = partial(gm.complete, mixture.means, jnp.float32(matrices))
    draws = np.float64(jax.jit(lambda *given: complete(*given, keys, 1.0))(*inputs))
    np.testing.assert_array_equal(draws[:, known], np.tile(x[known], (n, 1)))
    weights, means, covariances = [], [], []
    for pi, mu, S in zip(mixture.weights[0], np.float64(mixture.means), matrices):
        gain = S[~known][:, known] @ np.linalg.inv(S[known][:, known])
        weights.append(pi * scipy.stats.multivariate_normal(mu[known], S[known][:, known]).pdf(x[known]))
        means.append(mu[~known] + gain @ (x - mu)[known])
        covariances.append(S[~known][:, ~known] - gain @ S[known][:, ~known])
    w, means = np.array(weights) / np.sum(weights), np.array(means)
    mean = w @ means
    wanted = np.einsum("k,kij->ij", w, covariances) + np.einsum("k,ki,kj->ij", w, means - mean, means - mean)
    assert np.all(np.abs(draws[:, ~known].mean(0) - mean) < 5 * np.sqrt(np.diag(wanted) / n))
    np.testing.assert_allclose(np.cov(draws[:, ~known].T), wanted, atol=0.06 * np.diag(wanted).max())


def test_a_component_of_another_row_stays_without_weight():
    form, x = gm.diagonal(), data(40)
    row, weights = jnp.arange(40) % 2, jnp.array([[0.25, 0.25, 0.0, 0.0], [0.0, 0.0, 0.25, 0.25]])
    statistics = form.start(weights, x[:4], jnp.ones(DIM), jax.random.key(0))
    for _ in range(3):
        mixture = form.mixture_of(statistics, 1e-3)
        _, r = gm.log_density(form, mixture, x, row)
        statistics = gm.move(form, statistics, mixture, r, x, row, 0.5)
    np.testing.assert_array_equal(statistics["weight"] > 0, weights > 0)
    only_first = gm.move(form, statistics, mixture, r[:1], x[:1], row[:1], 1.0)  # no example of the second row
    assert np.all(np.isfinite(gm.log_density(form, form.mixture_of(only_first, 1e-3), x, row)[0]))


def test_centres_are_those_of_scikit_learn():
    gen = np.random.default_rng(0)
    x = jnp.float32(np.concatenate([gen.normal(size=(50, DIM)) + 20 * np.eye(DIM)[k] for k in range(3)]))
    weight = jnp.concatenate([jnp.ones(100), jnp.zeros(50)])  # the third cluster does not count
    centres, variances = gm.k_means(jax.random.key(0), x, 2, weight, 5)
    peer = KMeans(2, n_init=3, random_state=0).fit(x[:100])
    order = np.argsort(centres[:, 0]), np.argsort(peer.cluster_centers_[:, 0])
    np.testing.assert_allclose(centres[order[0]], peer.cluster_centers_[order[1]], rtol=1e-4, atol=1e-4)
    assert float(jnp.sum(variances)) == pytest.approx(peer.inertia_ / 100, rel=1e-4)
