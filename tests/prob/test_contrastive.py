"""The contrastive loss against a plain double loop, and the same on several devices."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgen.core import parallel
from jgen.prob.contrastive import contrastive_losses, nearest, noise_contrast

RNG = np.random.default_rng(0)
A, B, SCALE = RNG.normal(size=(8, 5)), RNG.normal(size=(8, 5)), 1.7


def looped(a, b, scale):
    """Equation by equation, in float64."""
    losses = []
    for i in range(len(a)):
        image_terms = [math.exp(scale * sum(a[i] * b[j])) for j in range(len(b))]
        text_terms = [math.exp(scale * sum(a[j] * b[i])) for j in range(len(a))]
        losses.append(-0.5 * (math.log(image_terms[i] / sum(image_terms)) + math.log(text_terms[i] / sum(text_terms))))
    return np.array(losses)


def on_devices(number, function, *arrays):
    """A function of batches, on devices that have parts of them in order as under `parallel.pmap`: stacked results."""
    parts = [jnp.asarray(x).reshape(number, -1, *x.shape[1:]) for x in arrays]
    with parallel._inside():
        return jax.jit(jax.vmap(function, axis_name=parallel.AXIS))(*parts)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_losses_are_those_of_a_plain_double_loop(devices):
    losses = on_devices(devices, lambda a, b: contrastive_losses(a, b, SCALE), np.float32(A), np.float32(B))
    np.testing.assert_allclose(losses.ravel(), looped(A, B, SCALE), rtol=2e-5)
    alone = contrastive_losses(jnp.float32(A), jnp.float32(B), SCALE)
    np.testing.assert_allclose(alone, looped(A, B, SCALE), rtol=2e-5)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_the_mean_gradient_over_devices_is_that_of_the_whole_batch(devices):
    """By central differences of the loop; of weights that all devices share, before the embeddings and in the scale."""
    weights = RNG.normal(size=(5, 5)) / 2

    def whole(weights, scale):
        return looped(A @ weights, B @ weights**2, scale).mean()

    def mean_loss(parameters, a, b):
        weights, scale = parameters
        return jnp.mean(contrastive_losses(a @ weights, b @ weights**2, scale))

    parameters = (jnp.float32(weights), jnp.float32(SCALE))
    gradients = on_devices(devices, lambda a, b: jax.grad(mean_loss)(parameters, a, b), np.float32(A), np.float32(B))
    weight_gradient, scale_gradient = (jnp.mean(gradient, axis=0) for gradient in gradients)
    step = 1e-5
    for place in np.ndindex(5, 5):
        move = np.zeros((5, 5))
        move[place] = step
        difference = (whole(weights + move, SCALE) - whole(weights - move, SCALE)) / (2 * step)
        assert weight_gradient[place] == pytest.approx(difference, rel=1e-3, abs=1e-5)
    difference = (whole(weights, SCALE + step) - whole(weights, SCALE - step)) / (2 * step)
    assert scale_gradient == pytest.approx(difference, rel=1e-3)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_the_nearest_is_of_all_devices(devices):
    places = on_devices(devices, nearest, np.float32(A), np.float32(B)).ravel()
    assert places.tolist() == [max(range(8), key=lambda j, i=i: float(A[i] @ B[j])) for i in range(8)]


def test_noise_contrast_recovers_a_known_log_ratio():
    """Of N(1, 0.8^2) and N(0, 1): a quadratic, to which descent comes from zero, with expectations by quadrature."""
    points, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    data, noise = 1.0 + 0.8 * points, points

    def log_ratio(theta, x):
        return theta[0] + theta[1] * x + theta[2] * x**2

    def loss(theta):
        return jnp.sum(weights * noise_contrast(log_ratio(theta, data), log_ratio(theta, noise)))

    @jax.jit
    def newton(theta):
        return theta - jnp.linalg.solve(jax.hessian(loss)(theta), jax.grad(loss)(theta))

    theta = jnp.zeros(3)
    for _ in range(10):
        theta = newton(theta)
    exact = [-0.5 / 0.64 - math.log(0.8), 1 / 0.64, 0.5 - 0.5 / 0.64]
    np.testing.assert_allclose(theta, exact, rtol=1e-3, atol=1e-3)
    # At the optimum the loss is 2 log 2 - 2 JS(p, q), below that of a blind guess.
    assert float(loss(theta)) < float(loss(jnp.zeros(3))) - 0.1


def test_noise_contrast_recovers_a_density_of_the_plane_and_its_normaliser():
    """A correlated Gaussian beside the standard one: six coefficients by Newton's method, with expectations by
    quadrature; the constant is that of a normalised density."""
    axis, weights = np.polynomial.hermite_e.hermegauss(30)
    noise = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    weights = np.outer(weights, weights).ravel() / weights.sum() ** 2
    mean, root = np.array([0.4, -0.3]), np.array([[0.9, 0.0], [0.5, 0.7]])
    precision = np.linalg.inv(root @ root.T)

    def features(x):
        return np.stack([x[:, 0] ** 0, x[:, 0], x[:, 1], x[:, 0] ** 2, x[:, 0] * x[:, 1], x[:, 1] ** 2], axis=1)

    data_features, noise_features = (np.float32(features(x)) for x in (mean + noise @ root.T, noise))

    def loss(theta):
        return jnp.sum(np.float32(weights) * noise_contrast(data_features @ theta, noise_features @ theta))

    @jax.jit
    def newton(theta):
        return theta - jnp.linalg.solve(jax.hessian(loss)(theta), jax.grad(loss)(theta))

    theta = jnp.zeros(6)
    for _ in range(12):
        theta = newton(theta)
    constant = -0.5 * mean @ precision @ mean - np.log(np.linalg.det(root))
    quadratic = 0.5 * (np.eye(2) - precision)
    exact = [constant, *(precision @ mean), quadratic[0, 0], 2 * quadratic[0, 1], quadratic[1, 1]]
    np.testing.assert_allclose(theta, exact, atol=2e-3)
