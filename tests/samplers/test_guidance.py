"""Guidance by hand, of denoisers that say which class and time they were asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mistake
from gaussians import PROCESSES

from jgen.prob.process import from_x0
from jgen.samplers import guidance

LABEL, NULL = jnp.array([0, 2, 1]), 3
X_T, T = jax.random.normal(jax.random.key(0), (3, 2, 2, 1)), jnp.array([0.1, 0.5, 0.9])
COND = {"label": LABEL}
PROCESS = PROCESSES["linear"]  # of which sigma / alpha is t / (1 - t): 1/9, 1 and 9


class Network:
    """(x_t, t, cond) -> x_0, and how many images it was asked for each time."""

    def __init__(self):
        self.asked = []

    def __call__(self, x_t, t, cond):
        self.asked.append(len(t))
        return x_t * (1.0 + cond["label"][:, None, None, None]) + t[:, None, None, None] ** 2


def answers():
    """The conditional and the unconditional x_0."""
    x, c, t = np.asarray(X_T), np.asarray(LABEL)[:, None, None, None], np.asarray(T)[:, None, None, None]
    return x * (1 + c) + t**2, x * (1 + NULL) + t**2


def classifier_free(network, scale, interval=()):
    null = {"label": jnp.full(3, NULL)}
    return guidance.classifier_free(network, COND, null, PROCESS, guidance.Guidance(scale, interval))(X_T, T)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_guidance_is_the_formula_of_the_paper(scale):
    """D + (s - 1) (D - D_null); scale 1 is the conditional model and scale 0 the unconditional one, to the bit."""
    network = Network()
    guided = classifier_free(network, scale)
    x_0, x_0_null = answers()
    np.testing.assert_allclose(guided, x_0 + (scale - 1) * (x_0 - x_0_null), rtol=1e-5, atol=1e-5)
    assert network.asked == [3 if scale in (0.0, 1.0) else 6]  # one evaluation where one is enough
    for exact, cond in ((1.0, COND), (0.0, {"label": jnp.full(3, NULL)})):
        if scale == exact:
            np.testing.assert_array_equal(guided, Network()(X_T, T, cond))


@pytest.mark.parametrize("scale", [0.0, 3.0])
@pytest.mark.parametrize(
    "interval,inside", [((0.5, 2.0), [0, 1, 0]), ((1.0, 10.0), [0, 1, 1]), ((0.0, 0.2), [1, 0, 0])]
)
def test_outside_an_interval_the_model_is_the_conditional_one(scale, interval, inside):
    guided = classifier_free(Network(), scale, interval)
    x_0, x_0_null = answers()
    weight = np.where(np.array(inside) > 0, scale, 1.0)[:, None, None, None]
    np.testing.assert_allclose(guided, x_0_null + weight * (x_0 - x_0_null), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction", ["eps", "v", "velocity", "score"])
def test_guided_predictions_are_the_same_of_every_kind(prediction):
    x_0, x_0_null = answers()
    outputs = [from_x0(prediction, PROCESS, X_T, T, jnp.asarray(x)) for x in (x_0, x_0_null)]
    wanted = from_x0(prediction, PROCESS, X_T, T, classifier_free(Network(), 3.0))
    np.testing.assert_allclose(outputs[1] + 3.0 * (outputs[0] - outputs[1]), wanted, rtol=1e-4, atol=1e-4)


def test_autoguidance_is_the_formula_of_the_paper():
    """D_weak + w (D_strong - D_weak), equation 3 of Karras et al. 2024."""
    asked = []

    def weak(x_t, t, cond):
        asked.append("weak")
        return 0.5 * x_t

    def strong(x_t, t, cond):
        return x_t + 1.0

    def guided(scale, interval=()):
        return np.asarray(guidance.autoguided(strong, weak, {}, PROCESS, guidance.Guidance(scale, interval))(X_T, T))

    x = np.asarray(X_T)
    np.testing.assert_array_equal(guided(1.0), x + 1)
    assert not asked
    np.testing.assert_allclose(guided(2.5), 0.5 * x + 2.5 * (x + 1 - 0.5 * x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(guided(0.0), 0.5 * x, rtol=1e-6)
    limited = guided(2.5, (0.5, 2.0))
    np.testing.assert_allclose(limited[[0, 2]], x[[0, 2]] + 1, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(limited[1], guided(2.5)[1])


def test_guidance_that_cannot_be():
    mistake(lambda: guidance.check_guidance(2.0, False, "a weak model"), "guidance_scale is 2.0", "a weak model")
    mistake(lambda: guidance.check_guidance(float("nan"), True, ""), "guidance_scale is nan")
    guidance.check_guidance(1.0, False, "")
    clipped = guidance.clipped(lambda x_t, t: 3.0 * x_t)(X_T, T)
    np.testing.assert_allclose(clipped, np.clip(3 * np.asarray(X_T), -1, 1), rtol=1e-6)
