"""Low-dimensional flows that studies compare with the systems: couplings with dense networks, convex potentials, and
free-form flows, whose encoder and decoder are arbitrary networks.

    coupling      y_1 = x_1,  y_2 = x_2 exp(s) + t  or  logit(F(x_2)) exp(s) + t, of x_1 by a network;
                  F the distribution function of a mixture of logistics (Flow++, arXiv 1902.00275)
    convex        y = grad F(x), F convex, by an input-convex network (Huang et al. 2021, arXiv 2012.05942)
    free-form     z = f(x), x = g(z), of two networks; -log p(x) with  d log |det f'| = tr(g' df'), since g' is trained
                  to be the inverse of f', plus beta |x - g(f(x))|^2        (Draxler et al. 2024, arXiv 2310.16624)

Layers take x (B, 1, 1, 2 n) and return (y, log_det), like those of `jgen/nn/flow.py`.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jgen.nn.flow import ActNorm, InvertibleConv, LogisticMixture
from jgen.prob.bijectors import swap_halves
from jgen.prob.likelihoods import sum_image

NEWTON = 40  # Newton iterations to invert a convex potential's gradient


class Mlp(nn.Module):
    """Dense layers with SiLU between, (B, D) to (B, features)."""

    widths: tuple[int, ...]
    features: int
    last_init: Any = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in self.widths:
            x = nn.silu(nn.Dense(width)(x))
        return nn.Dense(self.features, kernel_init=self.last_init)(x)


class CouplingStep(nn.Module):
    """Actnorm, mixing of the channels, and a coupling; with `inverse` their inverses in reverse order.

    mixtures: components of the logistic mixture, 0 for an affine coupling. learned_mixing: mix the channels by a
    learned matrix, instead of exchanging the halves.
    """

    widths: tuple[int, ...]
    mixtures: int = 0
    learned_mixing: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, inverse: bool = False) -> tuple[jax.Array, jax.Array]:
        norm = ActNorm(name="actnorm")
        mix = InvertibleConv(name="mix") if self.learned_mixing else exchange
        layers = [norm, mix, self.coupling]
        total = jnp.zeros(x.shape[:1], x.dtype)
        for layer in reversed(layers) if inverse else layers:
            x, log_det = layer(x, inverse)
            total = total + log_det
        return x, total

    def coupling(self, x: jax.Array, inverse: bool) -> tuple[jax.Array, jax.Array]:
        x_1, x_2 = jnp.split(x, 2, axis=-1)
        size, count = x_2.shape[-1], 2 + 3 * self.mixtures
        network = Mlp(self.widths, size * count, nn.initializers.zeros, name="network")
        out = network(x_1.reshape(x.shape[0], -1)).reshape(*x_2.shape, count)
        log_s, shift, raw = 2 * jnp.tanh(out[..., 0] / 2), out[..., 1], out[..., 2:]
        if inverse:
            x_2 = (x_2 - shift) * jnp.exp(-log_s)
        log_det = jnp.zeros_like(x_2)
        if self.mixtures:
            mixture = LogisticMixture(self.mixtures, name="mixture")
            x_2, log_det = mixture(x_2, raw.reshape(*x_2.shape[:3], -1), inverse)
        if not inverse:
            x_2 = x_2 * jnp.exp(log_s) + shift
        log_det = log_det - log_s if inverse else log_det + log_s
        return jnp.concatenate([x_1, x_2], axis=-1), sum_image(log_det)


def exchange(x: jax.Array, inverse: bool) -> tuple[jax.Array, jax.Array]:
    """Exchanges the halves of the channels."""
    return swap_halves(x), jnp.zeros(x.shape[:1], x.dtype)


class Potential(nn.Module):
    """F(x) of x (D,), strongly convex: softplus(a) N(x) + softplus(b) |x|^2 / 2, N an input-convex network."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = x
        for number, width in enumerate((*self.widths, 1)):
            new = nn.Dense(width, name=f"input{number}")(x)
            if number:
                start = nn.initializers.normal(1.0)
                raw = self.param(f"convex{number}", start, (h.shape[-1], width))
                new = new + h @ nn.softplus(raw) / h.shape[-1]  # non-negative weights keep it convex
            h = new if number == len(self.widths) else nn.softplus(new)
        scale = self.param("scale", nn.initializers.zeros, (2,))
        return nn.softplus(scale[0]) * h[0] + nn.softplus(scale[1] + 0.5413) * jnp.sum(x**2) / 2


class ConvexStep(nn.Module):
    """Actnorm, then the gradient of a convex potential. The Jacobian, a Hessian, is symmetric and positive definite."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array, inverse: bool = False) -> tuple[jax.Array, jax.Array]:
        norm, potential, shape = ActNorm(name="actnorm"), Potential(self.widths, name="potential"), x.shape
        if self.is_initializing():
            potential(x[0].ravel())
        (x, log_det_norm) = norm(x, False) if not inverse else (x, 0.0)
        params, detached = potential.variables, potential.clone(parent=None)

        def value(x: jax.Array) -> jax.Array:
            return detached.apply(params, x)

        flat = x.reshape(shape[0], -1)
        if inverse:
            flat = jax.vmap(lambda y: minimise(value, y))(flat)
            x, log_det_norm = norm(flat.reshape(shape), True)
            hessian = jax.vmap(jax.hessian(value))(flat)
            return x, log_det_norm - jnp.linalg.slogdet(hessian)[1]
        y, hessian = jax.vmap(jax.grad(value))(flat), jax.vmap(jax.hessian(value))(flat)
        return y.reshape(shape), log_det_norm + jnp.linalg.slogdet(hessian)[1]


def minimise(value: Any, y: jax.Array) -> jax.Array:
    """x with grad F(x) = y: the minimum of F(x) - <x, y>, by Newton's method; steps are halved until it decreases."""

    def objective(x: jax.Array) -> jax.Array:
        return value(x) - jnp.vdot(x, y)

    fractions = 0.5 ** jnp.arange(12, dtype=y.dtype)

    def iterate(_: int, x: jax.Array) -> jax.Array:
        step = jnp.linalg.solve(jax.hessian(value)(x), y - jax.grad(value)(x))
        tried = x[None] + fractions[:, None] * step[None]
        return tried[jnp.argmin(jax.vmap(objective)(tried))]

    return jax.lax.fori_loop(0, NEWTON, iterate, y)
