"""Optimisers and learning rates against their formulas in NumPy, over several steps."""

import jax.numpy as jnp
import numpy as np
import pytest

from jgen.train.config import Config, Optimiser
from jgen.train.optimisers import learning_rate, make_optimiser

STEPS = 40


def run(options, gradients, role=""):
    """Parameters after a step along each gradient, from ones: (steps, n)."""
    optimiser = make_optimiser(Config(steps=STEPS, optimiser=options), role)
    p = jnp.ones(gradients.shape[1])
    state, parameters = optimiser.transform.init(p), []
    for step, g in enumerate(gradients):
        updates, state = optimiser.transform.update(jnp.asarray(g), state, p)
        p = p - optimiser.learning_rate(step) * updates
        parameters.append(np.asarray(p))
    return np.stack(parameters)


def by_hand(name, gradients, rate, clip=0.0, decay=0.0, beta1=0.8, beta2=0.9, eps=1e-3):
    p, m, v = np.ones(gradients.shape[1]), 0.0, 0.0
    parameters = []
    for t, g in enumerate(gradients.astype(np.float64)):
        if clip:
            g = g * min(1.0, clip / np.linalg.norm(g))
        v = beta2 * v + (1 - beta2) * g**2
        if name in ("adam", "adamw"):
            m = beta1 * m + (1 - beta1) * g
            direction = (m / (1 - beta1 ** (t + 1))) / (np.sqrt(v / (1 - beta2 ** (t + 1))) + eps)
        elif name == "rmsprop":
            direction = g / (np.sqrt(v) + eps)
        else:
            m = beta1 * m + g
            direction = m
        p = p - rate * (direction + decay * p)
        parameters.append(p)
    return np.stack(parameters)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "rmsprop"])
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_steps_follow_the_formulas(name, clip):
    gradients = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    decay = 0.1 if name == "adamw" else 0.0
    options = Optimiser(name=name, learning_rate=0.05, beta1=0.8, beta2=0.9, eps=1e-3, clip_norm=clip)
    options = Optimiser(**{**vars(options), "weight_decay": decay})
    wanted = by_hand(name, gradients, 0.05, clip, decay)
    np.testing.assert_allclose(run(options, gradients), wanted, rtol=2e-5, atol=1e-6)


def test_a_role_has_options_of_its_own():
    gradients = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    own = (("disc", "learning_rate", 0.1), ("disc", "beta1", 0.3), ("disc", "clip_norm", 0.5), ("gen", "eps", 0.1))
    options = Optimiser(learning_rate=0.05, beta1=0.8, beta2=0.9, eps=1e-3, by_role=own)
    by_role = {
        "disc": by_hand("adam", gradients, 0.1, clip=0.5, beta1=0.3),
        "gen": by_hand("adam", gradients, 0.05, eps=0.1),
        "other": by_hand("adam", gradients, 0.05),
    }
    for role, wanted in by_role.items():
        np.testing.assert_allclose(run(options, gradients, role), wanted, rtol=2e-5, atol=1e-6)
    warm = Optimiser(warmup_steps=2, by_role=(("disc", "warmup_steps", 8.0),))
    assert warm.of("disc").warmup_steps == 8 and isinstance(warm.of("disc").warmup_steps, int)
    assert warm.of("gen") == warm.of("") == warm


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_the_rate_warms_up_and_falls_as_it_says(schedule):
    options = Optimiser(learning_rate=0.3, schedule=schedule, warmup_steps=8)
    for step in range(STEPS + 3):
        done = min(max(step - 8, 0) / (STEPS - 8), 1.0)
        fall = {"constant": 1.0, "cosine": 0.5 * (1 + np.cos(np.pi * done)), "linear": 1 - done}[schedule]
        wanted = 0.3 * min(1.0, (step + 1) / 8) * fall
        assert float(learning_rate(options, STEPS, step)) == pytest.approx(wanted, abs=1e-7)
