"""Four small models unlike one another, to show that the contract holds for all: GAN, VAE, VQ, second stage."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.core.model import GenerativeModel, ImageSpec, Phase, first_stage_context
from jgen.prob.likelihoods import normal_kl, sum_image
from jgen.prob.pixels import to_float, to_uint8

IMAGES = ImageSpec(8, 8, 1, 10, 256)
LATENT = 4


class Mlp(nn.Module):
    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for size in self.sizes[:-1]:
            x = nn.tanh(nn.Dense(size)(x))
        return nn.Dense(self.sizes[-1])(x)


class BatchNormGenerator(nn.Module):
    axis_name: Any

    @nn.compact
    def __call__(self, z, train: bool):
        h = nn.Dense(16)(z)
        h = nn.BatchNorm(use_running_average=not train, axis_name=self.axis_name if train else None, momentum=0.9)(h)
        return jnp.tanh(nn.Dense(IMAGES.size)(nn.relu(h))).reshape(-1, *IMAGES.shape)


def flat(images):
    return to_float(images, IMAGES.levels).reshape(images.shape[0], -1)


def gan(axis_name=None, repeats=2, every=1):
    """Two phases, BatchNorm statistics in `extra`, two discriminator steps a generator step."""
    generator, critic = BatchNormGenerator(axis_name), Mlp((16, 1))

    def init(key, batch):
        key_g, key_d = jax.random.split(key)
        made = BatchNormGenerator(None).init(key_g, jnp.zeros((2, LATENT)), True)
        disc = critic.init(key_d, flat(batch["image"]))["params"]
        return {"gen": made["params"], "disc": disc}, {"gen": made["batch_stats"]}

    def generate(params, ctx, keys, train):
        z = rng.normal(keys, (LATENT,))
        variables = {"params": params["gen"], "batch_stats": ctx.extra["gen"]}
        if not train:
            return generator.apply(variables, z, False), ctx.extra["gen"]
        images, updated = generator.apply(variables, z, True, mutable=["batch_stats"])
        return images, updated["batch_stats"]

    def logits(params, x):
        return critic.apply({"params": params["disc"]}, x.reshape(x.shape[0], -1))[:, 0]

    def disc_loss(params, ctx, keys, batch):
        fake, _ = generate(params, ctx, keys, True)
        real = logits(params, flat(batch["image"]))
        loss = jnp.mean(jax.nn.softplus(-real) + jax.nn.softplus(logits(params, fake)))
        return loss, ({"accuracy": jnp.mean(real > 0)}, {})

    def gen_loss(params, ctx, keys, batch):
        fake, stats = generate(params, ctx, keys, True)
        return jnp.mean(jax.nn.softplus(-logits(params, fake))), ({}, {"gen": stats})

    def sample(params, ctx, keys, label):
        return to_uint8(generate(params, ctx, keys, False)[0], IMAGES.levels)

    phases = (Phase(("disc",), disc_loss, repeats, every), Phase(("gen",), gen_loss))
    return GenerativeModel("toy gan", IMAGES, init, phases, sample)


def vae(axis_name=None):
    """One phase over two roles, with reparameterisation."""
    encoder, decoder = Mlp((32, 2 * LATENT)), Mlp((32, IMAGES.size))

    def init(key, batch):
        key_e, key_d = jax.random.split(key)
        enc = encoder.init(key_e, flat(batch["image"]))["params"]
        return {"enc": enc, "dec": decoder.init(key_d, jnp.zeros((1, LATENT)))["params"]}, {}

    def elbo(params, keys, images):
        mu, logvar = jnp.split(encoder.apply({"params": params["enc"]}, flat(images)), 2, axis=-1)
        z = mu + jnp.exp(0.5 * logvar) * rng.normal(keys, (LATENT,))
        x = decoder.apply({"params": params["dec"]}, z)
        return -50 * sum_image((x - flat(images)) ** 2) / IMAGES.size - sum_image(normal_kl(mu, logvar, 0.0, 0.0))

    def loss(params, ctx, keys, batch):
        return -jnp.mean(elbo(params, keys, batch["image"])), ({}, {})

    def encode(params, ctx, keys, images, label):
        return jnp.split(encoder.apply({"params": params["enc"]}, flat(images)), 2, axis=-1)[0]

    def decode(params, ctx, keys, z, label):
        x = decoder.apply({"params": params["dec"]}, z)
        return to_uint8(x.reshape(-1, *IMAGES.shape), IMAGES.levels)

    def sample(params, ctx, keys, label):
        return decode(params, ctx, keys, rng.normal(keys, (LATENT,)), label)

    def log_prob(params, ctx, keys, images, label):
        return elbo(params, keys, images)

    can = {"log_prob": log_prob, "likelihood": "lower_bound", "encode": encode, "decode": decode}
    return GenerativeModel("toy vae", IMAGES, init, (Phase(("enc", "dec"), loss),), sample, **can)


def vq(axis_name=None):
    """A vector quantiser whose codebook is an average of encodings, in `extra`, synchronised by the step."""
    codes, decay = 8, 0.9
    encoder, decoder = Mlp((32, LATENT)), Mlp((32, IMAGES.size))

    def init(key, batch):
        key_e, key_d, key_c = jax.random.split(key, 3)
        params = {
            "enc": encoder.init(key_e, flat(batch["image"]))["params"],
            "dec": decoder.init(key_d, jnp.zeros((1, LATENT)))["params"],
        }
        sums = jax.random.normal(key_c, (codes, LATENT))
        return params, {"codebook": {"count": jnp.ones(codes) / codes, "sum": sums / codes}}

    def quantise(z, book):
        centres = book["sum"] / jnp.maximum(book["count"], 1e-6)[:, None]
        nearest = jnp.argmin(jnp.sum((z[:, None, :] - centres[None, :, :]) ** 2, -1), axis=1)
        return centres[nearest], jax.nn.one_hot(nearest, codes)

    def loss(params, ctx, keys, batch):
        x, book = flat(batch["image"]), ctx.extra["codebook"]
        z = encoder.apply({"params": params["enc"]}, x)
        q, one_hot = quantise(z, book)
        straight = z + jax.lax.stop_gradient(q - z)
        error = jnp.mean((decoder.apply({"params": params["dec"]}, straight) - x) ** 2)
        commitment = jnp.mean((z - jax.lax.stop_gradient(q)) ** 2)
        # Means over the examples: averaged over devices and parts they are the means over the whole batch.
        found = {"count": jnp.mean(one_hot, 0), "sum": one_hot.T @ jax.lax.stop_gradient(z) / z.shape[0]}
        new = jax.tree.map(lambda old, f: decay * old + (1 - decay) * f, book, found)
        return error + 0.25 * commitment, ({"error": error}, {"codebook": new})

    def sample(params, ctx, keys, label):
        book = ctx.extra["codebook"]
        centres = book["sum"] / jnp.maximum(book["count"], 1e-6)[:, None]
        q = centres[rng.randint(keys, 0, codes)]
        return to_uint8(decoder.apply({"params": params["dec"]}, q).reshape(-1, *IMAGES.shape), IMAGES.levels)

    return GenerativeModel("toy vq", IMAGES, init, (Phase(("enc", "dec"), loss),), sample)


def second_stage(axis_name=None, first_stage=None):
    """A Gaussian prior, with a learned mean and scale, over the latents of a frozen toy VAE."""
    first = first_stage or vae()

    def init(key, batch):
        return {"prior": {"mean": jnp.zeros(LATENT), "log_std": jnp.zeros(LATENT)}}, {}

    def loss(params, ctx, keys, batch):
        z = first.encode(*first_stage_context(ctx), keys, batch["image"], None)
        p = params["prior"]
        scaled = (z - p["mean"][None, :]) * jnp.exp(-p["log_std"])[None, :]
        return jnp.mean(jnp.sum(0.5 * scaled**2 + p["log_std"][None, :], axis=1)), ({}, {})

    def sample(params, ctx, keys, label):
        p = params["prior"]
        z = p["mean"][None, :] + jnp.exp(p["log_std"])[None, :] * rng.normal(keys, (LATENT,))
        return first.decode(*first_stage_context(ctx), keys, z, None)

    return GenerativeModel("toy second stage", IMAGES, init, (Phase(("prior",), loss),), sample)


TOYS = {"gan": gan, "vae": vae, "vq": vq, "second_stage": second_stage}


def frozen_for(name: str):
    """What a toy stands on, as `ctx.frozen`."""
    if name != "second_stage":
        return {}
    batch = {"image": jnp.zeros((2, *IMAGES.shape), jnp.uint8)}
    return {"first_stage": vae().init(jax.random.key(5), batch)}
