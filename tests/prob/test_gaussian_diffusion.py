"""Diffusion of Gaussian data, where everything is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from jgen.core import keys as rng
from jgen.prob import gaussian_diffusion as gd
from jgen.prob.likelihoods import discretised_normal_log_prob, normal_kl
from jgen.prob.schedules import make_schedule
from jgen.samplers.diffusion import ancestral, ddim

MEAN, STD = 0.2, 0.3


def exact_denoiser(schedule, mean=MEAN, std=STD):
    """E[x_0 | x_t] for data N(mean, std^2) in every pixel."""

    def denoiser(x_t, t):
        signal, noise = gd.signal_and_noise(schedule, t, x_t)
        gain = signal * std**2 / (signal**2 * std**2 + noise**2)
        x0 = mean + gain * (x_t - signal * mean)
        return gd.Prediction(x0, (x_t - signal * x0) / noise)

    return denoiser


@pytest.mark.parametrize("t", [1, 100, 500, 1000])
def test_forward_marginals_are_those_of_the_chain(t):
    """x_t by t single steps of the chain, against the closed form, by a Kolmogorov-Smirnov test."""
    schedule = make_schedule("linear", 1000)
    n = 4000
    noise = np.random.default_rng(t).standard_normal
    x = np.full(n, 0.7)
    for s in range(1, t + 1):
        x = np.sqrt(1 - schedule.beta[s]) * x + np.sqrt(schedule.beta[s]) * noise(n)
    keys = rng.image_keys(jax.random.key(3), jnp.arange(n))
    x_0 = jnp.full((n, 1, 1, 1), 0.7)
    x_t = gd.q_sample(schedule, x_0, jnp.full(n, t), rng.normal(keys, (1, 1, 1)))
    assert scipy.stats.ks_2samp(x, np.asarray(x_t).ravel()).pvalue > 1e-3
    ab = schedule.alpha_bar[t]
    marginal = scipy.stats.norm(np.sqrt(ab) * 0.7, np.sqrt(1 - ab))
    assert scipy.stats.kstest(np.asarray(x_t, np.float64).ravel(), marginal.cdf).pvalue > 1e-3


@pytest.mark.parametrize("prediction", gd.PREDICTIONS)
def test_targets_and_interpretations_are_inverse(prediction):
    schedule = make_schedule("cosine", 100)
    keys = rng.split(rng.image_keys(jax.random.key(0), jnp.arange(8)), 2)
    x_0, eps = jnp.clip(rng.normal(keys[0], (4, 4, 1)), -1, 1), rng.normal(keys[1], (4, 4, 1))
    t = jnp.array([1, 5, 20, 50, 60, 70, 80, 90])
    x_t = gd.q_sample(schedule, x_0, t, eps)
    output = gd.target(prediction, schedule, x_0, t, eps)
    for clip in (False, True):
        estimate = gd.interpret(prediction, schedule, x_t, t, output, clip)
        np.testing.assert_allclose(estimate.x0, x_0, atol=2e-5)
        np.testing.assert_allclose(estimate.eps, eps, atol=2e-3)


def test_posterior_is_bayes_rule():
    """q(x_s | x_t, x_0) from the product of two Gaussians, for unit steps and for jumps."""
    schedule = make_schedule("linear", 1000)
    t, s = np.array([2, 500, 1000]), np.array([1, 499, 700])
    coefficients = gd.posterior(schedule, t, s)
    alpha = schedule.alpha_bar[t] / schedule.alpha_bar[s]
    precision = 1 / (1 - schedule.alpha_bar[s]) + alpha / (1 - alpha)
    np.testing.assert_allclose(coefficients.beta_tilde, 1 / precision, rtol=1e-9)
    np.testing.assert_allclose(
        coefficients.x0, np.sqrt(schedule.alpha_bar[s]) / (1 - schedule.alpha_bar[s]) / precision
    )
    np.testing.assert_allclose(coefficients.xt, np.sqrt(alpha) / (1 - alpha) / precision)


def start(schedule, n, shape=(1, 1, 1)):
    keys = rng.split(rng.image_keys(jax.random.key(1), jnp.arange(n)), 2)
    return rng.normal(keys[0], shape), keys[1]


def test_no_variance_collapses_the_samples():
    schedule = make_schedule("linear", 1000)
    x_T, keys = start(schedule, 2000)
    x = ancestral(exact_denoiser(schedule), schedule, x_T, keys, range(1000, 0, -1), "none")
    assert np.std(np.asarray(x)) < 0.2 * STD


def test_ddim_converges_with_first_order():
    """Against the exact probability flow: halving the steps' size halves the error."""
    schedule = make_schedule("cosine", 4096)
    x_T, keys = start(schedule, 64)
    first = 1 + 27 * 128  # 1 + a multiple of every stride: all runs visit time 1 last
    ab = schedule.alpha_bar[first]
    spread = np.sqrt(ab * STD**2 + 1 - ab)
    # The flow maps quantiles: (x_t - signal_t mean) / spread_t is constant along it.
    z = np.asarray(x_T, np.float64)
    x_first = jnp.asarray(np.sqrt(ab) * MEAN + spread * z, jnp.float32)
    error = []
    for stride in (64, 32, 16):
        x = ddim(exact_denoiser(schedule), schedule, x_first, keys, range(first, 0, -stride), 0.0)
        error.append(np.max(np.abs(np.asarray(x) - (MEAN + STD * z))))
    order = np.log2(np.array(error[:-1]) / np.array(error[1:]))
    assert np.all(np.abs(order - 1) < 0.1), (error, order)


def test_ddim_with_eta_one_is_ancestral_with_beta_tilde():
    schedule = make_schedule("linear", 50)
    x_T, keys = start(schedule, 16, (2, 2, 1))
    times = (50, 31, 12, 4, 1)
    denoiser = exact_denoiser(schedule)
    a = ancestral(denoiser, schedule, x_T, keys, times, "beta_tilde")
    b = ddim(denoiser, schedule, x_T, keys, times, 1.0)
    np.testing.assert_allclose(a, b, atol=1e-5)


def quantised(n, levels=256):
    """Images of quantised Gaussian pixels, and the entropy of a pixel."""
    k = np.arange(levels)
    logp = np.asarray(discretised_normal_log_prob(jnp.asarray(k), jnp.full(levels, MEAN), STD, levels), np.float64)
    p = np.exp(logp)
    images = np.random.default_rng(0).choice(levels, size=(n, 4, 4, 1), p=p / p.sum()).astype(np.uint8)
    return images, logp


def bound_schedule(T):
    """The same noise scale at every T: alpha_bar_T is about e^-10 and beta_1 shrinks with T."""
    return make_schedule("linear", T, beta_1=0.1 / T, beta_T=min(20 / T, 0.999))


def exact_bound(T, variance):
    """The expected bound of a pixel in nats, by closed forms and, for its last term, Gauss-Hermite quadrature."""
    schedule, (_, logp) = bound_schedule(T), quantised(1)
    p, x0 = np.exp(logp), np.arange(256) / 127.5 - 1
    second = p @ (x0 - MEAN) ** 2
    ab = schedule.alpha_bar
    total = -0.5 * p @ ((1 - ab[T]) + ab[T] * x0**2 - 1 - np.log(1 - ab[T]))
    for t in range(2, T + 1):
        gain = np.sqrt(ab[t]) * STD**2 / (ab[t] * STD**2 + 1 - ab[t])
        error = (1 - gain * np.sqrt(ab[t])) ** 2 * second + gain**2 * (1 - ab[t])  # E (x_0 - E[x_0 | x_t])^2
        c = gd.posterior(schedule, np.array([t]), np.array([t - 1]))
        var_p = c.beta if variance == "beta" else c.beta_tilde
        kl = 0.5 * (np.log(var_p / c.beta_tilde) + (c.beta_tilde + c.x0**2 * error) / var_p - 1)
        total -= kl.item()
    c = gd.posterior(schedule, np.array([1, min(T, 2)]), np.array([0, min(T, 2) - 1]))
    std = np.sqrt(c.beta[0] if variance == "beta" or T == 1 else c.beta_tilde[1])
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    x1 = np.sqrt(ab[1]) * x0[:, None] + np.sqrt(1 - ab[1]) * nodes[None, :]
    gain = np.sqrt(ab[1]) * STD**2 / (ab[1] * STD**2 + 1 - ab[1])
    mean = c.x0[0] * (MEAN + gain * (x1 - np.sqrt(ab[1]) * MEAN)) + c.xt[0] * x1
    edges = np.concatenate([[-np.inf], (x0[1:] + x0[:-1]) / 2, [np.inf]])
    low, high = (edges[:-1, None] - mean) / std, (edges[1:, None] - mean) / std
    low, high = np.where(low > 0, -high, low), np.where(low > 0, -low, high)  # the lower tail, where logs are precise
    ratio = scipy.special.log_ndtr(low) - scipy.special.log_ndtr(high)
    log_mass = scipy.special.log_ndtr(high) + np.log(-np.expm1(ratio))
    return total + p @ (log_mass @ weights) / weights.sum()


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
@pytest.mark.parametrize("T", [1, 10, 100])
def test_bound_is_its_closed_form(T, variance):
    images, _ = quantised(8192)
    keys = rng.image_keys(jax.random.key(0), jnp.arange(len(images)))
    schedule = bound_schedule(T)
    bound = gd.variational_bound(exact_denoiser(schedule), schedule, jnp.asarray(images), keys, 256, variance)
    bound = np.asarray(bound, np.float64) / 16
    error = bound.std() / np.sqrt(len(bound))
    assert abs(bound.mean() - exact_bound(T, variance)) < 5 * error, (bound.mean(), exact_bound(T, variance), error)
    assert error < 0.02


def test_bound_approaches_the_true_likelihood():
    """In closed form: a pixel's gap to the truth falls with T, with variance beta to a thousandth of its 5 nats.

    beta_tilde is right for data that is a point: here each of the first steps costs, at every T.
    """
    _, logp = quantised(1)
    truth = np.exp(logp) @ logp
    gap = {v: np.array([truth - exact_bound(T, v) for T in (10, 100, 1000)]) for v in ("beta", "beta_tilde")}
    assert np.all(gap["beta"] > 0) and np.all(gap["beta"][1:] < 0.35 * gap["beta"][:-1]), gap
    assert gap["beta"][2] < 0.012 and gap["beta_tilde"][2] > 0.3, gap


def test_bound_terms_in_closed_form_against_monte_carlo():
    """KL(q(x_{t-1} | x_t, x_0) || p) as the bound has it, against draws of log q - log p."""
    schedule = make_schedule("linear", 100)
    t, x_0, x_t = 40, 0.3, -0.4
    c = gd.posterior(schedule, np.array([t]), np.array([t - 1]))
    predicted = exact_denoiser(schedule)(jnp.full((1, 1, 1, 1), x_t), jnp.array([t])).x0.item()
    mean_q, mean_p = (c.x0 * x + c.xt * x_t for x in (x_0, predicted))
    var_q, var_p = c.beta_tilde, c.beta
    n = 400_000
    z = mean_q + np.sqrt(var_q) * np.random.default_rng(0).standard_normal(n)
    norm = scipy.stats.norm.logpdf
    ratio = norm(z, mean_q, np.sqrt(var_q)) - norm(z, mean_p, np.sqrt(var_p))
    kl = normal_kl(mean_q, np.log(var_q), mean_p, np.log(var_p)).item()
    assert abs(ratio.mean() - kl) < 5 * ratio.std() / np.sqrt(n)


def test_prior_term():
    schedule = make_schedule("linear", 200)
    x_0 = jnp.linspace(-1, 1, 12).reshape(1, 3, 4, 1)
    ab = schedule.alpha_bar[-1]
    expected = 0.5 * np.sum((1 - ab) + ab * np.asarray(x_0) ** 2 - 1 - np.log(1 - ab))
    assert gd.prior_kl(schedule, x_0).item() == pytest.approx(expected, rel=1e-4)
