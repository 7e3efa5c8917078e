"""StyleGAN2 with adaptive discriminator augmentation (Karras et al. 2020, arXiv 1912.04958 and 2006.06676).

    G(z, y)       w = mapping(z, y); a synthesis network of modulated convolutions; D a residual network:
                  jgen/nn/stylegan2.py, the paper's last configuration
    L_D, L_G      non-saturating losses: jgen/prob/adversarial.py
    R1            gamma / 2 E |grad D(x)|^2, in every 16th step, 16 times as strong       (appendix B)
    path length   weight E (|J^T n| - a)^2, J the Jacobian of G in w, n ~ N(0, I) / sqrt(H W), a the moving mean of
                  |J^T n|; in every 4th step, 4 times as strong                           (section 3.2, equation 4)
    mixing        layers from a random one on have the w of another latent                (1812.04948, section 3.1)
    noise         a normal image for every convolution, from the example's key
    ADA           D sees real and generated images through random transformations with probability p
                  (jgen/nn/adaptive_augmentation.py); p rises by `ada_rate` in a step where the moving mean of
                  sign D(x) is above the target, else it falls                            (2006.06676, section 3)
    truncation    w_mean + psi (w - w_mean), in sampling                                  (1812.04948, appendix B)

extra["path_length"] is a; extra["disc"] has "p" and the moving mean "sign" of sign D(x); the running statistics of G
are the moving mean of w. Rates and decays of Adam are corrected by `jgen.train.presets.lazy_rates`.

Glossary: z, w latent and mapped latent; x image in [-1, 1]; y class; G, D, "gen", "disc" generator and discriminator;
gamma `r1_weight`; psi `truncation`.

Differs from the papers: the number of doublings is an option, so that images of 28x28 begin at 7x7; images are enlarged
before a convolution, where the authors filter after it; groups of the minibatch deviation are consecutive examples; the
mixing layer is drawn per example; the path length uses the whole batch; a starts at the first step's path length, and
averages those of earlier steps only; sign D(x) is averaged with decay 3/4 instead of over four steps; the averaged
weights have their own mean of w.

Measured: a classifier assigns 91.3 % of samples to the class that they were conditioned on, Fréchet distance 72.4 on
the 8x8 digits (FD-digits; 22.6 between training and test images), recall 0.09; 1,376 steps of
`python train.py configs/gan/stylegan2.py:digits`. The run was stopped at 1,376 of its 4,500 steps: classes are told
apart, but samples of a class are nearly alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.core import parallel
from jgen.core.model import (
    Batch,
    Cond,
    Context,
    DataSpec,
    Frozen,
    GenerativeModel,
    Loss,
    Phase,
    Roles,
    Tree,
    every,
    select,
)
from jgen.errors import defaults_of, require, require_labels, require_positive
from jgen.models.gan import game as gan
from jgen.models.gan.game import Game, Penalty, make_gan, network_keys, require_halvings
from jgen.nn.adaptive_augmentation import augment, require_augmentable
from jgen.nn.stylegan2 import Discriminator, Generator
from jgen.prob.pixels import to_uint8

SIGN_DECAY = 0.75  # of the moving mean of sign D(x), over about four steps
PATH_DECAY = 0.99  # of the moving mean of path lengths


@dataclass(frozen=True)
class Sampling:
    """How images are sampled."""

    truncation: float = 1.0
    """psi: factor on w's deviation from its mean; 1: as in training, lower: better images with less variety, 0: the
    mean."""


@dataclass(frozen=True)
class Config:
    """A mapping network, a synthesis network and a residual discriminator."""

    channels: tuple[int, ...] = (64, 128, 256, 512)
    """Channels at the image's size, at 1/2 of it, at 1/4, ... of both networks."""
    latent: int = 512
    """Dimensions of z."""
    style: int = 512
    """Dimensions of w."""
    mapping_layers: int = 8
    """Layers of the mappings."""
    mixing: float = 0.9
    """Probability of style mixing in training."""
    group: int = 4
    """Group size of the minibatch deviation in the discriminator; 0: none."""
    r1_weight: float = 1.0
    """gamma: weight of half the discriminator's squared gradient on real images."""
    r1_every: int = 16
    """The gradient penalty is added in every n-th step only, n times as strong."""
    path_weight: float = 2.0
    """Weight of the path length regularisation; 0: none."""
    path_every: int = 4
    """The path length regularisation is added in every n-th step only, n times as strong."""
    ada_target: float = 0.6
    """Target for the mean of sign D(x), by which the augmentation probability is adapted; 0: no augmentation."""
    ada_rate: float = 1e-4
    """Change of the augmentation probability per step."""
    class_conditional: bool = True
    """Condition both networks on the class label."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the networks' computation; parameters and losses stay float32."""
    sampling: Sampling = field(default_factory=Sampling)


def make(config: Config, data: DataSpec) -> GenerativeModel:
    """A StyleGAN2 for the image shape, levels and classes of `data`.

    Raises:
      UserError: images that cannot be halved `len(channels) - 1` times, or options out of their range.
    """
    check_config(config, data)
    c, dtype = config, jnp.dtype(config.dtype)
    game = Game(
        data,
        ("label",) if c.class_conditional else (),
        Generator(c.channels, c.style, c.mapping_layers, c.mixing, data.image, dtype=dtype),
        Discriminator(c.channels, c.mapping_layers, c.group, dtype),
        c.latent,
        "non_saturating",
        Penalty("r1", c.r1_weight, c.r1_every),
        inputs=with_keys,
    )
    if c.ada_target > 0:
        adaptation = partial(adapt, c.ada_target, c.ada_rate)
        game = game._replace(init_disc_state=start_augmentation, augment=augment_for_disc, update_disc_state=adaptation)
    model = make_gan("stylegan2", game, c.sampling)
    if c.path_weight > 0:
        path = Phase(("gen",), partial(path_loss, game, c.path_weight * c.path_every), runs=every(c.path_every))
        model = model._replace(phases=(*model.phases, path._replace(name="path")), init=partial(init, game))
    return model._replace(
        sample=partial(sample, game, c.sampling),
        check_sampling=check_sampling,
        numbers={"truncation": ()},
        functions={**model.functions, "mix_styles": partial(mix_styles, game, c.sampling)},
    )


def init(game: Game, key: jax.Array, batch: Batch, frozen: Frozen) -> tuple[Roles, Roles]:
    params, extra = gan.init(game, key, batch, frozen)
    return params, extra | {"path_length": jnp.zeros(())}


def with_keys(keys: jax.Array, z: jax.Array, one_hot: jax.Array | None) -> tuple[Any, ...]:
    return z, one_hot, keys


def start_augmentation(key: jax.Array, disc: Tree) -> Roles:
    return {"p": jnp.zeros(()), "sign": jnp.zeros(())}


def augment_for_disc(state: Roles, keys: jax.Array, x: jax.Array) -> jax.Array:
    return augment(keys, x, state["p"])


def adapt(target: float, rate: float, state: Roles, real: jax.Array) -> Roles:
    """The next augmentation probability, from the moving mean of sign D(x) so far, and the next moving mean."""
    step = jnp.where(state["sign"] > target, rate, -rate)
    sign = SIGN_DECAY * state["sign"] + (1.0 - SIGN_DECAY) * jnp.mean(jnp.sign(jax.lax.stop_gradient(real)))
    return {"p": jnp.clip(state["p"] + step, 0.0, 1.0), "sign": sign}


def path_lengths(game: Game, gen: Tree, stats: Tree, keys: jax.Array, z: jax.Array, cond: Cond) -> jax.Array:
    """|J^T n| of each example, (B,): the root of the mean over layers of the squared norm of a layer's part."""
    key_styles, key_synthesis, key_n = rng.split(keys, 3)
    variables, one_hot = {"params": gen, "batch_stats": stats}, gan.one_hot(game, cond)
    ws, _ = game.generator.apply(variables, z, one_hot, key_styles, True, method="styles", mutable=["batch_stats"])
    height, width, _ = game.data.image.shape
    n = rng.normal(key_n, game.data.image.shape) * (height * width) ** -0.5

    def along(ws: jax.Array) -> jax.Array:
        return jnp.sum(n * game.generator.apply(variables, ws, key_synthesis, method="synthesise"))

    return jnp.sqrt(jnp.mean(jnp.sum(jax.grad(along)(ws) ** 2, axis=2), axis=1) + 1e-12)


def path_loss(game: Game, weight: float, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> Loss:
    """The path length regularisation: the loss of a lazy phase."""
    key_z, key_path = rng.split(keys, 2)
    cond, z, mean = select(batch, game.conditions), gan.draw_latents(game, key_z), ctx.extra["path_length"]
    lengths = path_lengths(game, params["gen"], ctx.extra["gen"]["trained"], key_path, z, cond)
    present = parallel.pmean(jax.lax.stop_gradient(jnp.mean(lengths)))
    # From zero, as in the authors' code, it would pull the lengths of a short training towards zero.
    mean = jnp.where(mean > 0, mean, present)
    new_mean = PATH_DECAY * mean + (1.0 - PATH_DECAY) * present
    return weight * jnp.mean((lengths - mean) ** 2), ({"path_length": jnp.mean(lengths)}, {"path_length": new_mean})


def sample(
    game: Game, defaults: Sampling, params: Roles, ctx: Context, keys: jax.Array, cond: Cond, **options: Any
) -> jax.Array:
    psi, (key_gen,) = replace(defaults, **options).truncation, network_keys(keys, 1)
    variables = {"params": params["gen"], "batch_stats": gan.sampling_statistics(ctx)}
    inputs = with_keys(key_gen, gan.draw_latents(game, keys), gan.one_hot(game, cond))
    return to_uint8(game.generator.apply(variables, *inputs, psi, method="truncated"), game.levels)


def mix_styles(
    game: Game,
    defaults: Sampling,
    params: Roles,
    ctx: Context,
    keys: tuple[jax.Array, jax.Array],
    conds: tuple[Cond, Cond],
) -> jax.Array:
    """Images with the coarse styles of samples of the first keys and the fine styles of those of the second
    (Karras et al. 2019, arXiv 1812.04948, figure 3); the noise is that of the first."""
    variables = {"params": params["gen"], "batch_stats": gan.sampling_statistics(ctx)}
    (key_gen,) = network_keys(keys[0], 1)
    latents = tuple(gan.draw_latents(game, each) for each in keys)
    one_hots = tuple(gan.one_hot(game, cond) for cond in conds)
    x = game.generator.apply(variables, latents, one_hots, key_gen, defaults.truncation, method="mixed")
    return to_uint8(x, game.levels)


def check_sampling(o: Sampling) -> None:
    """Raises `UserError` for a truncation that is negative or not finite."""
    require(0 <= o.truncation < float("inf"), f"truncation is {o.truncation}: it must be zero or above, and finite")


def check_config(config: Config, data: DataSpec) -> None:
    """Raises `UserError` if the configuration is invalid for this data."""
    c = config
    require_positive(channels=c.channels, latent=c.latent, style=c.style, mapping_layers=c.mapping_layers)
    require_positive(r1_weight=c.r1_weight, r1_every=c.r1_every, path_every=c.path_every, ada_rate=c.ada_rate)
    require(0 <= c.mixing <= 1, f"mixing is {c.mixing}: it must be from 0 to 1")
    require(c.group >= 0, f"group is {c.group}: it must be zero or above")
    require(0 <= c.path_weight < float("inf"), f"path_weight is {c.path_weight}: it must be zero or above, and finite")
    require(0 <= c.ada_target < 1, f"ada_target is {c.ada_target}: it must be at least 0 and below 1")
    require_halvings(data, "channels", len(c.channels) - 1)
    if c.ada_target > 0:
        require_augmentable(data.image, "ada_target")
    with defaults_of("sampling"):
        check_sampling(c.sampling)
    require_labels(data.num_classes, "class_conditional", c.class_conditional, False)
