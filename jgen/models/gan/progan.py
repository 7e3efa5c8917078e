"""Progressive growing of GANs (Karras, Aila, Laine & Lehtinen 2018, arXiv 1710.10196).

    levels      both networks begin at the lowest size. Each further size fades in over S steps, alpha from 0 to 1, and
                is trained for S steps more; the last to the end of the run: jgen/nn/progan.py    (section 2, figure 2)
    real images are blended with their own reduced copies by the same alpha while a size fades in
    L_D, L_G    Wasserstein with gradient penalty, plus E D(x)^2 with a small weight ("drift")    (appendix A.1)
    G, D        pixel norm, an equalised learning rate, minibatch deviation                       (sections 3 and 4)

Every level has its own phases, one pair of which runs in a step, so that a program is compiled for each level. All
parameters exist from the start; those of later levels are unchanged until then.

Glossary: z latent; x image in [-1, 1]; y class; G, D, "gen", "disc" generator and discriminator; k `disc_steps`;
S `grow_steps`; level 0 is the lowest size.

Differs from the paper: images of all levels have the full size, with repeated pixels, and the penalty's gradient is
taken with respect to these; the class is projected on D's features instead of an auxiliary classifier; the batch size
is constant.

Measured: a classifier assigns 95.1 % of samples to the class that they were conditioned on, Fréchet distance 43.1 on
the 8x8 digits (FD-digits; 22.6 between training and test images), recall 0.53; 1,220 steps of
`python train.py configs/gan/progan.py:digits`. The run was stopped at 1,220 of its 3,000 steps, soon after its last
size had faded in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jgen.core.model import Context, DataSpec, GenerativeModel, Phase, Roles
from jgen.errors import require, require_labels, require_positive
from jgen.models.gan import game as gan
from jgen.models.gan.game import Game, Penalty, Sampling, make_gan, require_halvings, without_noise
from jgen.nn.progan import Discriminator, Generator
from jgen.nn.resampling import average_pool, nearest


@dataclass(frozen=True)
class Config:
    """Networks that grow from the lowest size to the image's."""

    channels: tuple[int, ...] = (64, 128, 256, 256)
    """Channels at the image's size, at 1/2 of it, at 1/4, ... of both networks."""
    latent: int = 128
    """Dimensions of z."""
    grow_steps: int = 5000
    """S: steps over which a size fades in, and for which it is then trained before the next size."""
    group: int = 4
    """Group size of the minibatch deviation in the discriminator; 0: none."""
    loss: Literal["wasserstein", "non_saturating", "relativistic"] = "wasserstein"
    """Adversarial loss of discriminator and generator: see `jgen/prob/adversarial.py`."""
    penalty: Literal["gradient_penalty", "r1", "r1_r2"] = "gradient_penalty"
    """Penalty on the discriminator's gradient."""
    penalty_weight: float = 10.0
    """Weight of the penalty (for R1 and R2, of half the squared gradient)."""
    drift: float = 1e-3
    """Weight of E D(x)^2 in the discriminator's loss; 0: none."""
    disc_steps: int = 1
    """k: updates of the discriminator per generator update, each on a different batch."""
    class_conditional: bool = True
    """Condition both networks on the class label."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the networks' computation; parameters and losses stay float32."""
    sampling: Sampling = field(default_factory=Sampling)


def make(config: Config, data: DataSpec) -> GenerativeModel:
    """A progressively grown GAN for the image shape, levels and classes of `data`.

    Raises:
      UserError: images that cannot be halved `len(channels) - 1` times, or options out of their range.
    """
    check_config(config, data)
    c, dtype, top = config, jnp.dtype(config.dtype), len(config.channels) - 1
    whole = Game(
        data,
        ("label",) if c.class_conditional else (),
        Generator(c.channels, data.image, top, dtype=dtype),
        Discriminator(c.channels, c.group, top, dtype=dtype),
        c.latent,
        c.loss,
        Penalty(c.penalty, c.penalty_weight),
        inputs=without_noise,
        drift=c.drift,
        at_step=partial(faded, c.grow_steps),
    )
    games = [at_level(whole, level) for level in range(top + 1)]
    phases = []
    for level, game in enumerate(games):
        runs = partial(is_level, c.grow_steps, top, level)
        phases += [Phase(("disc",), partial(gan.disc_loss, game), repeats=c.disc_steps, runs=runs)]
        phases += [Phase(("gen",), partial(gan.gen_loss, game), runs=runs)]
    grown = partial(by_level, c.grow_steps, games)
    return make_gan("progan", whole, c.sampling)._replace(
        phases=tuple(phases),
        check_training=partial(check_training, c.grow_steps, top),
        sample=partial(grown, gan.sample),
        decode=partial(grown, gan.decode),
        invert=partial(grown, gan.invert),
        validate=partial(grown, gan.validate),
    )


def level_of(grow_steps: int, top: int, step: Any) -> Any:
    """The level trained in a step, counted from 0; for Python numbers or arrays."""
    level = (step // grow_steps + 1) // 2
    return min(level, top) if isinstance(level, int) else jnp.minimum(level, top)


def is_level(grow_steps: int, top: int, level: int, step: int) -> bool:
    """Whether a step, counted from 0, trains that level."""
    return level_of(grow_steps, top, step) == level


def fade(grow_steps: int, level: int, step: jax.Array) -> jax.Array:
    """alpha of a level in a step, counted from 0: it rises to 1 in the S steps from S (2 level - 1) on."""
    begin = grow_steps * (2 * level - 1)
    return jnp.clip((jnp.asarray(step, jnp.float32) - begin + 1.0) / grow_steps, 0.0, 1.0)


def at_level(game: Game, level: int) -> Game:
    """The game of the networks of that level."""
    networks = {name: getattr(game, name).clone(level=level) for name in ("generator", "discriminator")}
    return game._replace(**networks)


def faded(grow_steps: int, game: Game, step: jax.Array) -> Game:
    """The game at a step, with its level and the real images as far faded in as they are then."""
    level, top = game.generator.level, len(game.generator.channels) - 1
    alpha = fade(grow_steps, level, step) if level else 1.0
    networks = {name: getattr(game, name).clone(alpha=alpha) for name in ("generator", "discriminator")}
    return game._replace(**networks, prepare_real=partial(blend, level, top, alpha))


def blend(level: int, top: int, alpha: Any, x: jax.Array) -> jax.Array:
    """Real images (B, H, W, C) at the size of a level, with repeated pixels, blended with those of the size below."""

    def at_size(level: int) -> jax.Array:
        y = average_pool(x, x.shape[1] >> (top - level), x.shape[2] >> (top - level))
        for _ in range(top - level):
            y = nearest(y)
        return y

    return at_size(level) if level == 0 else alpha * at_size(level) + (1.0 - alpha) * at_size(level - 1)


def by_level(
    grow_steps: int,
    games: list[Game],
    function: Callable[..., Any],
    params: Roles,
    ctx: Context,
    *inputs: Any,
    **options: Any,
) -> Any:
    """A function of a game at the level of the last step before `ctx.step`."""
    # After `ctx.step` steps, the last that was taken is the one before.
    ctx = ctx._replace(step=jnp.maximum(jnp.asarray(ctx.step) - 1, 0))
    branches = [partial(function, game, **options) for game in games]
    return jax.lax.switch(level_of(grow_steps, len(games) - 1, ctx.step), branches, params, ctx, *inputs)


def check_training(grow_steps: int, top: int, steps: int) -> None:
    """Raises `UserError` if the run would end before the last size has faded in."""
    end = 2 * grow_steps * top
    growth = f"the last size has faded in after {end} steps, 2 x {top} x grow_steps"
    require(steps >= end, f"train.steps is {steps}: {growth}; train longer, or set a smaller --model.grow-steps")


def check_config(config: Config, data: DataSpec) -> None:
    """Raises `UserError` if the configuration is invalid for this data."""
    c = config
    require_positive(channels=c.channels, latent=c.latent, grow_steps=c.grow_steps, penalty_weight=c.penalty_weight)
    require_positive(disc_steps=c.disc_steps)
    require(c.group >= 0, f"group is {c.group}: it must be zero or above")
    require(0 <= c.drift < float("inf"), f"drift is {c.drift}: it must be zero or above, and finite")
    require_halvings(data, "channels", len(c.channels) - 1)
    require_labels(data.num_classes, "class_conditional", c.class_conditional, False)
