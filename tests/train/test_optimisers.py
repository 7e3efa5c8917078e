"""Optimisers and learning rates against their formulas in NumPy, over several steps."""

import jax.numpy as jnp
import numpy as np
import pytest

from jgen.train.config import Config, Optimiser
from jgen.train.optimisers import learning_rate, make_optimiser

STEPS = 40


def run(options, gradients, scale=1.0):
    """Parameters after a step along each gradient, from ones: (steps, n)."""
    optimiser = make_optimiser(Config(steps=STEPS, optimiser=options), scale)
    p = jnp.ones(gradients.shape[1])
    state, found = optimiser.transform.init(p), []
    for step, g in enumerate(gradients):
        updates, state = optimiser.transform.update(jnp.asarray(g), state, p)
        p = p - optimiser.learning_rate(step) * updates
        found.append(np.asarray(p))
    return np.stack(found)


def by_hand(name, gradients, rate, clip=0.0, decay=0.0, beta1=0.8, beta2=0.9, eps=1e-3, scale=1.0):
    p, m, v = np.ones(gradients.shape[1]), 0.0, 0.0
    found = []
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
        p = p - scale * rate(t) * (direction + decay * p)
        found.append(p)
    return np.stack(found)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "rmsprop"])
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_steps_follow_the_formulas(name, clip):
    gradients = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    decay = 0.1 if name == "adamw" else 0.0
    options = Optimiser(name=name, learning_rate=0.05, beta1=0.8, beta2=0.9, eps=1e-3, clip_norm=clip)
    options = Optimiser(**{**vars(options), "weight_decay": decay})
    wanted = by_hand(name, gradients, lambda step: 0.05, clip, decay, scale=0.5)
    np.testing.assert_allclose(run(options, gradients, scale=0.5), wanted, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_the_rate_warms_up_and_falls_as_it_says(schedule):
    options = Optimiser(learning_rate=0.3, schedule=schedule, warmup_steps=8)
    for step in range(STEPS + 3):
        done = min(max(step - 8, 0) / (STEPS - 8), 1.0)
        fall = {"constant": 1.0, "cosine": 0.5 * (1 + np.cos(np.pi * done)), "linear": 1 - done}[schedule]
        wanted = 0.3 * min(1.0, (step + 1) / 8) * fall
        assert float(learning_rate(options, STEPS, step)) == pytest.approx(wanted, abs=1e-7)
