"""Autoregressive affine layers of a flow by causal transformers (Zhai et al. 2024, arXiv 2412.06329, section 2.2).

    layer   z_0 = x_0,  z_i = (x_i - mu_i(x_<i)) exp(-alpha_i(x_<i)),  log_det = -sum_i alpha_i           (x to z)
    back    x_0 = z_0,  x_i = exp(alpha_i(x_<i)) z_i + mu_i(x_<i), one i after another
    guided  mu + w (mu - mu_weak) instead of mu, and the same of alpha, w a weight by position        (section 2.6)

x_i is patch i of N. The transformer sees patch i at position i, whose output is mu and alpha of patch i + 1. Layers of
a chain alternate in direction: each reverses the order of its output. The weak moments are those without a class, whose
embedding is the mean of the classes' embeddings, and with another attention temperature. The inverse caches keys and
values: each position takes one evaluation, at that position only.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.nn.transformer import Cache, CausalTransformer


class AutoregressiveLayer(nn.Module):
    """(x (B, N, D), label int (B,) or None) to (z, log_det); it starts as the identity, with the order reversed.

    positions: N. size: D. num_classes: 0 for none; the label `num_classes` stands for no class. dtype: of the
    transformer's arithmetic, None for that of x. Other fields are those of `CausalTransformer`.
    """

    positions: int
    size: int
    features: int
    heads: int
    layers: int
    hidden: int
    num_classes: int = 0
    remat: bool = False
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        init = nn.initializers.normal(0.3)  # relative to embeddings of standardised patches
        self.embed = nn.Dense(self.features)
        self.places = self.param("places", init, (self.positions, self.features))
        if self.num_classes:
            self.classes = self.param("classes", init, (self.num_classes, self.features))
        sizes = (self.features, self.heads, self.layers, self.hidden, self.features)
        self.transformer = CausalTransformer(*sizes, remat=self.remat, dtype=self.dtype)
        self.out = nn.Dense(2 * self.size, kernel_init=nn.initializers.zeros)

    def __call__(self, x: jax.Array, label: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        mu, alpha = self.moments(x, label)
        z = (x - mu) * jnp.exp(-alpha)
        return z[:, ::-1], -jnp.sum(alpha, axis=(1, 2))

    def moments(self, x: jax.Array, label: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """mu and alpha (B, N, D), of which those of patch i depend on the patches before it."""
        h = self.embed(x) + self.places[None] + self.context(label)[:, None]
        out = self.out(self.transformer(h).astype(x.dtype))
        out = jnp.pad(out[:, :-1], ((0, 0), (1, 0), (0, 0)))
        mu, alpha = jnp.split(out, 2, axis=-1)
        return mu, alpha

    def context(self, label: jax.Array | None) -> jax.Array:
        """The input that all positions of an image share, (B or 1, features)."""
        if not self.num_classes or label is None:
            return jnp.zeros((1, self.features))
        return jnp.concatenate([self.classes, jnp.mean(self.classes, axis=0, keepdims=True)])[label]

    # One position at a time: see `invert`.

    def start(self, batch: int) -> list[Cache]:
        """The caches before the first position."""
        return self.transformer.start(jnp.zeros((batch, 0, self.features)), self.positions)

    def step(
        self,
        x: jax.Array,
        label: jax.Array | None,
        caches: list[Cache],
        i: jax.Array,
        temperature: jax.Array | None = None,
    ) -> tuple[Any, Any]:
        """(mu, alpha) of patch i + 1, each (B, D), given patch i, (B, D); and the caches with it. temperature: (B,)."""
        h = self.embed(x) + self.places[i][None] + self.context(label)
        h, caches = self.transformer.step(h, caches, i, temperature)
        mu, alpha = jnp.split(self.out(h.astype(x.dtype)), 2, axis=-1)
        return (mu, alpha), caches


def invert(
    layer: AutoregressiveLayer,
    params: Any,
    z: jax.Array,
    label: jax.Array | None,
    weights: jax.Array | None = None,
    weak_temperature: float = 1.0,
) -> jax.Array:
    """x (B, N, D) from z, by one scan over the positions.

    Args:
      weights: (N - 1,), of the guidance of patches 1 .. N - 1; None for none. With guidance, the layer is evaluated
        as it is and weakly, in one batch of 2 B.
      weak_temperature: of the weak copy's attention.
    """
    z, temperature = z[:, ::-1], None
    batch, copies = z.shape[0], 1 if weights is None else 2
    if weights is not None:
        temperature = jnp.repeat(jnp.array([1.0, weak_temperature]), batch)
        label = None if label is None else jnp.concatenate([label, jnp.full_like(label, layer.num_classes)])

    def one(carry: tuple, inputs: tuple) -> tuple[tuple, jax.Array]:
        caches, x = carry
        i, z_next, weight = inputs
        patch = jnp.concatenate([x] * copies)
        moments, caches = layer.apply(params, patch, label, caches, i, temperature, method="step")
        if weight is not None:
            strong, weak = zip(*(jnp.split(part, 2) for part in moments))
            moments = tuple(s + weight * (s - w) for s, w in zip(strong, weak))
        mu, alpha = moments
        x = jnp.exp(alpha) * z_next + mu
        return (caches, x), x

    caches = layer.apply(params, copies * batch, method="start")
    inputs = (jnp.arange(layer.positions - 1), z[:, 1:].swapaxes(0, 1), weights)
    _, after = jax.lax.scan(one, (caches, z[:, 0]), inputs)
    return jnp.concatenate([z[:, :1], after.swapaxes(0, 1)], axis=1)
