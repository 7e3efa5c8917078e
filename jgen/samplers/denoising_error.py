"""The diffusion bound of an image up to a constant, from a denoiser alone (Kingma et al. 2021, arXiv 2107.00630; as a
classifier: Li et al. 2023, arXiv 2303.16203).

    -log p(x_0) <= constant + int E |eps - eps_hat(x_t)|^2 dlambda,  lambda = log(alpha / sigma)

over the noise-to-signal ratios sigma / alpha from half the distance between two levels to `LARGEST`, with one draw of
eps at each of `times` evenly spaced values of lambda. Given the same keys, an image's classes are compared with the
same noise.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from jgen.core import keys as rng
from jgen.prob.likelihoods import sum_image
from jgen.prob.process import Denoiser, Process, add_noise, library, noise_of, time_of

LARGEST = 20.0  # sigma / alpha, where an image in [-1, 1] is lost in the noise


def denoising_error(
    denoiser: Denoiser,
    process: Process,
    x_0: jax.Array,
    keys: jax.Array,
    levels: int,
    times: int = 32,
    num_timesteps: int = 0,
) -> jax.Array:
    """The bound on -log p(x_0) up to a constant, nats (B,); x_0 float (B, H, W, C) in [-1, 1].

    Args:
      levels: of the pixels; num_timesteps: T of the chain that the denoiser was trained on, 0 in continuous time.
    """
    low, high = -math.log(LARGEST), math.log(max(levels - 1, 1))
    t = time_of(process, low + (np.arange(times) + 0.5) / times * (high - low))
    if num_timesteps:
        lib = library(t)
        t = lib.clip(lib.ceil(t * num_timesteps), 1, num_timesteps) / num_timesteps

    def add(total: jax.Array, scanned: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        number, at = scanned
        at = jnp.full(x_0.shape[:1], at)
        eps = rng.normal(rng.fold_in(keys, number), x_0.shape[1:])
        x_t = add_noise(process, x_0, at, eps)
        return total + sum_image((eps - noise_of(process, x_t, at, denoiser(x_t, at))) ** 2), None

    rows = jnp.arange(times), jnp.asarray(t, jnp.float32)
    total, _ = jax.lax.scan(add, jnp.zeros(len(x_0)), rows)
    return total * ((high - low) / times)
