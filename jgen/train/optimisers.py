"""Makes optimisers from options: an optax transform for the direction, and a learning rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from jgen.train.config import Config, Optimiser


class RoleOptimiser(NamedTuple):
    """params <- params - learning_rate(step) * transform(gradients), if the gradient's global norm is at most
    `skip_norm` (0: always); other steps are skipped."""

    transform: optax.GradientTransformation
    learning_rate: Callable[[Any], Any]
    skip_norm: float = 0.0


def make_optimiser(config: Config, role: str = "") -> RoleOptimiser:
    """The optimiser that `config.optimiser` describes for a role, in a run of `config.steps` steps."""
    o = config.optimiser.of(role)
    chain = [optax.clip_by_global_norm(o.clip_norm) if o.clip_norm > 0 else optax.identity()]
    if o.name in ("adam", "adamw"):
        chain.append(optax.scale_by_adam(b1=o.beta1, b2=o.beta2, eps=o.eps))
    elif o.name == "rmsprop":
        chain.append(optax.scale_by_rms(decay=o.beta2, eps=o.eps, eps_in_sqrt=False))
    elif o.beta1 > 0:
        chain.append(optax.trace(decay=o.beta1))
    if o.weight_decay > 0:
        chain.append(optax.add_decayed_weights(o.weight_decay))
    return RoleOptimiser(optax.chain(*chain), partial(learning_rate, o, config.steps), o.skip_norm)


def learning_rate(o: Optimiser, steps: int, step: Any) -> Any:
    """Learning rate at step `step`, counted from 0: linear warm-up, then the schedule, which is zero after `steps`."""
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


def average_decay(config: Config) -> Callable[[Any], Any] | None:
    """The decay d of the moving average ema <- d ema + (1 - d) params, as a function of the number of steps before this
    one; None without an average.

        ema_decay      min(decay, (1 + step) / (10 + step)), or the decay itself without ema_warmup
        ema_half_life  0.5^(batch_size / half_life); with ema_warmup the half-life is at most a twentieth of the images
                       seen so far                                     (Karras et al. 2022, arXiv 2206.00364, code)
        ema_power      (1 - 1 / (step + 1))^(power + 1)                (Karras et al. 2024, arXiv 2312.02696, section 3)
    """

    def by_decay(step: Any) -> Any:
        if not config.ema_warmup:
            return jnp.float32(config.ema_decay)
        return jnp.minimum(config.ema_decay, (1.0 + step) / (10.0 + step))

    def by_half_life(step: Any) -> Any:
        half_life = jnp.float32(config.ema_half_life)
        if config.ema_warmup:
            half_life = jnp.minimum(half_life, 0.05 * config.batch_size * jnp.asarray(step, jnp.float32))
        return 0.5 ** (config.batch_size / jnp.maximum(half_life, 1e-8))

    def by_power(step: Any) -> Any:
        return (1.0 - 1.0 / (1.0 + jnp.asarray(step, jnp.float32))) ** (config.ema_power + 1.0)

    if config.ema_power > 0:
        return by_power
    if config.ema_half_life > 0:
        return by_half_life
    return by_decay if config.ema_decay > 0 else None
