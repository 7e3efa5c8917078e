"""A function of a batch in parts is that of the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgen.core.parts import in_parts


@pytest.mark.parametrize("batch,size,largest", [(7, 3, 3), (6, 4, 3), (5, 8, 5), (4, 1, 1)])
def test_parts_are_of_equal_length_and_of_at_most_the_size(batch, size, largest):
    seen = []

    def function(part):
        x, rest = part
        seen.append(len(x))
        return x[:, None] * rest["y"]

    x, y = jnp.arange(batch, dtype=jnp.float32), jnp.ones((batch, 2)) + jnp.arange(batch)[:, None]
    whole = jax.jit(lambda x, y: in_parts(function, (x, {"y": y}), size))(x, y)
    np.testing.assert_array_equal(whole, x[:, None] * y)
    assert set(seen) == {largest}
