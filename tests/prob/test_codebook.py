"""A codebook's parts against NumPy and by hand: quantisation, straight-through, averages, revival."""

import jax
import jax.numpy as jnp
import numpy as np

from jgen.core import keys as rng
from jgen.prob import codebook


def keys_of(n, seed=0):
    return rng.image_keys(jax.random.key(seed), jnp.arange(n))


def test_nearest_is_the_argmin_of_distances():
    gen = np.random.default_rng(0)
    z, e = gen.standard_normal((4, 3, 2, 5)).astype(np.float32), gen.standard_normal((11, 5)).astype(np.float32)
    expected = ((z[..., None, :] - e) ** 2).sum(-1).argmin(-1)
    codes = codebook.nearest(jnp.asarray(e), jnp.asarray(z))
    np.testing.assert_array_equal(codes, expected)
    assert codes.dtype == jnp.int32


def test_quantising_is_idempotent():
    e = jax.random.normal(jax.random.key(0), (11, 5))
    z_q = e[codebook.nearest(e, jax.random.normal(jax.random.key(1), (2, 4, 4, 5)))]
    np.testing.assert_array_equal(e[codebook.nearest(e, z_q)], z_q)


def test_the_straight_through_gradient_by_hand():
    """Of f(z_q) = sum a z_q^2: forwards at z_q, backwards 2 a z_q, all of it to z_e."""
    z_e, z_q, a = (jax.random.normal(jax.random.key(i), (2, 3)) for i in range(3))

    def f(z_e, z_q):
        return jnp.sum(a * codebook.straight_through(z_e, z_q) ** 2)

    value, (to_encoder, to_codes) = jax.value_and_grad(f, argnums=(0, 1))(z_e, z_q)
    np.testing.assert_allclose(value, np.sum(a * z_q**2), rtol=1e-5)
    np.testing.assert_allclose(to_encoder, 2 * a * z_q, rtol=1e-5)
    np.testing.assert_array_equal(to_codes, 0)


def test_dead_codes_alone_are_revived_where_vectors_are():
    z_e = jax.random.normal(jax.random.key(0), (64, 4, 4, 2))
    weight, total = codebook.offers(keys_of(64), z_e, 5)
    book = codebook.start_book(jnp.full((5, 2), 100.0) + jnp.arange(10.0).reshape(5, 2))
    book |= {"offer_weight": weight.at[3].set(0.0), "offer_sum": total}
    book["count"] = jnp.array([0.2, 0.001, 0.2, 0.001, 0.01])
    book["sum"] = book["count"][:, None] * (100.0 + jnp.arange(10.0).reshape(5, 2))
    new, revived = codebook.revive(book, threshold=0.1)
    # Dead: below 0.1 / 5. Code 3 is offered nothing and stays.
    np.testing.assert_array_equal(revived, [False, True, False, False, True])
    before, after = np.asarray(codebook.centres(book)), np.asarray(codebook.centres(new))
    np.testing.assert_allclose(after[[0, 2, 3]], before[[0, 2, 3]], rtol=1e-6)
    np.testing.assert_allclose(after[[1, 4]], (total / weight[:, None])[jnp.array([1, 4])], rtol=1e-5)
    np.testing.assert_allclose(new["count"], [0.2, 0.2, 0.2, 0.001, 0.2])
    # A code that is moved has not been used yet.
    np.testing.assert_array_equal(new["use"], book["use"])
    assert not np.any(codebook.revive(book, threshold=0.0)[1])


def test_offers_lie_next_to_single_vectors():
    """Not at the mean of all: the offers scatter nearly as the vectors do, however many there are."""
    for n in (16, 256):
        z_e = jax.random.normal(jax.random.key(1), (n, 4, 4, 2))
        weight, total = jax.jit(codebook.offers, static_argnums=2)(keys_of(n), z_e, 32)
        where = np.asarray(weight) > 0
        offered = (np.asarray(total) / np.maximum(weight, 1e-30)[:, None])[where]
        assert 0.6 < offered.std() < 1.2, n


def test_offers_of_halves_average_to_those_of_the_whole():
    z_e, keys = jax.random.normal(jax.random.key(1), (8, 4, 4, 2)), keys_of(8)
    whole = codebook.offers(keys, z_e, 5)
    halves = [codebook.offers(keys[part], z_e[part], 5) for part in (slice(0, 4), slice(4, 8))]
    for a, b, c in zip(whole, *halves):
        np.testing.assert_allclose(a, (b + c) / 2, rtol=1e-5)
