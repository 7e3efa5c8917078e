"""A codebook updated by moving averages of the vectors that it quantises (van den Oord et al. 2017, arXiv 1711.00937).

    quantise      k = argmin_j || z_e - e_j ||^2,  z_q = e_k                                    (equations 1, 2)
    codebook      N_j <- g N_j + (1 - g) n_j,  m_j <- g m_j + (1 - g) s_j,  e_j = m_j / N_j     (appendix A.1)
                  n_j the fraction of encoded vectors assigned to code j, s_j their sum over the number of all vectors
    perplexity    exp(- sum_j p_j log p_j), p_j = N_j / sum N: the number of codes that, used equally often, would have
                  this entropy; a revived code does not count until vectors are assigned to it

Dead codes: a code whose average use falls below `revival` / num_codes is moved to an encoded vector. Everything in
`extra` is a mean over examples, so that devices and microbatches need not exchange vectors: each vector is offered to
one random code with a heavy-tailed random weight, so that one vector dominates the weighted mean offered to a code; the
next step moves dead codes there.

Glossary: z_e an encoder's vectors; z_q their codes' vectors; e the codebook's; g decay.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.errors import require, require_positive

Book = dict[str, jax.Array]  # the codebook's averages: see `start_book`


def start_book(vectors: jax.Array) -> Book:
    """The averages of a codebook of these vectors (K, D), all used equally often.

    count (K,), sum (K, D): N and m; use (K,): N without what revival adds, to report and to sample from;
    offer_weight (K,), offer_sum (K, D): sum of weights and weighted sum of the vectors offered to each code in the last
    step.
    """
    even = 1.0 / vectors.shape[0]
    zeros = jnp.zeros(vectors.shape[0])
    return {
        "count": jnp.full(vectors.shape[0], even, jnp.float32),
        "sum": vectors * even,
        "use": jnp.full(vectors.shape[0], even, jnp.float32),
        "offer_weight": zeros,
        "offer_sum": jnp.zeros_like(vectors),
    }


def start_at_vectors(key: jax.Array, z_e: jax.Array, num_codes: int) -> Book:
    """A codebook initialised with some of the vectors z_e (..., D), each used once if there are enough of them."""
    flat = z_e.reshape(-1, z_e.shape[-1])
    chosen = jax.random.choice(key, flat.shape[0], (num_codes,), replace=flat.shape[0] < num_codes)
    return start_book(flat[chosen])


def centres(book: Book) -> jax.Array:
    """e (K, D) = m / N."""
    return book["sum"] / jnp.maximum(book["count"], 1e-30)[:, None]


def revive(book: Book, threshold: float) -> tuple[Book, jax.Array]:
    """The codebook with its dead codes moved to the vectors offered to them, and which codes were moved, bool (K,)."""
    even = 1.0 / book["count"].shape[0]
    dead = (book["count"] < threshold * even) & (book["offer_weight"] > 0)
    offer = book["offer_sum"] / jnp.maximum(book["offer_weight"], 1e-30)[:, None]
    count = jnp.where(dead, even, book["count"])
    return {**book, "count": count, "sum": jnp.where(dead[:, None], offer * even, book["sum"])}, dead


def usage(book: Book, threshold: float) -> jax.Array:
    """The fraction of codes that are used often enough not to be moved by `revive`: a scalar."""
    use = book["use"]
    return jnp.mean(((use >= threshold / use.shape[0]) & (use > 0)).astype(jnp.float32))


def nearest(vectors: jax.Array, z_e: jax.Array) -> jax.Array:
    """Codes int32 (...) of z_e (..., D): the index of the nearest of the vectors (K, D), on ties the lowest."""
    # ||z||^2 is the same for every code and omitted. Full float32 precision: near ties resolve alike on all devices.
    flat = z_e.reshape(-1, z_e.shape[-1])
    products = jnp.matmul(flat, vectors.T, precision=jax.lax.Precision.HIGHEST)
    distance = jnp.sum(vectors**2, axis=-1)[None, :] - 2.0 * products
    return jnp.argmin(distance, axis=-1).astype(jnp.int32).reshape(z_e.shape[:-1])


def offers(keys: jax.Array, z_e: jax.Array, num_codes: int) -> tuple[jax.Array, jax.Array]:
    """Weights (K,) and weighted sums (K, D) of the vectors z_e (B, h, w, D), each offered to one code at random.

    Weights are u^-4 with u uniform: the largest of n of them is about three quarters of their sum, for any n.
    """
    key_code, key_weight = rng.split(keys, 2)
    shape = z_e.shape[1:-1]
    code = rng.randint(key_code, 0, num_codes, shape)
    weight = jnp.maximum(rng.uniform(key_weight, shape), 1e-6) ** -4
    weights = (jax.nn.one_hot(code, num_codes) * weight[..., None]).reshape(-1, num_codes)
    total = jnp.matmul(weights.T, z_e.reshape(-1, z_e.shape[-1]), precision=jax.lax.Precision.HIGHEST)
    return jnp.mean(weights, axis=0), total / weights.shape[0]


def update(book: Book, keys: jax.Array, z_e: jax.Array, codes: jax.Array, decay: float) -> Book:
    """The codebook's averages, updated with the vectors z_e (B, h, w, D) and the codes (B, h, w) assigned to them."""
    num = book["count"].shape[0]
    flat = z_e.reshape(-1, z_e.shape[-1])
    one_hot = jax.nn.one_hot(codes.reshape(-1), num)
    count = jnp.mean(one_hot, axis=0)
    # As exact as `count`, by which it is divided.
    total = jnp.matmul(one_hot.T, flat, precision=jax.lax.Precision.HIGHEST)
    means = {"count": count, "sum": total / flat.shape[0], "use": count}
    new = {name: decay * book[name] + (1 - decay) * mean for name, mean in means.items()}
    weight, offered = offers(keys, z_e, num)
    return {**new, "offer_weight": weight, "offer_sum": offered}


class Quantised(NamedTuple):
    """z_q (B, h, w, D), the codebook after a step, and what is reported: the mean squared distance of z_e to z_q, whose
    gradient reaches z_e, and the codebook's perplexity, usage and number of revived codes before the step."""

    z_q: jax.Array
    book: Book
    metrics: dict[str, jax.Array]


def quantise(book: Book, keys: jax.Array, z_e: jax.Array, decay: float, revival: float) -> Quantised:
    """A training step: dead codes are moved, z_e (B, h, w, D) is quantised, then the averages are updated with it."""
    before, (book, revived) = book, revive(book, revival)
    codes = nearest(centres(book), z_e)
    z_q = centres(book)[codes]
    new = update(book, keys, jax.lax.stop_gradient(z_e), codes, decay)
    p = before["use"] / jnp.sum(before["use"])
    metrics = {
        "commitment": jnp.mean((z_e - z_q) ** 2),
        "perplexity": jnp.exp(jnp.sum(jax.scipy.special.entr(p))),
        "usage": usage(before, revival),
        "revived": jnp.sum(revived.astype(jnp.float32)),
    }
    return Quantised(z_q, new, metrics)


def straight_through(z_e: jax.Array, z_q: jax.Array) -> jax.Array:
    """z_q in the forward pass; in the backward pass the gradient goes to z_e only."""
    return z_e + jax.lax.stop_gradient(z_q - z_e)


def check_codebook(num_codes: int, code_dim: int, commitment: float, decay: float, revival: float) -> None:
    """Raises `UserError` for invalid codebook options."""
    require_positive(num_codes=num_codes, code_dim=code_dim)
    require(0 <= decay < 1, f"decay is {decay}: it must be at least 0 and below 1")
    require(0 <= revival < 1, f"revival is {revival}: it must be at least 0 and below 1")
    require(0 <= commitment < math.inf, f"commitment is {commitment}: it must be zero or above, and finite")
