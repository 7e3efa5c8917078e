"""Attention: the operation, and the layer over the positions of feature maps."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.core.backend import cuda_capability, for_cpu
from jgen.nn.cpu.attention import attention as attention_cpu
from jgen.nn.normalization import GroupNorm


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """softmax(q k^T / sqrt(D)) v; q (B, L, heads, D), k and v (B, M, heads, D), to (B, L, heads, D).

    If mask, bool (B, M), is given, only keys at which it is true are attended to. The softmax is float32. Uses
    `jax.nn.dot_product_attention` with cuDNN, which never materialises the L x M weights, if cuDNN supports the
    arguments (`cudnn_supports`), else with XLA; on CPU, a formulation that is faster there.
    """
    if for_cpu():
        return attention_cpu(q, k, v, mask)
    # By default, jax uses XLA's implementation even where cuDNN's would work.
    if mask is not None:  # cuDNN has no mask that is the same for all queries; masked keys are few, such as a text's
        return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None, :], implementation="xla")
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn" if cudnn_supports(q, k, v) else "xla")


def cudnn_supports(q: jax.Array, k: jax.Array, v: jax.Array) -> bool:
    """Whether cuDNN has attention, and its gradient, of these types and widths on the GPU at hand.

    It takes bfloat16 and float16, on GPUs since Ampere (capability 8.0), heads whose width is a multiple of 8: up to
    128, and since Hopper (9.0) up to 256 (https://docs.nvidia.com/deeplearning/cudnn/frontend/latest/operations/Attention.html).
    """
    capability = cuda_capability()
    widest = 256 if capability >= (9, 0) else 128
    half = q.dtype == k.dtype == v.dtype and q.dtype in (jnp.bfloat16, jnp.float16)
    width = q.shape[-1]
    return capability >= (8, 0) and half and v.shape[-1] == width and width % 8 == 0 and width <= widest


class SelfAttention2D(nn.Module):
    """Residual multi-head self-attention over the positions of (B, H, W, C), after group normalisation."""

    head_dim: int
    groups: int
    dtype: DTypeLike = jnp.float32
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        heads = channels // self.head_dim
        h = GroupNorm(self.groups, self.eps, name="norm")(x).reshape(batch, height * width, channels)
        qkv = nn.Dense(3 * channels, dtype=self.dtype, name="qkv")(h)
        q, k, v = (part.reshape(batch, -1, heads, self.head_dim) for part in jnp.split(qkv, 3, axis=-1))
        h = attention(q, k, v).reshape(batch, height * width, channels)
        h = nn.Dense(channels, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="out")(h)
        return x + h.reshape(x.shape)
