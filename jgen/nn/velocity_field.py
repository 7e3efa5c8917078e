"""The network of a continuous flow: scales and shifts depend on time (Grathwohl et al. 2019, arXiv 1810.01367).

    layer   y = (W x + b) sigmoid(A c + a) + D c,  c = (t, class as one-hot)

which the authors' code calls "concatsquash".
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer


class ConcatSquash(nn.Module):
    """(x, c (B, K)) to `features` channels: a 3x3 convolution of (B, H, W, C), or a dense layer of (B, C)."""

    features: int
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        init = self.kernel_init
        if x.ndim == 4:
            y = nn.Conv(self.features, (3, 3), kernel_init=init, name="main")(x)
        else:
            y = nn.Dense(self.features, kernel_init=init, name="main")(x)
        gate = nn.sigmoid(nn.Dense(self.features, name="gate")(context))
        shift = nn.Dense(self.features, use_bias=False, kernel_init=init, name="shift")(context)
        gate, shift = (part.reshape(y.shape[0], *(1,) * (y.ndim - 2), -1) for part in (gate, shift))
        return y * gate + shift


class VelocityField(nn.Module):
    """dx/dt at (x (B, H, W, C), t (B,), label int (B,) or None); it starts at zero.

    widths: of the hidden layers. convolutional: whether layers are 3x3 convolutions, or dense ones of the whole image.
    num_classes: 0 for none.
    """

    widths: tuple[int, ...]
    convolutional: bool = True
    num_classes: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, label: jax.Array | None) -> jax.Array:
        context = t[:, None]
        if self.num_classes and label is not None:
            context = jnp.concatenate([context, jax.nn.one_hot(label, self.num_classes, dtype=t.dtype)], axis=1)
        h = x if self.convolutional else x.reshape(x.shape[0], -1)
        outputs = h.shape[-1]
        for number, width in enumerate(self.widths):
            h = nn.softplus(ConcatSquash(width, name=f"layer{number}")(h, context))
        return ConcatSquash(outputs, nn.initializers.zeros, name="out")(h, context).reshape(x.shape)
