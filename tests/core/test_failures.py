"""Reports of images that failed inside a compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
from conftest import mistake

from jgen.core import failures


def halves(x):
    failures.report("x is negative", x < 0)
    failures.report("x is large", x > 10)
    failures.report("x is negative", x < -5)
    return 0.5 * x


def test_reports_come_out_of_a_compiled_program_where_they_are_collected():
    def program(x):
        with failures.collect() as reports:
            return halves(x), reports

    x, index = jnp.array([1.0, -1.0, 11.0, -6.0]), np.arange(10, 14)
    result, reports = jax.jit(program)(x)
    np.testing.assert_array_equal(result, 0.5 * x)
    assert {what: failed.tolist() for what, failed in reports.items()} == {
        "x is negative": [False, True, False, True],
        "x is large": [False, False, True, False],
    }
    mistake(
        lambda: failures.check({"x is negative": reports["x is negative"]}, index), "images 11, 13 failed: x is neg"
    )
    mistake(lambda: failures.check({"x is large": reports["x is large"]}, index), "image 12 failed: x is large")
    mistake(lambda: failures.check({"it": np.ones(9, bool)}, np.arange(9)), "images 0, 1, 2, 3, 4, ... failed: it")
    failures.check({"x is large": np.zeros(4, bool)}, index)
    np.testing.assert_array_equal(jax.jit(halves)(x), 0.5 * x)  # without a collector: the plain function
