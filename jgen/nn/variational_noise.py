"""Variational dequantisation: a flow for the dequantisation noise given the image (Ho et al. 2019, arXiv 1902.00275,
section 3.1).

    u = sigmoid(r),  r the result of affine couplings of eps ~ N(0, I), with scales and shifts by the image
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.nn.conv import Conv
from jgen.nn.flow import ZeroConv, cast
from jgen.prob.bijectors import checkerboard, log_sigmoid
from jgen.prob.likelihoods import normal_log_prob, sum_image

START = 1.7  # the standard deviation of r with which u is nearly uniform


class VariationalNoise(nn.Module):
    """(uint8 images (B, H, W, C), eps of their shape) to u in [0, 1) and log q(u), nats (B,); nearly uniform at first.

    levels: of the images. width: features of the networks. couplings: with alternating checkerboards. dtype: of the
    networks' computation, None for that of eps.
    """

    levels: int
    width: int
    couplings: int = 4
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, images: jax.Array, eps: jax.Array) -> tuple[jax.Array, jax.Array]:
        channels, size = eps.shape[-1], (eps.shape[1], eps.shape[2])
        given = self.layer(images.astype(eps.dtype) / self.levels - 0.5)
        log_scale = self.param("log_scale", nn.initializers.constant(math.log(START)), (channels,))
        log_scale = jnp.broadcast_to(log_scale[None, None, None, :], eps.shape)
        r, log_q = eps * jnp.exp(log_scale), sum_image(normal_log_prob(eps, 0.0, 0.0) - log_scale)
        for number in range(self.couplings):
            mask = checkerboard(*size, number % 2).astype(eps.dtype)
            h = self.layer(self.layer(jnp.concatenate([r * mask, given.astype(eps.dtype)], axis=-1)))
            raw = ZeroConv(2 * channels, dtype=self.dtype)(h).astype(eps.dtype)
            log_s, shift = (1 - mask) * jnp.tanh(raw[..., :channels]), (1 - mask) * raw[..., channels:]
            r, log_q = r * jnp.exp(log_s) + shift, log_q - sum_image(log_s)
        return jax.nn.sigmoid(r), log_q - sum_image(log_sigmoid(r) + log_sigmoid(-r))

    def layer(self, x: jax.Array) -> jax.Array:
        return nn.relu(Conv(self.width, dtype=self.dtype or x.dtype)(cast(x, self.dtype)))
