"""Data whose denoiser is known in closed form, and every process."""

import jax
import jax.numpy as jnp
import numpy as np

from jgen.core import keys as rng
from jgen.prob import process as processes
from jgen.prob.process import Process, per_image, scales
from jgen.prob.schedules import make_schedule

PROCESSES = {
    "vp": processes.variance_preserving(),
    "sub_vp": processes.sub_variance_preserving(),
    "ve": processes.variance_exploding(),
    "cosine": processes.cosine(),
    "linear": processes.linear(),
    "edm": processes.edm(),
    "discrete": processes.discrete(make_schedule("linear", 1000)),
    "log_snr": processes.from_log_snr(lambda t: 8.0 - 14.0 * t),
}
MEAN, STD = 0.2, 0.3


def keys_of(n, seed=1):
    return rng.image_keys(jax.random.key(seed), jnp.arange(n))


def pixelwise(process, mean=MEAN, std=STD):
    """E[x_0 | x_t] for data N(mean, std^2) in every pixel."""

    def denoiser(x_t, t):
        alpha, sigma = scales(process, t, x_t)
        return mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x_t - alpha * mean)

    return denoiser


def mixture(process, weights, means, covariance):
    """E[x_0 | x_t] of images that are a mixture of Gaussians with one covariance, in whose eigenvectors pixels are
    independent; means (K, d), covariance (d, d)."""
    values, vectors = np.linalg.eigh(covariance)

    def denoiser(x_t, t):
        values_, vectors_, means_, log_weights = (
            jnp.asarray(a, x_t.dtype) for a in (values[None, None], vectors, (means @ vectors)[None], np.log(weights))
        )
        y = (x_t.reshape(len(t), -1) @ vectors_)[:, None]  # (B, 1, d)
        alpha, sigma = per_image(process.alpha(t), y), per_image(process.sigma(t), y)
        variance, error = alpha**2 * values_ + sigma**2, y - alpha * means_
        share = jax.nn.softmax(log_weights[None] - 0.5 * jnp.sum(error**2 / variance, -1))
        x_0 = jnp.sum(share[..., None] * (means_ + alpha * values_ / variance * error), 1)
        return (x_0 @ vectors_.T).reshape(x_t.shape)

    return denoiser


def tabulated(t, alpha, sigma):
    """The process with these values at the times t (n,), and none between: as arrays, so that processes can share a
    compiled program. All images of a batch are at the first one's time."""

    def at(values):
        return lambda time: jnp.full_like(time, values[jnp.argmin(jnp.abs(time[0] - t))])

    return Process(at(alpha), at(sigma))


def flow_map(process, t, s, x, mean=MEAN, std=STD):
    """Where the probability flow of data N(mean, std^2) takes x_t: it keeps quantiles. On the host."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = ((process.alpha(np.array(u)), process.sigma(np.array(u))) for u in (t, s))
    z = (x - alpha_t * mean) / np.sqrt(alpha_t**2 * std**2 + sigma_t**2)
    return alpha_s * mean + np.sqrt(alpha_s**2 * std**2 + sigma_s**2) * z
