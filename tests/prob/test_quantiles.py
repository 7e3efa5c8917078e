"""The Huber quantile loss: its minimisers are quantiles, its value and its gradient are those of the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jgen.prob.quantiles import huber_quantile_loss

TAU = np.array([0.02, 0.1, 0.5, 0.75, 0.95], np.float32)


def minimise(y, kappa, low, high):
    """The values q (5,) of least mean loss over the draws y: the loss is convex, so its derivative is bisected."""

    def total(q):
        return jnp.sum(jnp.mean(huber_quantile_loss(y[:, None], q[None], TAU[None], kappa), axis=0))

    slope = jax.jit(jax.grad(total))
    low, high = np.full(5, low, np.float32), np.full(5, high, np.float32)
    for _ in range(24):
        middle = 0.5 * (low + high)
        falls = np.asarray(slope(middle)) < 0
        low, high = np.where(falls, middle, low), np.where(falls, high, middle)
    return middle


@pytest.mark.parametrize("kappa", [0.0, 0.02])
@pytest.mark.parametrize("law", [scipy.stats.norm(0.3, 2.0), scipy.stats.gamma(2.0)], ids=["normal", "gamma"])
def test_the_loss_is_least_at_the_quantiles(law, kappa):
    n = 40_000
    y = law.rvs(n, random_state=np.random.default_rng(0)).astype(np.float32)
    quantiles = law.ppf(TAU)
    # Of n draws the quantile at tau has the standard error sqrt(tau (1 - tau) / n) / density.
    error = np.sqrt(TAU * (1 - TAU) / n) / law.pdf(quantiles)
    assert np.all(np.abs(minimise(y, kappa, -10.0, 20.0) - quantiles) < 4 * error + kappa)


def test_a_wide_quadratic_part_gives_expectiles_and_no_quantiles():
    """At tau = 1/2 the loss is then the squared error, least at the mean: the test of quantiles can fail."""
    law = scipy.stats.gamma(2.0)
    y = law.rvs(40_000, random_state=np.random.default_rng(0)).astype(np.float32)
    middle = minimise(y, 1e3, -10.0, 20.0)[2]
    assert middle == pytest.approx(y.mean(), abs=1e-3) and middle - law.ppf(0.5) > 0.2


def test_kappa_zero_is_the_pinball_loss():
    rng = np.random.default_rng(0)
    y, q, tau = rng.normal(size=200), rng.normal(size=200), rng.uniform(size=200)
    pinball = np.maximum(tau * (y - q), (tau - 1) * (y - q))
    y, q, tau = (jnp.asarray(x, jnp.float32) for x in (y, q, tau))
    np.testing.assert_allclose(huber_quantile_loss(y, q, tau, 0.0), pinball, rtol=1e-4, atol=1e-6)
    small = huber_quantile_loss(y, q, tau, 1e-3)
    assert np.all(np.abs(small - pinball) <= 0.5e-3 * np.maximum(tau, 1 - tau) + 1e-6)


@pytest.mark.parametrize("kappa", [0.0, 0.3, 1.0])
def test_values_and_gradients_of_the_formula(kappa):
    rng = np.random.default_rng(1)
    y, q, tau = rng.normal(size=300), rng.normal(size=300), rng.uniform(size=300)
    u = y - q
    weight = np.where(u < 0, 1 - tau, tau)
    inside = np.abs(u) <= kappa
    value = weight * np.where(inside, 0.5 * u**2 / max(kappa, 1e-9), np.abs(u) - 0.5 * kappa)
    gradient = -weight * np.where(inside, u / max(kappa, 1e-9), np.sign(u))
    loss = jax.vmap(jax.value_and_grad(lambda q, y, tau: huber_quantile_loss(y, q, tau, kappa)))
    values, gradients = loss(*(jnp.asarray(x, jnp.float32) for x in (q, y, tau)))
    np.testing.assert_allclose(values, value, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradients, gradient, rtol=1e-3, atol=1e-5)
    assert kappa == 0 or 20 < inside.sum() < 280
