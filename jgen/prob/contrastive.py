"""The contrastive loss of pairs over a batch (Sohn 2016; van den Oord et al. 2018, arXiv 1807.03748, equation 4)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from jgen.core import parallel


def contrastive_losses(a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
    """(l_ab + l_ba) / 2 of each pair, float32 (B,): with s_ij = scale a_i . b_j,

        l_ab = - log exp(s_ii) / sum_j exp(s_ij),    l_ba = - log exp(s_ii) / sum_j exp(s_ji).

    The sums are over the batch of all devices, and so is the gradient: its mean over devices is the gradient of the
    whole batch's mean loss. Microbatches of an accumulated batch are contrasted separately.

    Args:
      a, b: float32 (B, D); a_i and b_i are a pair. scale: a number.
    """
    pairs = own_rows(a)
    to_b, to_a = scale * a @ parallel.all_gather(b).T, scale * b @ parallel.all_gather(a).T
    l_ab, l_ba = (optax.softmax_cross_entropy_with_integer_labels(logits, pairs) for logits in (to_b, to_a))
    return 0.5 * (l_ab + l_ba)


def own_rows(x: jax.Array) -> jax.Array:
    """The positions of this device's entries in the batch of all devices, int32 (B,)."""
    return parallel.axis_index() * len(x) + jnp.arange(len(x))


def nearest(a: jax.Array, b: jax.Array) -> jax.Array:
    """For each a, the position of the b with the greatest a . b in the batch of all devices: int (B,), from (B, D)
    each."""
    return jnp.argmax(a @ parallel.all_gather(b).T, axis=1)


def noise_contrast(data: jax.Array, noise: jax.Array) -> jax.Array:
    """-log sigmoid(h(x)) - log sigmoid(-h(x')) of each pair of an image x and a sample x' of a noise distribution q,
    (B,).

    Noise contrastive estimation (Gutmann & Hyvarinen 2010): at the minimum, h is log p_data - log q.

    Args:
      data, noise: h of the images, and of the noise, (B,).
    """
    return jax.nn.softplus(-data) + jax.nn.softplus(noise)
