"""Layers of normalising flows (flax.linen), NHWC, and chains of identical layers compiled as one.

A layer is called as layer(x, ..., inverse) and returns (y, log_det): y is x mapped forward, from images towards
latents, or with `inverse` backward; log_det (B,) is the log of the absolute determinant of that map's Jacobian, nats.
Data-dependent initialisation happens in `init`, whose x must be the whole first batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.nn.conv import conv
from jgen.prob import mixture_cdf
from jgen.prob.bijectors import affine, assemble_lu, invert_lu

SMALLEST_STD = 1e-6

Mapped = tuple[jax.Array, jax.Array]  # y, and log |det dy/dx| of each example, (B,)


def log_std(x: jax.Array) -> jax.Array:
    """log of the standard deviation of each channel over batch and positions: (B, H, W, C) to (C,)."""
    return jnp.log(jnp.std(x, axis=(0, 1, 2)) + SMALLEST_STD)


def network_dtype(name: str) -> Any:
    """The `dtype` of a coupling's convolutions for an option's "float32" or "bfloat16".

    float32 is None, the input's type, so that a flow can be checked in float64.
    """
    return jnp.bfloat16 if name == "bfloat16" else None


def cast(x: jax.Array, dtype: DTypeLike | None) -> jax.Array:
    """x as `dtype`; None leaves it."""
    return x if dtype is None else x.astype(dtype)


def spread(value: Any, x: jax.Array) -> jax.Array:
    """One value per example, () or (B,), as (B,)."""
    return jnp.broadcast_to(value, x.shape[:1])


def embed(num_classes: int, features: int, label: jax.Array | None) -> Any:
    """A learned vector per class, initialised at zero: int (B,) to (B, features)."""
    return nn.Embed(num_classes, features, embedding_init=nn.initializers.zeros, name="classes")(label)


def standardising(module: nn.Module, y: Callable[[], Any], features: int) -> tuple[Any, Any]:
    """Parameters log_scale and bias (features,) that standardise the first batch's y: scale y + bias."""
    zeros = jnp.zeros(features)  # flax needs the shapes even if the parameters exist already
    first = y() if module.is_initializing() else None

    def init_log_scale(key: jax.Array) -> Any:
        return zeros if first is None else -log_std(first)

    def init_bias(key: jax.Array) -> Any:
        return zeros if first is None else -jnp.mean(first, axis=(0, 1, 2)) * jnp.exp(log_scale)

    log_scale = module.param("log_scale", init_log_scale)
    return log_scale, module.param("bias", init_bias)


class ActNorm(nn.Module):
    """y = s x + b per channel, initialised so that the output of the first batch has mean 0 and deviation 1 (table
    1)."""

    @nn.compact
    def __call__(self, x: jax.Array, inverse: bool = False) -> Mapped:
        log_scale, bias = standardising(self, lambda: x, x.shape[-1])
        log_det = spread(x.shape[1] * x.shape[2] * jnp.sum(log_scale), x)
        if inverse:
            return (x - bias[None, None, None, :]) * jnp.exp(-log_scale)[None, None, None, :], -log_det
        return x * jnp.exp(log_scale)[None, None, None, :] + bias[None, None, None, :], log_det


class InvertibleConv(nn.Module):
    """y = W x at every position, W = P L (U + diag(s)) (C, C), started at a random rotation (equations 9 to 11).

    P and the signs of s keep their initial values, in the collection "fixed".
    """

    @nn.compact
    def __call__(self, x: jax.Array, inverse: bool = False) -> Mapped:
        size = x.shape[-1]

        lu, start = jnp.zeros((size, size)), None
        if self.is_initializing():
            rotation = nn.initializers.orthogonal()(self.make_rng("params"), (size, size))
            lu, _, rows = jax.lax.linalg.lu(rotation)
            start = jnp.argsort(rows)
        lower = self.param("lower", lambda key: jnp.tril(lu, -1))
        upper = self.param("upper", lambda key: jnp.triu(lu, 1))
        log_s = self.param("log_s", lambda key: jnp.log(jnp.abs(jnp.diag(lu))))
        order = self.variable("fixed", "order", lambda: start).value
        sign = self.variable("fixed", "sign", lambda: jnp.sign(jnp.diag(lu))).value
        build = invert_lu if inverse else assemble_lu
        W = build(lower, upper, sign * jnp.exp(log_s), order)
        log_det = spread(x.shape[1] * x.shape[2] * jnp.sum(log_s), x)
        return jnp.einsum("bhwc,dc->bhwd", x, W, precision="highest"), -log_det if inverse else log_det


class Permutation(nn.Module):
    """A fixed permutation of the channels: drawn at the start, or with `reverse` their reversal."""

    reverse: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, inverse: bool = False) -> Mapped:
        zero = spread(jnp.zeros((), x.dtype), x)
        if self.reverse:
            return x[..., ::-1], zero
        order = self.variable("fixed", "order", lambda: self.draw(x.shape[-1])).value
        return jnp.take(x, jnp.argsort(order) if inverse else order, axis=-1), zero

    def draw(self, size: int) -> jax.Array:
        """A random order of the channels."""
        return jax.random.permutation(self.make_rng("params"), size)


def convolve(x: jax.Array, kernel: jax.Array, dtype: DTypeLike | None) -> jax.Array:
    """x (B, H, W, C), kernel (k, k, C, O), to (B, H, W, O), computed in `dtype`; with None, in the type of x.

    Couplings are differentiated inside the scan of `apply_chain`.
    """
    return conv(cast(x, dtype), cast(kernel, dtype), cpu="scan")


class ScaledConv(nn.Module):
    """A convolution with a scale and a bias per channel, initialised so that the output of the first batch is
    standardised.

    It is a convolution followed by actnorm, with the scale multiplied into the kernel. Each class, if there are any,
    adds its own bias. Parameters are float32; `dtype` is the type of the arithmetic, None for x's.
    """

    features: int
    size: int = 3
    num_classes: int = 0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, label: jax.Array | None = None) -> jax.Array:
        """x (B, H, W, C), label int (B,) or None, to (B, H, W, features)."""
        init = nn.initializers.normal(0.05)
        kernel = self.param("kernel", init, (self.size, self.size, x.shape[-1], self.features))

        def unscaled() -> jax.Array:
            return convolve(x, kernel, self.dtype).astype(kernel.dtype)

        log_scale, bias = standardising(self, unscaled, self.features)
        offset = bias[None, :]
        if self.num_classes:
            offset = offset + embed(self.num_classes, self.features, label)
        y = convolve(x, kernel * jnp.exp(log_scale)[None, None, None, :], self.dtype)
        return y + cast(offset, self.dtype)[:, None, None, :]


class ZeroConv(nn.Module):
    """A convolution initialised at zero, with which a coupling starts as the identity."""

    features: int
    size: int = 3
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        zeros = nn.initializers.zeros
        kernel = self.param("kernel", zeros, (self.size, self.size, x.shape[-1], self.features))
        bias = self.param("bias", zeros, (self.features,))
        return convolve(x, kernel, self.dtype) + cast(bias, self.dtype)[None, None, None, :]


class LogisticMixture(nn.Module):
    """Maps each entry of x by `jgen.prob.mixture_cdf`, with the parameters that a coupling's network gives.

    The components are initialised differently, since otherwise their gradients would always be equal.
    """

    mixtures: int

    @nn.compact
    def __call__(self, x: jax.Array, raw: jax.Array, inverse: bool = False) -> Mapped:
        """x (B, H, W, C), raw (B, H, W, 3 K C), to y and log |dy/dx| of each entry, (B, H, W, C)."""
        logits, means, log_scales = jnp.split(raw.reshape(*x.shape, 3 * self.mixtures), 3, axis=-1)
        start = jnp.linspace(-1.5, 1.5, self.mixtures)
        means = means + self.param("means", lambda key: start)[None, None, None, None, :]
        # From 0.05 to 20: beyond, rounding errors would dominate the inverse.
        mixture = mixture_cdf.Mixture(logits, means, 3 * jnp.tanh(log_scales / 3))
        return mixture_cdf.invert(mixture, x) if inverse else mixture_cdf.apply(mixture, x)


class GaussianPrior(nn.Module):
    """Standardises z under a learned Gaussian: eps = (z - mean) / std.

    Mean and std are computed by a 3x3 convolution of `given` (B, H, W, C'), the channels that remain in the flow, or if
    that is None are one parameter per channel; the class adds to both.
    """

    num_classes: int = 0

    @nn.compact
    def __call__(self, z: jax.Array, given: jax.Array | None, label: jax.Array | None, inverse: bool = False) -> Mapped:
        """z or eps (B, H, W, C), given or None, label int (B,) or None."""
        features, zeros = 2 * z.shape[-1], nn.initializers.zeros
        mean_and_log_std = jnp.zeros((1, 1, 1, 1), z.dtype)
        if given is not None:
            mean_and_log_std = mean_and_log_std + ZeroConv(features, name="given")(given)
        else:
            mean_and_log_std = mean_and_log_std + self.param("bias", zeros, (features,))[None, None, None, :]
        if self.num_classes:
            mean_and_log_std = mean_and_log_std + embed(self.num_classes, features, label)[:, None, None, :]
        mean, log_std = jnp.split(jnp.broadcast_to(mean_and_log_std, (*z.shape[:3], features)), 2, axis=-1)
        return affine(z, -mean, -log_std, inverse)


# A chain of `depth` identical layers is a scan over one layer, with variables stacked along a first axis: it compiles
# as fast as one layer.

Step = Callable[[Any, Any], tuple[Any, Any]]  # (variables of one layer, x) -> (y, log_det)


def init_chain(
    init: Callable[[jax.Array, Any, Any], Any], key: jax.Array, x: jax.Array, settings: Any
) -> tuple[Any, Any]:
    """Variables of a chain, each layer initialised on the output of the one before; and the output of the last.

    Args:
      init: (key, x, setting) -> ((y, log_det), variables) of one layer, as `init_with_output` returns them.
      settings: an array (depth,), one setting per layer.
    """

    def one(x: jax.Array, inputs: tuple[jax.Array, Any]) -> tuple[Any, Any]:
        key, setting = inputs
        (y, _), variables = init(key, x, setting)
        return y, variables

    x, stacked = jax.lax.scan(one, x, (jax.random.split(key, settings.shape[0]), settings))
    return stacked, x


def apply_chain(step: Step, stacked: Any, x: jax.Array, inverse: bool = False, remat: bool = False) -> tuple[Any, Any]:
    """(y, log_det) of a chain, from its first layer to its last, or back with `inverse`.

    Args:
      step: (variables, x) -> (y, log_det) of one layer, in the direction asked for.
      stacked: the variables of all layers, with a first axis of length depth.
      remat: recompute the activations inside a layer in the backward pass, so that only the layers' inputs are stored.
    """

    def one(carry: tuple[Any, Any], variables: Any) -> tuple[tuple[Any, Any], None]:
        x, total = carry
        y, log_det = step(variables, x)
        return (y, total + log_det), None

    start = (x, jnp.zeros(x.shape[:1], x.dtype))
    body = jax.checkpoint(one, prevent_cse=False) if remat else one
    return jax.lax.scan(body, start, stacked, reverse=inverse)[0]
