"""Every draw has a key of its own: of its step, stream, repeat and example."""

import itertools

import jax
import numpy as np

from jgen.core import keys as rng


def test_keys_are_of_step_stream_repeat_and_example():
    key, index, distinct = jax.random.key(3), np.array([5, 0, 17]), set()
    for step, stream, repeat in itertools.product((0, 1, 7), (0, 1, rng.DATA), (0, 1)):
        keys = rng.image_keys(rng.phase_key(key, step, stream, repeat), index)
        assert keys.shape == (3,)
        by_hand = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, step), stream), repeat)
        for number, one in zip(index, keys):
            expected = jax.random.key_data(jax.random.fold_in(by_hand, int(number)))
            np.testing.assert_array_equal(jax.random.key_data(one), expected)
            distinct.add(tuple(np.asarray(expected).tolist()))
        distinct.add(tuple(np.asarray(jax.random.key_data(rng.shared_key(by_hand))).tolist()))
    assert len(distinct) == 3 * 3 * 2 * (3 + 1)


def test_draws_of_an_example_are_its_own():
    """Those that jax gives of its key, whatever the others of the batch."""
    keys = rng.image_keys(jax.random.key(0), np.arange(4))
    np.testing.assert_array_equal(rng.normal(keys, (2, 3))[2], jax.random.normal(keys[2], (2, 3)))
    np.testing.assert_array_equal(rng.uniform(keys, (2,))[1], jax.random.uniform(keys[1], (2,)))
    np.testing.assert_array_equal(rng.randint(keys, 3, 9, (5,))[3], jax.random.randint(keys[3], (5,), 3, 9))
    np.testing.assert_array_equal(rng.bernoulli(keys, 0.3, (50,))[0], jax.random.bernoulli(keys[0], 0.3, (50,)))
    first, second = rng.split(keys, 2)
    alone, _ = rng.split(keys[1:2], 2)
    np.testing.assert_array_equal(jax.random.key_data(first[1]), jax.random.key_data(alone[0]))
    assert np.all(jax.random.key_data(first) != jax.random.key_data(second))
    np.testing.assert_array_equal(
        jax.random.key_data(rng.fold_in(keys, 9)[2]), jax.random.key_data(jax.random.fold_in(keys[2], 9))
    )
