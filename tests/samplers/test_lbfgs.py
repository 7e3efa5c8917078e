"""L-BFGS, by SciPy's and by what is known of its minima."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize, rosen, rosen_der

from jgen.samplers.lbfgs import minimise

START = np.array([-1.2, 1.0, -0.5, 2.0, 1.3, 0.2], np.float32)


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def test_it_needs_about_as_many_evaluations_as_scipys():
    peer = minimize(rosen, START, jac=rosen_der, method="L-BFGS-B", options={"maxcor": 20})
    assert peer.fun < 1e-10
    x, value = jax.jit(lambda x: minimise(rosenbrock, x, int(1.5 * peer.nfev)))(START)
    np.testing.assert_allclose(x, peer.x, atol=1e-3)
    assert float(value) == pytest.approx(float(rosenbrock(x)), abs=1e-10)


def test_a_quadratic_function_of_unlike_curvatures():
    curvature = jnp.logspace(0, 3, 30)
    x, value = jax.jit(lambda x: minimise(lambda x: jnp.sum(curvature * (x - 2) ** 2), x, 150))(jnp.zeros(30))
    np.testing.assert_allclose(x, 2, atol=1e-3)


@pytest.mark.slow
def test_the_value_never_rises_and_the_first_step_is_the_start():
    values = [jax.jit(lambda x, n=n: minimise(rosenbrock, x, n)[1])(START) for n in range(1, 20)]
    assert float(values[0]) == pytest.approx(rosen(START.astype(np.float64)), rel=1e-5)
    assert all(after <= before for before, after in zip(values, values[1:])) and values[-1] < 0.1 * values[0]


def test_trials_without_a_number_are_not_taken():
    x, value = jax.jit(lambda x: minimise(lambda x: jnp.sum(x - jnp.log(x)), x, 100))(jnp.array([1e-3, 5.0, 100.0]))
    np.testing.assert_allclose(x, 1, atol=1e-2)
