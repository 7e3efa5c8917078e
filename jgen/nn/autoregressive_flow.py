"""Masked autoregressive flows of vectors (Papamakarios, Pavlakou & Murray 2017, arXiv 1705.07057; Kingma et al. 2016).

    layer   eps_i = (z_i - mu_i(z_1, ..., z_{i-1})) exp(-log_sigma_i(z_1, ..., z_{i-1}))
    back    z_i = mu_i + exp(log_sigma_i) eps_i, one i after another

mu and log_sigma are outputs of one masked network (MADE, Germain et al. 2015, arXiv 1502.03509): each hidden layer has
`units` units per dimension, and those of dimension i depend on z_1, ..., z_{i-1} only. So the density of z takes one
evaluation, and so does the inverse in total: at dimension i it computes the units of that dimension only.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from jgen.nn.masked_convolution import Mask, group_mask

LARGEST_LOG_SIGMA = 3.0  # of a layer, in absolute value, so that exp cannot overflow in training
HIGHEST = jax.lax.Precision.HIGHEST  # at an accelerator's default precision the inverse would not match


class MaskedDense(nn.Module):
    """(B, dims * inputs) to (B, dims * features): dimension i sees dimensions up to i (mask B), or before i (A)."""

    dims: int
    inputs: int
    features: int
    mask: Mask
    kernel_init: Initializer = nn.initializers.lecun_normal()

    def setup(self) -> None:
        shape = (self.dims * self.inputs, self.dims * self.features)
        self.kernel = self.param("kernel", self.kernel_init, shape)
        self.bias = self.param("bias", nn.initializers.zeros, shape[1:])

    def masked_kernel(self) -> jax.Array:
        inputs, features = self.kernel.shape
        return self.kernel * jnp.asarray(group_mask(inputs, features, self.dims, self.mask), jnp.float32)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.matmul(x, self.masked_kernel(), precision=HIGHEST) + self.bias[None, :]

    def by_dimension(self) -> tuple[jax.Array, jax.Array]:
        """The kernel (dims, dims * inputs, features) and the bias (dims, features) of each dimension's entries."""
        kernel = self.masked_kernel().reshape(-1, self.dims, self.features).transpose(1, 0, 2)
        return kernel, self.bias.reshape(self.dims, self.features)


class Made(nn.Module):
    """One layer of the flow: (z (B, dims), label int (B,) or None) to (eps, log_det), float32 (B, dims) and (B,).

    units: in each of `depth` hidden layers, for every dimension; num_classes: 0 for none. It is initialised as the
    identity.
    """

    dims: int
    units: int
    depth: int
    num_classes: int = 0

    def setup(self) -> None:
        first = MaskedDense(self.dims, 1, self.units, "A")
        self.hidden = [first, *(MaskedDense(self.dims, self.units, self.units, "B") for _ in range(self.depth - 1))]
        self.out = MaskedDense(self.dims, self.units, 2, "B", nn.initializers.zeros)
        if self.num_classes:
            zeros = nn.initializers.zeros
            self.classes = nn.Embed(self.num_classes, self.dims * self.units, embedding_init=zeros)

    def __call__(self, z: jax.Array, label: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        h = nn.relu(self.hidden[0](z) + self.class_bias(label))
        for layer in self.hidden[1:]:
            h = nn.relu(layer(h))
        mu, log_sigma = to_moments(self.out(h).reshape(-1, self.dims, 2))
        return (z - mu) * jnp.exp(-log_sigma), -jnp.sum(log_sigma, axis=1)

    def inverse(self, eps: jax.Array, label: jax.Array | None) -> jax.Array:
        """z from eps, both (B, dims), by a scan over the dimensions."""
        batch = eps.shape[0]
        layers = [layer.by_dimension() for layer in (*self.hidden, self.out)]
        classes = jnp.broadcast_to(self.class_bias(label), (batch, self.dims * self.units))
        classes = classes.reshape(batch, self.dims, self.units).transpose(1, 0, 2)

        def one(carry: tuple[jax.Array, list[jax.Array]], inputs: tuple) -> tuple[tuple, None]:
            z, hidden = carry
            i, eps_i, classes_i, layers_i = inputs
            before, after = z, []
            for number, (kernel, bias) in enumerate(layers_i[:-1]):
                own = jnp.matmul(before, kernel, precision=HIGHEST) + bias[None, :]
                own = nn.relu(own + classes_i if number == 0 else own)
                after.append(jax.lax.dynamic_update_slice_in_dim(hidden[number], own, i * self.units, axis=1))
                before = after[-1]
            kernel, bias = layers_i[-1]
            mu, log_sigma = to_moments(jnp.matmul(before, kernel, precision=HIGHEST) + bias[None, :])
            z_i = mu + jnp.exp(log_sigma) * eps_i
            return (jax.lax.dynamic_update_slice_in_dim(z, z_i[:, None], i, axis=1), after), None

        start = (jnp.zeros_like(eps), [jnp.zeros((batch, self.dims * self.units))] * self.depth)
        (z, _), _ = jax.lax.scan(one, start, (jnp.arange(self.dims), eps.T, classes, layers))
        return z

    def class_bias(self, label: jax.Array | None) -> jax.Array:
        """The class's contribution to the first hidden layer, (B or 1, dims * units)."""
        return self.classes(label) if self.num_classes else jnp.zeros((1, self.dims * self.units))


def to_moments(out: jax.Array) -> tuple[jax.Array, jax.Array]:
    """mu and log_sigma (...) of a network's output (..., 2)."""
    mu, raw = out[..., 0], out[..., 1]
    return mu, LARGEST_LOG_SIGMA * jnp.tanh(raw / LARGEST_LOG_SIGMA)


class AutoregressiveFlow(nn.Module):
    """`layers` such layers, between which the dimensions are reversed: (z, label) to (eps, log_det), see `Made`."""

    dims: int
    units: int
    depth: int
    layers: int
    num_classes: int = 0

    def setup(self) -> None:
        self.mades = [Made(self.dims, self.units, self.depth, self.num_classes) for _ in range(self.layers)]

    def __call__(self, z: jax.Array, label: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        total = jnp.zeros(z.shape[0])
        for number, made in enumerate(self.mades):
            z, log_det = made(z if number == 0 else z[:, ::-1], label)
            total = total + log_det
        return z, total

    def inverse(self, eps: jax.Array, label: jax.Array | None) -> jax.Array:
        """z from eps, both float32 (B, dims): the inverse layers from the last to the first."""
        for number, made in reversed(list(enumerate(self.mades))):
            eps = made.inverse(eps, label)
            eps = eps if number == 0 else eps[:, ::-1]
        return eps
