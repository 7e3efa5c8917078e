"""Embeddings of scalars."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

MAX_PERIOD = 10_000.0


def sinusoidal_embedding(t: jax.Array, dim: int, shift: int = 1) -> jax.Array:
    """Sinusoidal embedding of scalars (B,), to float32 (B, dim): dim / 2 sines, then dim / 2 cosines.

    Frequencies fall geometrically from 1 to 1 / MAX_PERIOD, both included (Vaswani et al. 2017, as used by Ho et al.
    2020). An odd `dim` gets one zero at the end. With shift 0 the last frequency stays above 1 / MAX_PERIOD, as in
    Vaswani et al. and in latent diffusion.
    """
    half = dim // 2
    frequencies = jnp.exp(-math.log(MAX_PERIOD) / max(half - shift, 1) * jnp.arange(half, dtype=jnp.float32))
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
    return jnp.pad(embedding, ((0, 0), (0, dim - 2 * half)))


def fourier_embedding(t: jax.Array, dim: int, scale: float) -> jax.Array:
    """Random Fourier features of scalars (B,), to float32 (B, dim): dim / 2 sines, then dim / 2 cosines; `dim` even.

    The angles are 2 pi f t with f ~ N(0, scale^2) (Tancik et al. 2020, arXiv 2006.10739, as used by Song et al. 2021).
    The frequencies f are not parameters but constants drawn from a fixed seed, the same in every run. They are drawn by
    NumPy's `RandomState`, whose numbers, unlike those of other generators, never change between versions.
    """
    frequencies = scale * np.random.RandomState(0).standard_normal(dim // 2)
    angles = t.astype(jnp.float32)[:, None] * jnp.asarray(2.0 * math.pi * frequencies, jnp.float32)[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


def cosine_embedding(tau: jax.Array, dim: int) -> jax.Array:
    """cos(pi i tau) for i = 0 .. dim - 1, of quantile levels (...) in [0, 1], to float32 (..., dim).

    Dabney et al. 2018, arXiv 1806.06923, equation 4, before its linear layer.
    """
    return jnp.cos(jnp.multiply.outer(tau.astype(jnp.float32), math.pi * jnp.arange(dim, dtype=jnp.float32)))
