"""Optimisers from options: optax for the direction, and a learning rate that is a function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from jgen.train.config import Config, Optimiser


class RoleOptimiser(NamedTuple):
    """params <- params - learning_rate(step) * transform(gradients)."""

    transform: optax.GradientTransformation
    learning_rate: Callable[[Any], Any]


def make_optimiser(config: Config, scale: float = 1.0) -> RoleOptimiser:
    """The optimiser that `config.optimiser` describes, for a run of `config.steps` steps; its rate is `scale` times."""
    o = config.optimiser
    chain = [optax.clip_by_global_norm(o.clip_norm) if o.clip_norm > 0 else optax.identity()]
    if o.name in ("adam", "adamw"):
        chain.append(optax.scale_by_adam(b1=o.beta1, b2=o.beta2, eps=o.eps))
    elif o.name == "rmsprop":
        chain.append(optax.scale_by_rms(decay=o.beta2, eps=o.eps, eps_in_sqrt=False))
    elif o.beta1 > 0:
        chain.append(optax.trace(decay=o.beta1))
    if o.weight_decay > 0:
        chain.append(optax.add_decayed_weights(o.weight_decay))
    return RoleOptimiser(optax.chain(*chain), lambda step: scale * learning_rate(o, config.steps, step))


def learning_rate(o: Optimiser, steps: int, step: Any) -> Any:
    """Learning rate of the step after `step` steps: linear warm-up, then the schedule, which is zero after `steps`."""
    step = jnp.asarray(step, jnp.float32)
    warmup = jnp.minimum(1.0, (step + 1) / o.warmup_steps) if o.warmup_steps else 1.0
    done = jnp.clip((step - o.warmup_steps) / max(steps - o.warmup_steps, 1), 0.0, 1.0)
    if o.schedule == "cosine":
        decay = 0.5 * (1 + jnp.cos(math.pi * done))
    elif o.schedule == "linear":
        decay = 1 - done
    else:
        decay = jnp.ones(())
    return o.learning_rate * warmup * decay
