"""Denoising diffusion GANs (Xiao, Kreis & Vahdat 2022, arXiv 2112.07804).

A diffusion of a few large steps i = 1 .. T, each reversed by a conditional GAN instead of a Gaussian (section 3.2):

    q(x_i | x_{i-1}) = N(sqrt(1 - beta_i) x_{i-1}, beta_i I)
    p(x_{i-1} | x_i) = int p(z) q(x_{i-1} | x_i, x_0 = G(x_i, z, i)) dz
    L_D = E_{q(x_{i-1}, x_i)} [-log D(x_{i-1}, x_i, i)] + E_{q(x_i) p(x_{i-1} | x_i)} [-log(1 - D(x_{i-1}, x_i, i))]
    L_G = E_{q(x_i) p(x_{i-1} | x_i)} [-log D(x_{i-1}, x_i, i)]
    R1  = w / 2 E_{q(x_{i-1}, x_i)} || grad D ||^2, in x_{i-1}, of D before its sigmoid, is added to L_D in every n-th
          step of training (Mescheder et al. 2018, arXiv 1801.04406)

with i uniform on 1 .. T. beta_i and the posterior q(x_{i-1} | x_i, x_0) are those of the variance-preserving process
between the times (i - 1) / T and i / T (jgen/prob/process.py, jgen/prob/diffusion_bound.py). Sampling begins with
x_T ~ N(0, I) and evaluates G T times. With T = 1 it is a conditional GAN, of images G(x_1, z, 1).

Glossary: x_0 data in [-1, 1]; `number` the step i; x_t, x_s the images after i and i - 1 steps; z ~ N(0, I) latent;
G, D, "gen", "disc" generator and discriminator.

Differs from the paper: G is DDPM's U-Net (jgen/nn/unet.py), not NCSN++; the mapped latent is added to its embedding of
the time, where the paper has adaptive group normalisation; D has strided convolutions instead of smoothed downsampling,
and no minibatch standard deviation, which would make an example depend on its batch; both networks may be
class-conditional: in D the class is added to the embedding of the time, which is also projected on D's features (arXiv
1802.05637); time begins at 0, not at 0.001.

Measured: a classifier assigns 97.5 % of samples to the class that they were conditioned on, Fréchet distance 34.2 on
the 8x8 digits (FD-digits) in four evaluations; 2,000 steps of `python train.py configs/diffusion/ddgan.py:digits`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jgen.core import keys as rng
from jgen.core.model import Batch, Cond, Context, DataSpec, Frozen, GenerativeModel, Loss, Phase, Roles, every, select
from jgen.errors import require, require_labels, require_positive
from jgen.nn import unet as networks
from jgen.nn.conv import Conv
from jgen.nn.embeddings import sinusoidal_embedding
from jgen.nn.resampling import average_pool
from jgen.prob import adversarial
from jgen.prob.diffusion_bound import clean_at_zero, posterior
from jgen.prob.pixels import to_float
from jgen.prob.process import Process, per_image, variance_preserving
from jgen.samplers.system import with_states


@dataclass(frozen=True)
class Sampling:
    """Sampling has no options: an image takes the T steps of training."""


@dataclass(frozen=True)
class Config:
    """A chain of conditional GANs, one for each step of a short diffusion."""

    network: networks.Config = field(default_factory=networks.Config)
    """The generator."""
    class_conditional: bool = True
    """Condition both networks on the class label."""
    num_timesteps: int = 4
    """T: steps of the diffusion, each one evaluation of the generator in sampling."""
    beta_min: float = 0.1
    """Rate beta of the noise at t = 0."""
    beta_max: float = 20.0
    """Rate beta of the noise at t = 1."""
    latent: int = 100
    """Dimensions of z."""
    mapping_width: int = 256
    """Width of the network that maps z to the generator's embedding."""
    mapping_layers: int = 4
    """Layers of the network that maps z."""
    disc_channels: tuple[int, ...] = (128, 256, 512, 512)
    """Width of each level of the discriminator, from full resolution down."""
    r1_weight: float = 0.02
    """Weight w of half the squared gradient of the discriminator on real pairs; 0: no penalty."""
    r1_every: int = 15
    """n: the penalty is added in every n-th step, with the same weight."""
    sampling: Sampling = field(default_factory=Sampling)


class Generator(nn.Module):
    """(x_t (B, H, W, C), z (B, latent), number (B,), label (B,) or None, dropout keys) to x_0 in [-1, 1]."""

    unet: networks.UNet
    mapping_width: int
    mapping_layers: int

    @nn.compact
    def __call__(
        self, x_t: jax.Array, z: jax.Array, number: jax.Array, label: jax.Array | None, keys: jax.Array | None
    ) -> jax.Array:
        h = z * jax.lax.rsqrt(jnp.mean(z**2, axis=-1, keepdims=True) + 1e-8)
        for layer in range(self.mapping_layers):
            h = nn.silu(nn.Dense(self.mapping_width, name=f"mapping{layer}")(h))
        return jnp.tanh(self.unet(x_t, number, label, keys, h))


class Discriminator(nn.Module):
    """(x_s, x_t (B, H, W, C), number (B,), label (B,) or None) to float32 (B,), high for a real pair.

    channels: width of each level, from full resolution down, each half as high and wide as the one before.
    """

    channels: tuple[int, ...]
    num_classes: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x_s: jax.Array, x_t: jax.Array, number: jax.Array, label: jax.Array | None) -> jax.Array:
        width = 4 * self.channels[0]
        e = sinusoidal_embedding(number, self.channels[0]).astype(self.dtype)
        e = nn.leaky_relu(nn.Dense(width, dtype=self.dtype, name="time1")(e), 0.2)
        e = nn.Dense(width, dtype=self.dtype, name="time2")(e)
        if self.num_classes:
            # As large as the embedding of the time; with flax's default it would be negligible.
            normal = nn.initializers.normal(1.0)
            e = e + nn.Embed(self.num_classes, width, embedding_init=normal, dtype=self.dtype, name="classes")(label)
        e = nn.leaky_relu(e, 0.2)
        h = Conv(self.channels[0], dtype=self.dtype, name="conv_in")(jnp.concatenate([x_s, x_t], axis=-1))
        for level, features in enumerate(self.channels):
            down = level < len(self.channels) - 1
            h = DiscriminatorBlock(features, down, self.dtype, name=f"block{level}")(h, e)
        h = nn.leaky_relu(h, 0.2).astype(jnp.float32)
        h = jnp.sum(h, axis=(1, 2)) * (h.shape[1] * h.shape[2]) ** -0.5  # of the size of one position's features
        projection = nn.Dense(h.shape[-1], name="projection")(e.astype(jnp.float32))
        return nn.Dense(1, name="dense")(h)[:, 0] + jnp.sum(projection * h, axis=-1) * h.shape[-1] ** -0.5


class DiscriminatorBlock(nn.Module):
    """Convolution, add the embedding, convolution of stride 2 where `down`, add the input, in units of its variance."""

    features: int
    down: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        """x (B, H, W, C), embedding (B, E), to (B, H, W, features), or half as high and wide."""
        h = Conv(self.features, dtype=self.dtype, name="conv1")(nn.leaky_relu(x, 0.2))
        h = h + nn.Dense(self.features, dtype=self.dtype, name="embedding")(embedding)[:, None, None, :]
        kernel_size, stride = (4, 2) if self.down else (3, 1)
        h = Conv(self.features, kernel_size, stride, dtype=self.dtype, name="conv2")(nn.leaky_relu(h, 0.2))
        if self.down:
            x = average_pool(x, x.shape[1] // 2, x.shape[2] // 2)
        x = nn.Dense(self.features, use_bias=False, dtype=self.dtype, name="shortcut")(x)
        return (h + x) * 0.5**0.5


class Chain(NamedTuple):
    """The coefficients of the steps s -> t of the diffusion, and of their posteriors; as a table one row per step.

    x_s = alpha x_0 + sigma eps,  x_t = keep x_s + noise eps,  q(x_s | x_t, x_0) = N(x0 x_0 + xt x_t, std^2)
    """

    alpha: Any
    sigma: Any
    keep: Any
    noise: Any
    x0: Any
    xt: Any
    std: Any


def make_chain(process: Process, steps: int) -> Chain:
    """The table of the steps i = 1 .. T, from the times (i - 1) / T to i / T, in float64."""
    t, s = np.arange(1, steps + 1) / steps, np.arange(steps) / steps
    alpha, sigma = clean_at_zero(process, s)
    c = posterior(process, t, s)
    return Chain(alpha, sigma, process.alpha(t) / alpha, c.beta**0.5, c.x0, c.xt, c.beta_tilde**0.5)


def at_step(chain: Chain, number: jax.Array, like: jax.Array) -> Chain:
    """The rows of the steps `number` (B,), shaped to multiply `like`."""
    return Chain(*(per_image(jnp.asarray(column, like.dtype)[number - 1], like) for column in chain))


def draw_pair(chain: Chain, number: jax.Array, keys: jax.Array, x_0: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(x_s, x_t) from q(x_s | x_0) q(x_t | x_s), each of the shape of x_0."""
    c, (key_s, key_t) = at_step(chain, number, x_0), rng.split(keys, 2)
    x_s = c.alpha * x_0 + c.sigma * rng.normal(key_s, x_0.shape[1:])
    return x_s, c.keep * x_s + c.noise * rng.normal(key_t, x_0.shape[1:])


def draw_posterior(chain: Chain, number: jax.Array, keys: jax.Array, x_t: jax.Array, x_0: jax.Array) -> jax.Array:
    """x_s from q(x_s | x_t, x_0)."""
    c = at_step(chain, number, x_t)
    return c.x0 * x_0 + c.xt * x_t + c.std * rng.normal(keys, x_t.shape[1:])


class Ddgan(NamedTuple):
    """First argument of the functions below, bound by `make` with `functools.partial`."""

    config: Config
    data: DataSpec
    chain: Chain
    generator: Generator
    discriminator: Discriminator
    conditions: tuple[str, ...]


def make(config: Config, data: DataSpec) -> GenerativeModel:
    """A denoising diffusion GAN for the image shape, levels and classes of `data`.

    Raises:
      UserError: sizes that the networks cannot be built with, or options out of their range.
    """
    check_config(config, data)
    chain = make_chain(variance_preserving(config.beta_min, config.beta_max), config.num_timesteps)
    num_classes = config.class_conditional * data.num_classes
    unet = networks.make_unet(config.network, data.image, num_classes)
    generator = Generator(unet, config.mapping_width, config.mapping_layers)
    discriminator = Discriminator(config.disc_channels, num_classes, jnp.dtype(config.network.dtype))
    conditions = ("label",) if config.class_conditional else ()
    gan = Ddgan(config, data, chain, generator, discriminator, conditions)
    model = GenerativeModel(
        name="ddgan",
        data=data,
        init=partial(init, gan),
        phases=phases_of(gan),
        sampling=config.sampling,
        conditions=conditions,
        validate=partial(validate, gan),
        averages=("gen",),
    )
    return with_states(model, partial(states, gan), lambda o: config.num_timesteps)


def phases_of(gan: Ddgan) -> tuple[Phase, ...]:
    """An update of D, with the penalty in every n-th step, then one of G."""
    penalised = Phase(("disc",), partial(disc_loss, gan, gan.config.r1_weight), name="disc_r1")
    plain = Phase(("disc",), partial(disc_loss, gan, 0.0))
    gen = Phase(("gen",), partial(gen_loss, gan))
    if gan.config.r1_weight == 0:
        return plain, gen
    if gan.config.r1_every == 1:
        return penalised, gen
    lazy = every(gan.config.r1_every)
    return penalised._replace(runs=lazy), plain._replace(runs=lambda step: not lazy(step)), gen


def init(gan: Ddgan, key: jax.Array, batch: Batch, frozen: Frozen) -> tuple[Roles, Roles]:
    key_gen, key_disc = jax.random.split(key)
    x, number = to_float(batch["image"][:1], gan.data.image.levels), jnp.ones(1, jnp.int32)
    label = batch["label"][:1] if gan.conditions else None
    gen = gan.generator.init(key_gen, x, jnp.ones((1, gan.config.latent)), number, label, None)
    disc = gan.discriminator.init(key_disc, x, x, number, label)
    return {"gen": gen["params"], "disc": disc["params"]}, {}


def reverse_step(
    gan: Ddgan, params: Roles, keys: jax.Array, x_t: jax.Array, number: jax.Array, cond: Cond, train: bool
) -> jax.Array:
    """x_s from p(x_s | x_t): a latent, G's prediction of x_0, and a draw from the posterior (section 3.2).

    Args:
      train: whether G has dropout.
    """
    key_z, key_noise, key_drop = rng.split(keys, 3)
    inputs = x_t, rng.normal(key_z, (gan.config.latent,)), number, cond.get("label"), key_drop if train else None
    x_0 = gan.generator.apply({"params": params["gen"]}, *inputs)
    return draw_posterior(gan.chain, number, key_noise, x_t, x_0)


class Pairs(NamedTuple):
    """D's inputs for a batch: the real and the generated x_s of the same x_t, after `number` - 1 steps."""

    real: jax.Array
    fake: jax.Array
    x_t: jax.Array
    number: jax.Array
    cond: Cond


def draw_pairs(gan: Ddgan, params: Roles, keys: jax.Array, batch: Batch, train: bool) -> Pairs:
    """Both pairs of each example, at a random step; `train`: see `reverse_step`."""
    key_step, key_pair, key_fake = rng.split(keys, 3)
    cond = select(batch, gan.conditions)
    number = rng.randint(key_step, 1, gan.config.num_timesteps + 1)
    real, x_t = draw_pair(gan.chain, number, key_pair, to_float(batch["image"], gan.data.image.levels))
    fake = reverse_step(gan, params, key_fake, x_t, number, cond, train)
    return Pairs(real, fake, x_t, number, cond)


def discriminate(gan: Ddgan, params: Roles, pairs: Pairs, x_s: jax.Array) -> jax.Array:
    """D(x_s, x_t, i) before its sigmoid, (B,)."""
    return gan.discriminator.apply({"params": params["disc"]}, x_s, pairs.x_t, pairs.number, pairs.cond.get("label"))


def disc_loss(gan: Ddgan, r1_weight: float, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> Loss:
    """L_D, with R1 unless its weight is zero."""
    pairs = draw_pairs(gan, params, keys, batch, True)
    critic = partial(discriminate, gan, params, pairs)
    real, fake = critic(pairs.real), critic(pairs.fake)
    loss = jnp.mean(adversarial.discriminator_loss("non_saturating", real, fake))
    metrics = {"accuracy_real": jnp.mean(real > 0), "accuracy_fake": jnp.mean(fake < 0)}
    if r1_weight > 0:
        metrics["penalty"] = jnp.mean(adversarial.r1_penalty(critic, pairs.real))
        loss = loss + r1_weight * metrics["penalty"]
    return loss, (metrics, {})


def gen_loss(gan: Ddgan, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> Loss:
    """L_G."""
    pairs = draw_pairs(gan, params, keys, batch, True)
    fake = discriminate(gan, params, pairs, pairs.fake)
    return jnp.mean(adversarial.generator_loss("non_saturating", fake)), ({}, {})


def validate(gan: Ddgan, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """The discriminator's accuracy on held-out and on generated pairs: overfitting shows as held-out judged fake."""
    pairs = draw_pairs(gan, params, keys, batch, False)
    real, fake = (discriminate(gan, params, pairs, x_s) for x_s in (pairs.real, pairs.fake))
    accuracy = {"accuracy_real": real > 0, "accuracy_fake": fake < 0}
    return {name: flags.astype(jnp.float32) for name, flags in accuracy.items()}


def states(gan: Ddgan, params: Roles, ctx: Context, keys: jax.Array, cond: Cond) -> jax.Array:
    """The image after each of the T steps from x_T ~ N(0, I), float (T, B, H, W, C)."""
    key_start, key_steps = rng.split(keys, 2)

    def step(x_t: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
        number = jnp.full(x_t.shape[:1], i)
        x_s = reverse_step(gan, params, rng.fold_in(key_steps, i), x_t, number, cond, False)
        return x_s, x_s

    start = rng.normal(key_start, gan.data.image.shape)
    return jax.lax.scan(step, start, jnp.arange(gan.config.num_timesteps, 0, -1))[1]


def check_config(config: Config, data: DataSpec) -> None:
    """Raises `UserError` if the configuration is invalid for this data."""
    require_positive(num_timesteps=config.num_timesteps, latent=config.latent, mapping_width=config.mapping_width)
    require_positive(mapping_layers=config.mapping_layers, disc_channels=config.disc_channels, r1_every=config.r1_every)
    weight, channels = config.r1_weight, config.disc_channels
    require(0 <= weight < float("inf"), f"r1_weight is {weight}: it must be zero or above, and finite")
    require_labels(data.num_classes, "class_conditional", config.class_conditional, False)
    height, width = data.image.shape[:2]
    factor = 2 ** (len(channels) - 1)
    require(
        height % factor == 0 and width % factor == 0,
        f"images are {height}x{width}: disc_channels {channels} need sizes divisible by {factor}",
    )
