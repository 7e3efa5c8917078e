"""The bound of Gaussian data, where everything is known in closed form."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from gaussians import MEAN, PROCESSES, STD, keys_of, pixelwise

from jgen.prob.diffusion_bound import chain_term, posterior, prior_kl, variational_bound
from jgen.prob.likelihoods import discretised_normal_log_prob, normal_kl
from jgen.prob.process import discrete, edm
from jgen.prob.schedules import make_schedule


@pytest.mark.parametrize("name", PROCESSES)
def test_posterior_is_bayes_rule(name):
    """q(x_s | x_t, x_0) from the product of two Gaussians, for short steps and for jumps."""
    process = PROCESSES[name]
    t, s = np.array([0.002, 0.5, 0.99, 0.99]), np.array([0.001, 0.499, 0.7, 0.01])
    (alpha_t, sigma_t), (alpha_s, sigma_s) = ((process.alpha(u), process.sigma(u)) for u in (t, s))
    step = alpha_t / alpha_s
    beta = sigma_t**2 - step**2 * sigma_s**2  # x_t = step x_s + sqrt(beta) z
    precision = 1 / sigma_s**2 + step**2 / beta
    coefficients = posterior(process, t, s)
    # The difference of two variances loses digits where they are close: a thousandth of them is 1e-13 of 1e-16.
    np.testing.assert_allclose(coefficients.beta, beta, rtol=1e-9)
    np.testing.assert_allclose(coefficients.beta_tilde, 1 / precision, rtol=1e-9)
    np.testing.assert_allclose(coefficients.x0, alpha_s / sigma_s**2 / precision, rtol=1e-9)
    np.testing.assert_allclose(coefficients.xt, step / beta / precision, rtol=1e-9)
    on_device = posterior(process, *(jnp.asarray(u, jnp.float32) for u in (t, s)))
    for wanted, value in zip(coefficients, on_device):
        np.testing.assert_allclose(value, wanted, rtol=1e-3)  # the noise of neighbouring times differs by a thousandth


@pytest.mark.parametrize("name", PROCESSES)
def test_the_step_to_clean_data_is_the_estimate(name):
    coefficients = posterior(PROCESSES[name], np.array([0.5]), np.array([0.0]))
    assert (coefficients.x0, coefficients.xt, coefficients.beta_tilde) == (1, 0, 0)
    # What is left of the noise is that of x_t given x_0, over its signal: the variance of x_t / alpha, times alpha^2.
    np.testing.assert_allclose(coefficients.beta, PROCESSES[name].sigma(np.array([0.5])) ** 2)


def quantised(n, levels=256):
    """Images of quantised Gaussian pixels, and the log-probability of each level."""
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

    def coefficients(t):
        """x0, xt, beta and beta_tilde by the paper's equations."""
        beta = 1 - ab[t] / ab[t - 1]
        x0, xt = np.sqrt(ab[t - 1]) * beta / (1 - ab[t]), np.sqrt(1 - beta) * (1 - ab[t - 1]) / (1 - ab[t])
        return x0, xt, beta, beta * (1 - ab[t - 1]) / (1 - ab[t])

    for t in range(2, T + 1):
        gain = np.sqrt(ab[t]) * STD**2 / (ab[t] * STD**2 + 1 - ab[t])
        error = (1 - gain * np.sqrt(ab[t])) ** 2 * second + gain**2 * (1 - ab[t])  # E (x_0 - E[x_0 | x_t])^2
        c_0, _, beta, beta_tilde = coefficients(t)
        var_p = beta if variance == "beta" else beta_tilde
        total -= 0.5 * (np.log(var_p / beta_tilde) + (beta_tilde + c_0**2 * error) / var_p - 1)
    c_0, c_t, beta, _ = coefficients(1)
    std = np.sqrt(beta if variance == "beta" or T == 1 else coefficients(2)[3])
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    x1 = np.sqrt(ab[1]) * x0[:, None] + np.sqrt(1 - ab[1]) * nodes[None, :]
    gain = np.sqrt(ab[1]) * STD**2 / (ab[1] * STD**2 + 1 - ab[1])
    mean = c_0 * (MEAN + gain * (x1 - np.sqrt(ab[1]) * MEAN)) + c_t * x1
    edges = np.concatenate([[-np.inf], (x0[1:] + x0[:-1]) / 2, [np.inf]])
    low, high = (edges[:-1, None] - mean) / std, (edges[1:, None] - mean) / std
    low, high = np.where(low > 0, -high, low), np.where(low > 0, -low, high)  # the lower tail, where logs are precise
    ratio = scipy.special.log_ndtr(low) - scipy.special.log_ndtr(high)
    log_mass = scipy.special.log_ndtr(high) + np.log(-np.expm1(ratio))
    return total + p @ (log_mass @ weights) / weights.sum()


@pytest.mark.slow
@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
@pytest.mark.parametrize("T", [1, 10, 100])
def test_bound_is_its_closed_form(T, variance):
    images, _ = quantised(4096)
    process, times = discrete(bound_schedule(T)), np.arange(1, T + 1) / T
    denoiser, keys = pixelwise(process), keys_of(len(images), 0)
    bound = variational_bound(denoiser, process, times, jnp.asarray(images), keys, 256, variance)
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
    process, x_0, x_t = discrete(make_schedule("linear", 100)), 0.3, -0.4
    c = posterior(process, np.array([0.4]), np.array([0.39]))
    predicted = pixelwise(process)(jnp.full((1, 1, 1, 1), x_t), jnp.array([0.4])).item()
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
    assert prior_kl(discrete(schedule), x_0).item() == pytest.approx(expected, rel=1e-4)
    # Where the signal stays, the prior is wider than the noise by the data's unit variance.
    variance = 1 + 5.0**2
    expected = 0.5 * np.sum((25 + np.asarray(x_0) ** 2) / variance - 1 - np.log(25 / variance))
    assert prior_kl(edm(5.0), x_0).item() == pytest.approx(expected, rel=1e-4)


def test_the_step_to_clean_latents_has_a_density():
    x_0, estimate = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 2))
    logvar = np.full(x_0.shape, -1.5)
    rows = {"x0": np.full((3, 1, 1, 1), 0.3), "logvar_q": np.full((3, 1, 1, 1), -2.0)}
    rows["is_first"] = np.array([True, False, True]).reshape(3, 1, 1, 1)
    terms = chain_term(jnp.asarray(x_0), jnp.asarray(x_0), jnp.asarray(estimate), rows, jnp.asarray(logvar), levels=0)
    density = scipy.stats.norm.logpdf(x_0, estimate, np.exp(-0.75)).reshape(3, -1).sum(axis=1)
    np.testing.assert_allclose(terms[np.array([0, 2])], -density[[0, 2]], rtol=1e-5)
    divergence = normal_kl(0.3 * (x_0 - estimate), -2.0, 0.0, -1.5)[1].sum()
    np.testing.assert_allclose(terms[1], divergence, rtol=1e-5)
