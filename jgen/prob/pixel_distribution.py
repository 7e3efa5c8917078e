"""The distribution of an image's pixels given the output of a decoder: its log-probability, samples and mean."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr

from jgen.core import keys as rng
from jgen.prob.likelihoods import (
    bernoulli_log_prob,
    discretised_logistic_log_prob,
    discretised_normal_log_prob,
    flatten,
    sum_image,
)
from jgen.prob.pixels import to_uint8


class PixelDistribution(NamedTuple):
    """A decoder's distribution of pixels: mean and scale (B, H, W, C) on [-1, 1]; for Bernoulli, `mean` holds the
    logits."""

    decoder: str
    levels: int
    mean: jax.Array
    scale: Any

    def flat(self) -> tuple[jax.Array, Any]:
        """Mean and scale, (B, H W C); a scale shared by all pixels remains a scalar."""
        is_scalar = getattr(self.scale, "ndim", 0) == 0
        return flatten(self.mean), self.scale if is_scalar else flatten(self.scale)

    def log_prob(self, images: jax.Array) -> jax.Array:
        """Nats of uint8 images, float32 (B,)."""
        x, mean, scale = flatten(images), *self.flat()
        if self.decoder == "bernoulli":
            return sum_image(bernoulli_log_prob(x.astype(jnp.float32), mean))
        log_prob = discretised_normal_log_prob if self.decoder == "gaussian" else discretised_logistic_log_prob
        return sum_image(log_prob(x, mean, scale, self.levels))

    def draw(self, keys: jax.Array) -> jax.Array:
        """uint8 images, each pixel drawn independently and rounded to the nearest level: the bins of `log_prob`."""
        mean, scale = self.flat()
        if self.decoder == "gaussian":
            drawn = to_uint8(mean + scale * rng.normal(keys, mean.shape[1:]), self.levels)
        else:
            noise = jax.vmap(lambda key: jax.random.logistic(key, mean.shape[1:]))(keys)
            binary = self.decoder == "bernoulli"
            drawn = (mean + noise > 0).astype(jnp.uint8) if binary else to_uint8(mean + scale * noise, self.levels)
        return drawn.reshape(self.mean.shape)

    def at_noise(self, eps: jax.Array) -> jax.Array:
        """Unrounded pixels, float (B, H, W, C), from standard normal noise: mean + scale F(eps), where F is the
        identity for a Gaussian, and maps the normal to the standard logistic distribution for a logistic."""
        assert self.decoder != "bernoulli"
        noise = eps if self.decoder == "gaussian" else log_ndtr(eps) - log_ndtr(-eps)
        return self.mean + self.scale * noise

    def show(self) -> jax.Array:
        """The mean as uint8 images, rounded to the nearest level."""
        x = 2.0 * jax.nn.sigmoid(self.mean) - 1.0 if self.decoder == "bernoulli" else self.mean
        return to_uint8(x, self.levels)
