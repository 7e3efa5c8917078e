"""A mixture of logistics cut into levels, the distribution of a pixel's channels (Salimans et al. 2017, 1701.05517).

    P(x) = sum_k w_k prod_c P_k(x_c | x_<c),  w = softmax(logits)                                 (equations 1, 2)
    P_k(x_c | x_<c) = sigmoid((x_c + h - m_kc) / s_kc) - sigmoid((x_c - h - m_kc) / s_kc)         (equation 2)
    m_kc = mu_kc + sum over d < c of a_kcd x_d                                                    (equation 3)

with h half of the distance between two levels; the first and the last level reach to infinity. One component is chosen
for all channels of a pixel; within it, a channel's mean is shifted by the earlier channels. Levels lie on [-1, 1].
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.prob.likelihoods import discretised_logistic_log_prob, sum_image
from jgen.prob.pixels import to_float, to_uint8

MIN_LOG_SCALE = -7.0  # of a logistic on [-1, 1]: an eighth of the distance between two of 256 levels


def num_parameters(mixtures: int, channels: int) -> int:
    """Number of parameters of one pixel's distribution: K (1 + 2 C + C (C - 1) / 2); 10 K for RGB, 3 K for grey."""
    return mixtures * (1 + 2 * channels + channels * (channels - 1) // 2)


class Components(NamedTuple):
    """The K components at n positions, float32, positions last.

    log_weights: log w, (K, n). means, log_scales: mu and log s, (C, K, n). coefficients: a in [-1, 1],
    (C (C - 1) / 2, K, n), in the order (c, d) = (1, 0), (2, 0), (2, 1), ...
    """

    log_weights: jax.Array
    means: jax.Array
    log_scales: jax.Array
    coefficients: jax.Array

    def mean(self, channel: int, before: list[jax.Array]) -> jax.Array:
        """m of equation 3, (K, n), given the channels before it: (K, n) or (1, n) each, on [-1, 1]."""
        mean, first = self.means[channel], channel * (channel - 1) // 2
        for number, x in enumerate(before):
            mean = mean + self.coefficients[first + number] * x
        return mean


class LogisticMixture(NamedTuple):
    """The distribution of images whose pixels are independent given `parameters`.

    parameters: float (B, ..., num_parameters(K, C)), by position: K logits, C K means, C K log scales, which are raised
                to `MIN_LOG_SCALE`, and C (C - 1) / 2 K coefficients before a tanh; components last.
    channels:   C of the images (B, ..., C); levels: values of a channel, 2 to 256.
    """

    parameters: jax.Array
    channels: int
    levels: int

    def components(self) -> Components:
        """Raises ValueError for parameters whose last axis fits no number of components."""
        channels, size = self.channels, self.parameters.shape[-1]
        each = num_parameters(1, channels)
        if size % each or size == 0:
            raise ValueError(f"{size} parameters a pixel: they must be a multiple of {each} for {channels} channels")
        # Positions last: on CPU, XLA vectorises over the last axis.
        p = self.parameters.astype(jnp.float32).reshape(-1, each, size // each).transpose(1, 2, 0)
        means, log_scales, coefficients = jnp.split(p[1:], (channels, 2 * channels))
        log_scales = jnp.maximum(log_scales, MIN_LOG_SCALE)
        return Components(jax.nn.log_softmax(p[0], axis=0), means, log_scales, jnp.tanh(coefficients))

    def pixel_log_prob(self, images: jax.Array) -> jax.Array:
        """log P of every pixel, all its channels together: integers (B, ..., C) to nats, float32 (B, ...)."""
        parts = self.components()
        level = images.reshape(-1, self.channels).T[:, None, :]
        before = list(to_float(level, self.levels))
        log_p = parts.log_weights
        for c in range(self.channels):
            mean = parts.mean(c, before[:c])
            log_p = log_p + discretised_logistic_log_prob(level[c], mean, jnp.exp(parts.log_scales[c]), self.levels)
        return jax.nn.logsumexp(log_p, axis=0).reshape(images.shape[:-1])

    def log_prob(self, images: jax.Array) -> jax.Array:
        """Nats of images, integers (B, ..., C) in 0 .. levels - 1: float32 (B,)."""
        return sum_image(self.pixel_log_prob(images))

    def sample(self, keys: jax.Array, temperature: float = 1.0) -> jax.Array:
        """uint8 images (B, ..., C), one key per image (B,).

        Args:
          temperature: above 0; divisor of the logits and factor on the scales: below 1 favours the likelier components
            and values near their means.
        """
        parts, key_k, key_x = self.components(), *rng.split(keys, 2)
        mixtures, lead = parts.log_weights.shape[0], self.parameters.shape[1:-1]
        noise = jax.vmap(lambda key: jax.random.gumbel(key, (*lead, mixtures)))(key_k)
        chosen = jnp.argmax(parts.log_weights / temperature + noise.reshape(-1, mixtures).T, axis=0)
        is_chosen = jnp.arange(mixtures)[:, None] == chosen[None, :]

        def of_chosen(x: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(is_chosen[None], x, 0.0), axis=1, keepdims=True)

        own = Components(parts.log_weights, *map(of_chosen, parts[1:]))  # (..., 1, n)
        noise = jax.vmap(lambda key: jax.random.logistic(key, (*lead, self.channels)))(key_x)
        noise = noise.reshape(-1, self.channels).T[:, None, :]
        drawn: list[jax.Array] = []
        for c in range(self.channels):
            before = [to_float(x, self.levels) for x in drawn]
            x = own.mean(c, before) + temperature * jnp.exp(own.log_scales[c]) * noise[c]
            drawn.append(to_uint8(x, self.levels))  # the nearest level: the bins of `log_prob`
        return jnp.concatenate(drawn).T.reshape(*self.parameters.shape[:-1], self.channels)

    def mean(self) -> jax.Array:
        """The mean of the logistics before discretisation, float32 (B, ..., C); each component's mean is shifted by the
        means of the earlier channels and clipped to [-1, 1]."""
        parts = self.components()
        means: list[jax.Array] = []
        for c in range(self.channels):
            means.append(jnp.clip(parts.mean(c, means), -1.0, 1.0))
        weighted = jnp.sum(jnp.exp(parts.log_weights)[None] * jnp.stack(means), axis=1)
        return weighted.T.reshape(*self.parameters.shape[:-1], self.channels)
