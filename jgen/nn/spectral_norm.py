"""Spectral normalisation (Miyato, Kataoka, Koyama & Yoshida 2018, arXiv 1802.05957).

    v = W^T u / |W^T u|,  u <- W v / |W v|,  sigma = u^T W v,  W_SN = W / sigma                    (algorithm 1)

W is the kernel with its last axis, the outputs, as rows and all others as columns. u and v are constants to the
gradient. The state is just u; it depends on the weights only, so it is the same on all devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.nn.conv import CpuForm, Padding, conv

EPSILON = 1e-12
Operator = Callable[[jax.Array, jax.Array], jax.Array]  # (kernel (..., I, O), v (..., I)) to (..., O), linear in v


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.sum(x * x) + EPSILON)


def start_vector(key: jax.Array, kernel: jax.Array, iterations: int = 20) -> jax.Array:
    """An initial u (O,) for a kernel (..., O): a random direction after some power iterations."""
    u = _unit(jax.random.normal(key, kernel.shape[-1:]))
    for _ in range(iterations):
        _, u = spectral_norm(kernel, u)
    return u


def spectral_norm(kernel: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sigma, the next u): the largest singular value of a kernel (..., O) by one power iteration from u (O,).

    sigma is at most the true value, and tends to it as the weights converge. Its gradient is u v^T.
    """
    matrix = kernel.reshape(-1, kernel.shape[-1])  # W^T
    fixed = jax.lax.stop_gradient(matrix)
    v = _unit(fixed @ u)
    new_u = _unit(v @ fixed)
    return v @ matrix @ new_u, new_u


def transposed(apply: Operator, kernel: jax.Array, u: jax.Array) -> jax.Array:
    """The transpose of the linear map apply(kernel, .), which keeps all axes but the last: (..., O) to (..., I)."""
    zeros = jnp.zeros((*u.shape[:-1], kernel.shape[-2]), u.dtype)
    return jax.vjp(lambda v: apply(kernel, v), zeros)[1](u)[0]


def operator_norm(apply: Operator, kernel: jax.Array, u: jax.Array, iterations: int) -> tuple[jax.Array, jax.Array]:
    """(norm, the next u) of the linear map apply(kernel, .): its largest singular value, by power iterations from an
    output u (..., O) of norm 1.

    For a convolution it is the norm of the map between images, including padding, not that of the kernel as a matrix
    (Gouk et al. 2018, arXiv 1804.04368). The norm's gradient is that of u^T W v, u and v being constant.
    """
    fixed = jax.lax.stop_gradient(kernel)

    def iterate(_: Any, u: jax.Array) -> jax.Array:
        return _unit(apply(fixed, _unit(transposed(apply, fixed, u))))

    u = jax.lax.fori_loop(0, iterations, iterate, jax.lax.stop_gradient(u).astype(kernel.dtype))
    v = _unit(transposed(apply, fixed, u))
    return jnp.vdot(u, apply(kernel, v)), u


def normalise(kernels: Any, vectors: Any) -> tuple[Any, Any]:
    """{name: kernel} divided by their spectral norms, and the next {name: u}; `vectors` has the current ones."""
    normalised, new_vectors = {}, {}
    for name, kernel in kernels.items():
        sigma, new_vectors[name] = spectral_norm(kernel, vectors[name])
        normalised[name] = kernel / sigma
    return normalised, new_vectors


class SpectralLayer(nn.Module):
    """W / sigma(W) instead of W, for a convolution or a dense layer.

    u is the variable "u" in the collection "batch_stats", since it is updated like running statistics, if `train` is
    true.

    features:    outputs.
    kernel_size: of a square convolution; 0: a dense layer over the last axis.
    stride, padding: of the convolution, as in `jgen.nn.conv.conv`; by default an odd kernel keeps the size.
    cpu:         the convolution's formulation on CPU: see `jgen.nn.conv`.
    """

    features: int
    kernel_size: int = 0
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32
    stride: int = 1
    padding: Padding | None = None
    cpu: CpuForm = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(B, H, W, C) or (B, C) to (..., features) of `dtype`."""
        window = (self.kernel_size, self.kernel_size) if self.kernel_size else ()
        shape = (*window, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.orthogonal(), shape, jnp.float32)
        u = self.variable("batch_stats", "u", lambda: start_vector(self.make_rng("params"), kernel, 1))
        sigma, new_u = spectral_norm(kernel, u.value)
        if train and not self.is_initializing():
            u.value = new_u
        kernel = (kernel / sigma).astype(self.dtype)
        x = x.astype(self.dtype)
        y = conv(x, kernel, self.stride, self.padding, cpu=self.cpu) if self.kernel_size else x @ kernel
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(self.dtype)
            y = y + bias.reshape((1,) * (y.ndim - 1) + (-1,))
        return y
