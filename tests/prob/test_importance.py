import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jgen.prob.importance import importance_weighted_bound


@pytest.mark.parametrize("samples,chunk", [(1, 1), (7, 7), (7, 3), (10, 1), (5, 8)])
def test_is_the_log_mean_of_the_weights_whatever_the_chunk(samples, chunk):
    table = jax.random.normal(jax.random.key(0), (16, 4)) * 300.0 - 1000.0  # exp of any of these is 0 or infinite
    bound = jax.jit(lambda: importance_weighted_bound(lambda k: table[k], samples, chunk))()
    expected = scipy.special.logsumexp(np.asarray(table[:samples], np.float64), axis=0) - np.log(samples)
    np.testing.assert_allclose(bound, expected, rtol=1e-6)


def test_weights_of_zero_give_minus_infinity():
    assert np.all(np.isneginf(importance_weighted_bound(lambda k: jnp.full((k.shape[0], 2), -jnp.inf), 3, 2)))
