"""Networks with a Lipschitz constant below 1, the inverse of x + g(x) with such a g, and chains of them with their log
determinant (Chen et al. 2019, arXiv 1906.02735; Behrmann et al. 2019, arXiv 1811.00995; Gouk et al. 2018, arXiv
1804.04368).

    a layer       W <- W / max(1, |W| / c),  |W| its norm as a linear map, by power iteration
    LipSwish      z sigmoid(softplus(beta) z) / 1.1, whose derivative is below 1
    the inverse   x <- y - g(x) until x does not change: by Banach's theorem there is one such x

So the network's Lipschitz constant is at most c^layers. For a convolution, |W| is the norm of the whole map between
images, including padding, not of the kernel as a matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.core.model import Tree
from jgen.nn.conv import conv
from jgen.nn.flow import ActNorm, apply_chain, embed
from jgen.nn.spectral_norm import operator_norm
from jgen.prob.bijectors import squeeze, unsqueeze
from jgen.prob.roulette import draw_length, estimate_log_det, exact_log_det

MAX_SWISH_DERIVATIVE = 1.1  # of z sigmoid(z): 1.0998
STOP = 0.5  # probability that the roulette ends after each further term, as in the authors' code


def lip_swish(z: jax.Array, beta: Any) -> jax.Array:
    """z sigmoid(softplus(beta) z) / 1.1."""
    return z * nn.sigmoid(nn.softplus(beta) * z) / MAX_SWISH_DERIVATIVE


def apply_linear(kernel: jax.Array, x: jax.Array) -> jax.Array:
    """A kernel (I, O) of x (..., I), or (k, k, I, O) of x (B, H, W, I)."""
    return x @ kernel if kernel.ndim == 2 else conv(x, kernel, cpu="scan")


class LipschitzNetwork(nn.Module):
    """g(x) of x (B, H, W, C) with its parameters as given: `constrain` bounds them.

    widths: features of the hidden layers. convolutional: whether layers are convolutions, 3x3 first and last and 1x1
    between, or dense ones of the whole image. num_classes: 0 for none; the class adds to the first hidden layer.
    """

    widths: tuple[int, ...]
    convolutional: bool = True
    num_classes: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, label: jax.Array | None) -> jax.Array:
        h = x if self.convolutional else x.reshape(x.shape[0], -1)
        sizes = (*self.widths, h.shape[-1])
        for number, features in enumerate(sizes):
            size = 3 if number in (0, len(sizes) - 1) else 1
            window = (size, size) if self.convolutional else ()
            kernel = self.param(f"kernel{number}", nn.initializers.lecun_normal(), (*window, h.shape[-1], features))
            bias = self.param(f"bias{number}", nn.initializers.zeros, (features,))
            if number == 0 and self.num_classes:
                bias = bias[None] + embed(self.num_classes, features, label)
            h = apply_linear(kernel, h) + bias.reshape(-1, *(1,) * (h.ndim - 2), features)
            if number < len(self.widths):
                beta = self.param(f"beta{number}", nn.initializers.constant(0.5), (1,) * h.ndim)
                h = lip_swish(h, beta)
        return h.reshape(x.shape)


def is_kernel(name: str) -> bool:
    return name.startswith("kernel")


def start_vectors(key: jax.Array, params: Any, sides: tuple[int, ...]) -> Any:
    """{kernel: an output of norm 1 for one image}, which power iterations start from.

    Args:
      params: of a `LipschitzNetwork`; sides: height and width of its images.
    """
    names = sorted(name for name in params if name.startswith("kernel"))
    vectors = {}
    for name, own_key in zip(names, jax.random.split(key, len(names))):
        features = params[name].shape[-1]
        shape = (1, features) if params[name].ndim == 2 else (1, *sides, features)
        u = jax.random.normal(own_key, shape)
        vectors[name] = u / jnp.linalg.norm(u)
    return vectors


def constrain(params: Any, vectors: Any, bound: float, iterations: int) -> tuple[Any, Any]:
    """Parameters of a `LipschitzNetwork` with the norm of each kernel at most `bound`, and the next vectors."""
    constrained, new_vectors = dict(params), {}
    for name, u in vectors.items():
        norm, new_vectors[name] = operator_norm(apply_linear, params[name], u, iterations)
        constrained[name] = params[name] / jnp.maximum(1.0, norm / bound)
    return constrained, new_vectors


def invert(
    residual: Callable[[jax.Array], jax.Array], y: jax.Array, tolerance: float, iterations: int
) -> tuple[jax.Array, jax.Array]:
    """x with x + g(x) = y, (B, H, W, C), and whether each image converged, bool (B,).

    An image has converged once no entry changes by more than tolerance (1 + |x|): an image does not depend on its
    batch. Derivatives are those of the equation at its solution, dx = (I + dg/dx)^-1 (dy - dg), by the same iteration.
    """

    def solve(equation: Callable[[jax.Array], jax.Array], start: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, done = iterate_to_fixed_point(residual, y, tolerance, iterations)
        return x, done.astype(x.dtype)  # JAX 0.10 has no tangent for a bool here

    def solve_linear(linear: Callable[[jax.Array], jax.Array], right: jax.Array) -> jax.Array:
        return iterate_to_fixed_point(lambda x: linear(x) - x, right, tolerance, iterations)[0]

    def tangent_solve(linear: Callable[[jax.Array], jax.Array], right: jax.Array) -> jax.Array:
        return jax.lax.custom_linear_solve(linear, right, solve_linear, transpose_solve=solve_linear)

    def equation(x: jax.Array) -> jax.Array:
        return x + residual(x) - y

    x, done = jax.lax.custom_root(equation, y, solve, tangent_solve, has_aux=True)
    return x, done > 0


def iterate_to_fixed_point(
    residual: Callable[[jax.Array], jax.Array], y: jax.Array, tolerance: float, iterations: int
) -> tuple[jax.Array, jax.Array]:
    """x <- y - g(x) from x = y: `invert` without derivatives."""

    def change(x: jax.Array, new: jax.Array) -> jax.Array:
        error = jnp.abs(new - x) / (1 + jnp.abs(x))
        return jnp.max(error.reshape(x.shape[0], -1), axis=1)

    def unfinished(carry: tuple[Any, Any, Any]) -> jax.Array:
        count, _, done = carry
        return (count < iterations) & ~jnp.all(done)

    def iterate(carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        count, x, done = carry
        new = y - residual(x)
        finished = done | (change(x, new) <= tolerance)
        return count + 1, jnp.where(done[:, None, None, None], x, new), finished

    _, x, done = jax.lax.while_loop(unfinished, iterate, (0, y, jnp.zeros(y.shape[:1], bool)))
    return x, done


class Draws(NamedTuple):
    """The keys of a roulette, one shared by all images and one per image (B,), and the number of terms that are always
    computed."""

    key: jax.Array
    keys: jax.Array
    terms: int


def constrain_all(params: Tree, fixed: Tree, bound: float, iterations: int) -> tuple[Tree, Tree]:
    """The parameters with every layer's norm below the bound, and the next vectors of the power iterations."""
    constrained, vectors = dict(params), {}

    def one(block: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
        weights, own = block
        network, own = constrain(weights["network"], own, bound, iterations)
        return {**weights, "network": network}, own

    for scale, own in fixed.items():
        constrained[scale], vectors[scale] = jax.lax.map(one, (params[scale], own))
    return constrained, vectors


def transport(
    network: LipschitzNetwork,
    params: Tree,
    x: jax.Array,
    label: jax.Array | None,
    draws: Draws | None,
    exact: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """Latents of preprocessed images and log_det: exact, or estimated by a roulette with `draws`; with neither, only
    that of the actnorms.

    Args:
      params: constrained.
    """

    def residual(weights: Tree, x: jax.Array) -> jax.Array:
        return network.apply({"params": weights}, x, label)

    def step(block: tuple[Tree, jax.Array], x: jax.Array) -> tuple[jax.Array, jax.Array]:
        weights, number = block
        x, log_det = ActNorm().apply({"params": weights["actnorm"]}, x)
        if draws is not None:
            v = rng.normal(rng.fold_in(draws.keys, number), x.shape[1:], x.dtype)
            length = draw_length(jax.random.fold_in(draws.key, number), draws.terms, STOP)
            y, change = estimate_log_det(residual, weights["network"], x, v, length, draws.terms, STOP)
        elif exact:
            y, change = exact_log_det(residual, weights["network"], x)
        else:
            y, change = x + residual(weights["network"], x), jnp.zeros_like(log_det)
        return y, log_det + change

    total, first = jnp.zeros(x.shape[:1], x.dtype), 0
    for scale in scales_of(params):
        x = squeeze(x) if first else x
        blocks = jax.tree.leaves(params[scale])[0].shape[0]
        x, log_det = apply_chain(step, (params[scale], first + jnp.arange(blocks)), x)
        total, first = total + log_det, first + blocks
    z, log_det = ActNorm().apply({"params": params["actnorm"]}, x)
    return z, total + log_det


def scales_of(params: Tree) -> list[str]:
    """The names of the scales in order."""
    return [f"scale{number}" for number in range(len(params) - 1)]


def inverse_transport(
    network: LipschitzNetwork, params: Tree, z: jax.Array, label: jax.Array | None, tolerance: float, iterations: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Preprocessed images of latents, and {scale: whether the fixed point converged, bool (blocks, B)}."""

    def step(y: jax.Array, weights: Tree) -> tuple[jax.Array, jax.Array]:
        x, done = invert(lambda x: network.apply({"params": weights["network"]}, x, label), y, tolerance, iterations)
        return ActNorm().apply({"params": weights["actnorm"]}, x, True)[0], done

    x, converged = ActNorm().apply({"params": params["actnorm"]}, z, True)[0], {}
    for scale in reversed(scales_of(params)):
        x, converged[scale] = jax.lax.scan(step, x, params[scale], reverse=True)
        x = unsqueeze(x) if scale != "scale0" else x
    return x, converged
