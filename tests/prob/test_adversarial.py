"""Adversarial losses against the papers' formulas in numpy, penalties against finite differences, diversity by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgen.core import keys as rng
from jgen.core import parallel
from jgen.nn.conv import conv
from jgen.prob import adversarial

OUTPUTS = np.array([-3.0, -1.5, -0.4, 0.0, 0.3, 1.0, 2.5])


def log_d(out):
    """log D for an output before the sigmoid."""
    return np.log(1 / (1 + np.exp(-out)))


def log_not_d(out):
    """log (1 - D)."""
    return np.log(1 - 1 / (1 + np.exp(-out)))


PAPERS = {
    "minimax": (lambda r, f: -(log_d(r) + log_not_d(f)), lambda f: log_not_d(f)),
    "non_saturating": (lambda r, f: -(log_d(r) + log_not_d(f)), lambda f: -log_d(f)),
    "least_squares": (lambda r, f: ((r - 1) ** 2 + (f - 0) ** 2) / 2, lambda f: (f - 1) ** 2 / 2),
    "hinge": (lambda r, f: -(np.minimum(0, -1 + r) + np.minimum(0, -1 - f)), lambda f: -f),
    "wasserstein": (lambda r, f: -(r - f), lambda f: -f),
    "relativistic": (lambda r, f: -log_d(r - f), lambda r, f: -log_d(f - r)),
}


@pytest.mark.parametrize("kind", adversarial.LOSSES)
def test_losses_are_those_of_the_papers(kind):
    real, fake = (grid.ravel() for grid in np.meshgrid(OUTPUTS, OUTPUTS))
    disc_formula, gen_formula = PAPERS[kind]
    disc = adversarial.discriminator_loss(kind, jnp.asarray(real), jnp.asarray(fake))
    np.testing.assert_allclose(disc, disc_formula(real, fake), rtol=2e-6, atol=1e-6)
    pair = (real, fake) if kind in adversarial.RELATIVE_LOSSES else (fake,)
    gen = adversarial.generator_loss(kind, jnp.asarray(fake), jnp.asarray(real))
    np.testing.assert_allclose(gen, gen_formula(*pair), rtol=2e-6, atol=1e-6)
    assert PAPERS.keys() == set(adversarial.LOSSES)
    far = jnp.array([-1e4, 1e4])
    gradient = jax.grad(lambda f: jnp.sum(adversarial.generator_loss(kind, f, -far)))(far)
    assert np.all(np.isfinite(adversarial.discriminator_loss(kind, -far, far))) and np.all(np.isfinite(gradient))
    # The boundary is where the discriminator has no reason to move an output that is real as often as not.
    boundary = adversarial.decision_boundary(kind, jnp.asarray(real), jnp.asarray(fake))
    if kind == "relativistic":  # which sees differences alone: it is halfway between the means, as Wasserstein's
        np.testing.assert_allclose(boundary, np.mean(OUTPUTS), rtol=1e-6)
    move = jax.grad(lambda out: adversarial.discriminator_loss(kind, out, out))(jnp.float32(boundary))
    np.testing.assert_allclose(move, 0.0, atol=1e-7)


def on_two_devices(monkeypatch, function):
    """A function of arrays (2 B, ...) to the results (2,) of two devices, simulated by `vmap`, that have halves."""
    monkeypatch.setattr(parallel, "axis_size", lambda: 2)

    def call(*arrays):
        halves = [x.reshape(2, -1, *x.shape[1:]) for x in arrays]
        return jax.vmap(function, axis_name=parallel.AXIS)(*halves)

    return call


def test_a_wasserstein_critics_boundary_is_halfway_between_its_outputs_on_all_devices(monkeypatch):
    """It moves with a constant added to the critic; the other losses know their boundary."""
    real, fake = jnp.array([3.0, 5.0, 8.0, 0.0]), jnp.array([1.0, -1.0, 2.0, -2.0])
    assert float(adversarial.decision_boundary("wasserstein", real, fake)) == 2.0
    assert float(adversarial.decision_boundary("wasserstein", real + 7.0, fake + 7.0)) == 9.0
    assert adversarial.decision_boundary("least_squares", real, fake) == 0.5
    assert adversarial.decision_boundary("hinge", real, fake) == 0.0
    boundary = functools.partial(adversarial.decision_boundary, "wasserstein")
    np.testing.assert_allclose(on_two_devices(monkeypatch, boundary)(real, fake), [2.0, 2.0])


def critic_of(weights):
    """A convolutional critic with curvature everywhere, of images (B, 4, 4, 2)."""
    kernel, last = weights
    return lambda x: jnp.sum(jnp.tanh(conv(x, kernel, 2)) * last, axis=(1, 2, 3))


def finite_differences(function, x, step=1e-5):
    """The gradient of a function of one array, by central differences in float64."""
    out = np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        moved = x.copy()
        moved[place] += step
        above = function(moved)
        moved[place] -= 2 * step
        out[place] = (above - function(moved)) / (2 * step)
    return out


@pytest.mark.parametrize("kind", adversarial.PENALTIES)
def test_penalties_and_their_gradients_against_finite_differences(kind):
    with jax.enable_x64(True):
        draw = np.random.default_rng(0).standard_normal
        weights = (0.3 * draw((4, 4, 2, 3)), draw((1, 2, 2, 3)))
        real, fake = draw((2, 2, 4, 4, 2))
        keys = rng.image_keys(jax.random.key(3), jnp.arange(2))
        u = np.array([[jax.random.uniform(key, (), jnp.float32)] for key in keys]).reshape(2, 1, 1, 1)
        assert 0 < u[0, 0, 0, 0] != u[1, 0, 0, 0] < 1

        def output(x):
            return float(critic_of(weights)(x[None])[0])

        def squares(points):
            return np.array([np.sum(finite_differences(output, point) ** 2) for point in points])

        expected = {
            "gradient_penalty": lambda: (np.sqrt(squares(u * real + (1 - u) * fake)) - 1) ** 2,
            "r1": lambda: squares(real) / 2,
            "r1_r2": lambda: (squares(real) + squares(fake)) / 2,
        }[kind]()

        def penalty(weights):
            return adversarial.penalty(kind, critic_of(weights), real, fake, keys)

        values = penalty(weights)
        assert values.shape == (2,)
        np.testing.assert_allclose(values, expected, rtol=1e-6)
        # What training follows: the gradient of the penalty in the weights, a derivative of second order.
        total = jax.jit(lambda kernel: jnp.mean(penalty((kernel, weights[1]))))
        differences = finite_differences(lambda kernel: float(total(kernel)), weights[0])
        np.testing.assert_allclose(jax.grad(total)(weights[0]), differences, rtol=1e-5, atol=1e-8)


def plane(scale):
    """A critic with |grad| = scale everywhere, of images (B, 2, 2, 1)."""
    return lambda x: scale * jnp.sum(x, axis=(1, 2, 3)) / 2.0


def test_a_critic_of_gradient_norm_one_has_no_gradient_penalty_and_a_constant_one_a_finite_gradient():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2, 2, 1)), jnp.float32)
    keys = rng.image_keys(jax.random.key(0), jnp.arange(3))
    np.testing.assert_allclose(adversarial.gradient_penalty(plane(1.0), x, -x, keys), np.zeros(3), atol=1e-6)
    np.testing.assert_allclose(adversarial.gradient_penalty(plane(3.0), x, -x, keys), np.full(3, 4.0), rtol=1e-5)
    np.testing.assert_allclose(adversarial.r1_penalty(plane(3.0), x), np.full(3, 4.5), rtol=1e-5)
    gradient = jax.grad(lambda s: jnp.sum(adversarial.gradient_penalty(plane(s), x, -x, keys)))(0.0)
    assert np.isfinite(gradient)


def pixels(*values):
    """Images of one pixel."""
    return jnp.asarray(values, jnp.float32).reshape(-1, 1, 1, 1)


def test_diversity_by_hand():
    label = jnp.array([0, 0, 1, 1])
    # Class means 2 and 10: squared distances 1, 1, 4, 4. Generated: means 5 and 8; 4, 4, 0, 0.
    real, fake = pixels(1, 3, 8, 12), pixels(3, 7, 8, 8)
    np.testing.assert_allclose(adversarial.relative_diversity(fake, real, label, 2), np.sqrt(8 / 10), rtol=1e-6)
    # As one class: means 6 and 6.5; squares 25 + 9 + 4 + 36 and 12.25 + 0.25 + 2.25 + 2.25.
    np.testing.assert_allclose(adversarial.relative_diversity(fake, real, None, 0), np.sqrt(17 / 74), rtol=1e-6)
    collapsed = pixels(4, 4, 9, 9)  # one image a class
    assert adversarial.relative_diversity(collapsed, real, label, 2) < 1e-3
    assert adversarial.relative_diversity(collapsed, real, None, 0) > 0.3  # why classes are taken apart
    assert np.isnan(adversarial.relative_diversity(fake, real, jnp.arange(4), 4))


def test_diversity_is_of_the_batch_of_all_devices(monkeypatch):
    draw = np.random.default_rng(0).standard_normal
    real, fake = jnp.asarray(draw((8, 2, 2, 1))), jnp.asarray(0.5 * draw((8, 2, 2, 1)))
    label = jnp.arange(8) % 3
    whole = adversarial.relative_diversity(fake, real, label, 3)
    diversity = on_two_devices(monkeypatch, functools.partial(adversarial.relative_diversity, num_classes=3))
    np.testing.assert_allclose(diversity(fake, real, label), np.full(2, whole), rtol=1e-5)
