"""log |det (I + J)| of a map x + g(x), J = dg/dx, whose Lipschitz constant is below 1 (Chen, Behrmann, Duvenaud &
Jacobsen 2019, arXiv 1906.02735).

    log det(I + J) = sum over k >= 1 of (-1)^(k+1) / k tr(J^k)                                        (equation 4)
                   = E [ sum over k <= n of (-1)^(k+1) / k v^T J^k v / P(N >= k) ]                    (theorem 1)
    d/dtheta of it = E [ sum over k < n of (-1)^k v^T J^k / P(N >= k + 1) dJ/dtheta v ]               (theorem 2)

v has E v v^T = I, and n is the length of a Russian roulette: `exact_terms` terms that are always computed, with weight
1, and a geometric number of further ones. Without further terms the truncated series would be biased.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.prob.likelihoods import sum_image

Residual = Callable[[Any, jax.Array], jax.Array]  # g: (params, x (B, H, W, C)) to the same shape


def draw_length(key: jax.Array, exact_terms: int, stop: float) -> jax.Array:
    """n, int32: `exact_terms` + 1 terms, and each further one with probability 1 - `stop`, in (0, 1)."""
    return exact_terms + jax.random.geometric(key, stop, dtype=jnp.int32)


def weight(k: jax.Array, exact_terms: int, stop: float, dtype: DTypeLike = jnp.float32) -> Any:
    """1 / P(N >= k) of `draw_length`, for k from 1."""
    return (1.0 - stop) ** -jnp.maximum(k - exact_terms - 1, 0).astype(dtype)


def estimate_log_det(
    residual: Residual, params: Any, x: jax.Array, v: jax.Array, length: Any, exact_terms: int, stop: float
) -> tuple[jax.Array, jax.Array]:
    """x + g(x), and an unbiased estimate of its log_det, nats (B,), with unbiased gradients in params and x.

    The powers of J are not differentiated: the gradient is that of one product s^T J v, so that the activations of only
    one evaluation of g are stored, whatever the length.

    Args:
      v: the probe of each image, of x's shape; length: n of `draw_length`, one for all images.
    """
    stopped = jax.lax.stop_gradient((params, x))
    _, multiply = jax.vjp(lambda x: residual(stopped[0], x), stopped[1])

    def add_term(k: jax.Array, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        power, total, neumann = carry  # v^T J^(k-1), the series and its derivative's factor up to k - 1
        signed = jnp.where(k % 2 == 1, 1.0, -1.0).astype(x.dtype) * weight(k, exact_terms, stop, x.dtype)
        neumann = neumann + signed * power
        (power,) = multiply(power)
        return power, total + signed / k.astype(x.dtype) * sum_image(power * v), neumann

    start = (v, jnp.zeros(x.shape[:1], x.dtype), jnp.zeros_like(x))
    _, total, neumann = jax.lax.fori_loop(jnp.int32(1), jnp.asarray(length, jnp.int32) + 1, add_term, start)
    y, multiply = jax.vjp(lambda x: residual(params, x), x)
    product = sum_image(multiply(jax.lax.stop_gradient(neumann))[0] * v)
    return x + y, jax.lax.stop_gradient(total) + (product - jax.lax.stop_gradient(product))


def exact_log_det(residual: Residual, params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x + g(x), and log |det (I + J)| from the whole Jacobian, with H W C derivatives per image; any g."""
    y, multiply = jax.vjp(lambda x: residual(params, x), x)
    size = x[0].size
    rows = jnp.eye(size, dtype=x.dtype).reshape(size, 1, *x.shape[1:])
    jacobian = jax.vmap(lambda row: multiply(jnp.broadcast_to(row, x.shape))[0])(rows)
    jacobian = jnp.swapaxes(jacobian.reshape(size, x.shape[0], size), 0, 1)
    return x + y, jnp.linalg.slogdet(jacobian + jnp.eye(size, dtype=x.dtype)[None])[1]
