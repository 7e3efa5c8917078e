"""Temperature, top-k and top-p beside their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from jgen.errors import UserError
from jgen.samplers.truncation import check_truncation, truncate

LEVELS = 9


def by_definition(logits, temperature, top_k, top_p):
    """The probabilities, one distribution at a time."""
    p = softmax(np.asarray(logits, np.float64) / temperature)
    order = np.argsort(-p)
    order = order[: top_k or LEVELS]
    total, chosen = p[order].sum(), []
    for value in order:
        if chosen and p[chosen].sum() / total >= top_p:
            break
        chosen.append(value)
    out = np.zeros(LEVELS)
    out[chosen] = p[chosen] / p[chosen].sum()
    return out


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.8, 0.99, 1.0])
@pytest.mark.parametrize("temperature,top_k", [(1.0, 0), (0.5, 4), (2.0, 1), (1.0, LEVELS)])
def test_truncation_is_its_definition(temperature, top_k, top_p):
    logits = 2.0 * jax.random.normal(jax.random.key(0), (50, LEVELS))
    out = jax.jit(lambda x: jax.nn.softmax(truncate(x, temperature, top_k, top_p)))(logits)
    for row, given in zip(out, logits):
        np.testing.assert_allclose(row, by_definition(given, temperature, top_k, top_p), atol=1e-6)


def test_equal_values_stay_or_go_together():
    logits = jnp.log(jnp.array([0.4, 0.25, 0.25, 0.1]))
    for options in ({"top_k": 2}, {"top_p": 0.5}):
        np.testing.assert_array_equal(np.isfinite(truncate(logits, **options)), [True, True, True, False])


@pytest.mark.parametrize(
    "options,words",
    [
        ((0.0, 0, 1.0), "temperature is 0.0: it must be above zero and finite"),
        ((1.0, -1, 1.0), "top_k is -1: it must be from 1 to 9, the levels, or 0 for all of them"),
        ((1.0, 10, 1.0), "top_k is 10"),
        ((1.0, 0, 0.0), "top_p is 0.0: it must be above 0 and at most 1"),
        ((1.0, 0, 1.5), "top_p is 1.5: it must be above 0 and at most 1"),
        ((1.0, 0, float("nan")), "top_p is nan: it must be above 0 and at most 1"),
    ],
)
def test_options_out_of_their_range(options, words):
    check_truncation(1.0, LEVELS, 1.0, LEVELS)
    with pytest.raises(UserError) as caught:
        check_truncation(*options, LEVELS)
    assert words in str(caught.value) and "\n" not in str(caught.value)
