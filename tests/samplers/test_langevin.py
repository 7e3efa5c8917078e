"""Langevin chains against the distributions that they come to, and annealed weights against closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2, chisquare, kstest

from jgen.core import keys as rng
from jgen.prob import densities
from jgen.prob.importance import bootstrap_log_mean, log_mean
from jgen.samplers.annealing import anneal, chains_at, hamiltonian_step
from jgen.samplers.langevin import langevin, reflect, temperature_of

NUM = 1000
KEYS = rng.image_keys(jax.random.key(3), jnp.arange(NUM))


def run(gradient, x, reflecting=False, **options):
    walk = jax.jit(lambda x: langevin(gradient, KEYS, x, reflecting=reflecting, **options))
    return jax.device_get(walk(x))


def test_a_gaussians_variance_is_that_of_the_discrete_dynamics():
    """x <- (1 - s a) x + noise eps has the variance noise^2 / (1 - (1 - s a)^2), T / a for small s."""
    a, s, noise = np.array([4.0, 0.5]), 0.1, 0.4
    x, diverged = run(lambda x: a[None, :] * x, jnp.zeros((NUM, 2)), steps=150, step_size=s, noise=noise)
    for column, variance in zip(x.T, noise**2 / (1 - (1 - s * a) ** 2)):
        assert 1e-4 < chi2(NUM).cdf(np.sum(column**2) / variance) < 1 - 1e-4
        assert abs(column.mean()) < 4 * math.sqrt(variance / NUM)
    assert temperature_of(s, noise) == pytest.approx(0.8) and not diverged.any()


def cdf(energy, low, high):
    """The distribution function of exp(-energy) on an interval, by quadrature."""
    grid = np.linspace(low, high, 20_001)
    p = np.exp(-energy(grid))
    total = np.concatenate([[0.0], np.cumsum((p[1:] + p[:-1]) / 2)])
    return lambda x: np.interp(x, grid, total / total[-1])


def mixture(x):
    """Of two modes of unequal weight and width."""
    return -jnp.logaddexp(math.log(0.7) - 0.5 * ((x + 0.4) / 0.2) ** 2, math.log(0.3) - 0.5 * ((x - 0.4) / 0.25) ** 2)


@pytest.mark.parametrize("name", ["mixture", "slope", "flat"])
def test_chains_on_the_box_come_to_the_density_within_its_walls(name):
    energy = {"mixture": mixture, "slope": lambda x: 3.0 * x, "flat": lambda x: 0.0 * x}[name]
    gradient = jax.vmap(jax.grad(energy))
    noise = 0.08  # T = 1
    x, _ = run(
        lambda x: gradient(x[:, 0])[:, None],
        jnp.linspace(-1, 0, NUM)[:, None],
        reflecting=True,
        steps=600,
        step_size=noise**2 / 2,
        noise=noise,
    )
    assert np.abs(x).max() <= 1
    assert kstest(x[:, 0], cdf(energy, -1.0, 1.0)).pvalue > 1e-3


def grid_of_box(side):
    """The middles of side^2 equal cells of the box [-1, 1]^2."""
    return densities.grid(side) / densities.EXTENT


def test_chains_in_the_plane_come_to_a_mixture_that_is_integrated_on_a_grid():
    """Of three overlapping modes, in 16 cells of the box."""
    density, side = densities.mixture(np.array([[-0.6, -0.4], [0.5, -0.5], [0.1, 0.6]]), 0.35), 64
    gradient = jax.grad(lambda x: -jnp.sum(density.log_prob(x)))
    noise, start = 0.1, 2 * rng.uniform(rng.fold_in(KEYS, 9), (2,)) - 1
    x, _ = run(gradient, start, reflecting=True, steps=500, step_size=noise**2 / 2, noise=noise)
    p = np.exp(np.asarray(density.log_prob(grid_of_box(side)), np.float64)).reshape(4, side // 4, 4, side // 4)
    expected = p.sum(axis=(1, 3)) / p.sum()
    column, row = np.clip(np.floor(2 * (x + 1)), 0, 3).astype(int).T
    seen = np.zeros((4, 4))
    np.add.at(seen, (row, column), 1)
    assert np.ptp(expected) > 0.05
    assert chisquare(seen.ravel(), NUM * expected.ravel()).pvalue > 1e-3


def test_reflection_is_a_triangle_wave():
    x, sign = reflect(jnp.array([0.5, 1.25, -1.25, 3.5, -4.25]))
    np.testing.assert_allclose(x, [0.5, 0.75, -0.75, -0.5, -0.25], atol=1e-6)
    np.testing.assert_array_equal(sign, [1, -1, -1, 1, 1])


@pytest.mark.parametrize("bad", ["large", "nan"])
def test_a_chain_that_diverges_is_told_from_one_that_does_not(bad):
    scale = jnp.where(jnp.arange(NUM) == 7, jnp.nan if bad == "nan" else 1e4, 1.0)[:, None]
    _, diverged = run(lambda x: scale * x, jnp.full((NUM, 1), 0.5), True, steps=3, step_size=0.1, noise=0.01)
    np.testing.assert_array_equal(np.flatnonzero(diverged), [7])


def close_to(log_w, log_z):
    """Within 4 standard errors, by the delta method."""
    log_w = np.asarray(log_w, np.float64)
    w = np.exp(log_w - log_w.max())
    error = w.std() / w.mean() / math.sqrt(len(w))
    assert error < 0.2, error
    assert abs(float(log_mean(log_w)) - log_z) < 4 * error, (float(log_mean(log_w)), log_z, error)
    low, high = bootstrap_log_mean(log_w)
    assert low < float(log_mean(log_w)) < high and high - low < 6 * error


def test_annealed_weights_have_the_normaliser_of_a_gaussian():
    precision, mean = np.array([[4.0, 1.5], [1.5, 2.0]]), np.array([1.0, -0.5])

    def energy(x):
        return 0.5 * jnp.einsum("bi,ij,bj->b", x - mean[None, :], precision, x - mean[None, :])

    def base(x):
        return jnp.sum(0.5 * x**2 + 0.5 * math.log(2 * math.pi), axis=1)

    keys = KEYS[:500]
    start = rng.normal(keys, (2,))
    _, log_w, accepted = jax.jit(
        lambda x: anneal(base, energy, rng.fold_in(keys, 1), x, steps=60, step_sizes=(0.1, 1.0), reflecting=False)
    )(start)
    close_to(log_w, math.log(2 * math.pi) - 0.5 * math.log(np.linalg.det(precision)))
    assert 0.5 < np.mean(accepted) <= 1


def test_annealed_weights_have_the_normaliser_on_the_box():
    slope = np.array([8.0, -3.0, 1.0])

    def base(x):
        return jnp.full(x.shape[0], 3 * math.log(2.0)) + 0.0 * x[:, 0]

    keys = KEYS[:300]
    start = 2 * rng.uniform(keys, (3,)) - 1
    x, log_w, _ = jax.jit(
        lambda x: anneal(base, lambda x: x @ slope, rng.fold_in(keys, 1), x, steps=100, reflecting=True)
    )(start)
    close_to(log_w, np.sum(np.log(2 * np.sinh(slope) / slope)))
    assert np.abs(x).max() <= 1


@pytest.mark.parametrize("name", ["gaussians", "rings"])
def test_annealed_weights_have_the_integral_of_densities_of_the_plane(name):
    """exp(-U) is 7 times the density, squeezed into the box: its integral is known, and is what a grid has."""
    density, scale = densities.DENSITIES[name](), densities.EXTENT

    def energy(x):
        return -density.log_prob(scale * x) - math.log(7)

    def base(x):
        return jnp.full(x.shape[0], 2 * math.log(2.0)) + 0.0 * x[:, 0]

    side, keys = 400, KEYS[:400]
    values = np.exp(-np.asarray(jax.jit(energy)(grid_of_box(side)), np.float64))
    log_z = math.log(values.sum() * (2 / side) ** 2)
    assert log_z == pytest.approx(math.log(7 / scale**2), abs=1e-3)
    start = 2 * rng.uniform(rng.fold_in(keys, 2), (2,)) - 1
    _, log_w, accepted = jax.jit(lambda x: anneal(base, energy, rng.fold_in(keys, 1), x, steps=150, reflecting=True))(
        start
    )
    close_to(log_w, log_z)
    assert 0.3 < np.mean(accepted) < 1


def test_hamiltonian_steps_keep_their_distribution():
    """Chains that start as exact samples stay samples, at step sizes at which a good part is refused."""

    def energy(x):
        return jnp.sum(mixture(x), axis=1)

    grid = np.linspace(-1, 1, 20_001)
    u = (np.arange(NUM) + 0.5) / NUM
    exact = np.interp(np.random.default_rng(0).permutation(u), cdf(mixture, -1.0, 1.0)(grid), grid)
    size = jnp.full(NUM, 0.45)

    @jax.jit
    def walk(x):
        def evaluate(x):
            return chains_at(x, lambda x: 0.0 * x[:, 0], energy)

        def step(chains, number):
            how = {"leapfrog": 2, "reflecting": True}
            return hamiltonian_step(evaluate, 1.0, rng.fold_in(KEYS, number), chains, size, **how)

        chains, accepted = jax.lax.scan(step, evaluate(x), jnp.arange(20))
        return chains.x, accepted

    x, accepted = walk(jnp.asarray(exact, jnp.float32)[:, None])
    assert 0.2 < np.mean(accepted) < 0.95
    assert np.mean(np.abs(x[:, 0] - exact) > 0.1) > 0.5  # they moved
    assert kstest(x[:, 0], cdf(mixture, -1.0, 1.0)).pvalue > 1e-3
