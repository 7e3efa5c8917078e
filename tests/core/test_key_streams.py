"""No two purposes of a seed share a key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgen.core import keys as rng
from jgen.core.generate import check_key
from jgen.errors import UserError


def numbers(keys):
    """The keys as rows of numbers."""
    return np.asarray(jax.random.key_data(keys)).reshape(-1, 2)


def test_all_keys_of_a_seed_differ():
    """Those of 2,000 images, of what a run derives beside them, and of what an image's loss and sampler derive."""
    seed, index = rng.seed_key(3), jnp.arange(2000)
    images = rng.image_keys(seed, index)
    run = rng.stream(seed, rng.RUN)
    derived = [images, seed, run, rng.stream(seed, rng.INIT), rng.shared_key(seed), jnp.stack(rng.split_key(seed, 3))]
    for step in range(3):
        for phase in (0, 1, rng.DATA):
            for repeat in range(2):
                key = rng.phase_key(run, step, phase, repeat)
                derived += [key, rng.shared_key(key), rng.image_keys(key, jnp.arange(50))]
    for purpose in (rng.VALIDATION, rng.DATA, rng.SCORE, rng.PREPARE):
        key = rng.stream(seed, purpose)
        derived += [key, jnp.stack(rng.split_key(key, 2)), rng.image_keys(key, jnp.arange(50))]
    derived += [*rng.split(images, 3), *(rng.fold_in(images, t) for t in (*range(5), rng.NETWORK))]
    rows = np.concatenate([numbers(keys) for keys in derived])
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_an_image_has_the_key_of_its_number():
    key = jax.random.key(5)
    wanted = [numbers(jax.random.fold_in(key, i))[0] for i in (0, 7)]
    np.testing.assert_array_equal(numbers(rng.image_keys(key, jnp.array([0, 7]))), wanted)


def test_raw_keys_are_those_of_their_numbers():
    np.testing.assert_array_equal(numbers(check_key(jax.random.PRNGKey(4))), numbers(jax.random.key(4)))


def test_keys_of_another_generator_are_refused():
    with pytest.raises(UserError, match="key is one of rbg: it must be threefry's"):
        check_key(jax.random.key(0, impl="rbg"))
    with pytest.raises(UserError, match="key is 7: it must be one PRNG key"):
        check_key(7)
