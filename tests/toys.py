"""Small models, one for each feature of the contract, to show that it holds for all of them."""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.core import parallel
from jgen.core.backend import plain_forms
from jgen.core.model import (
    ArraySpec,
    DataSpec,
    GenerativeModel,
    ImageSpec,
    Phase,
    always,
    every,
    frozen_context,
)
from jgen.nn.normalization import GroupNorm
from jgen.prob.likelihoods import normal_kl, sum_image
from jgen.prob.pixels import to_float, to_uint8

IMAGES = ImageSpec(8, 8, 1, 256)
DATA = DataSpec(IMAGES, {"label": ArraySpec((), "int32", 10)})
CAPTIONED = DataSpec(
    IMAGES,
    {
        "label": ArraySpec((), "int32", 10),
        "text": ArraySpec((6,), "int32", 20),
        "low_resolution": ArraySpec((4, 4, 1), "uint8", 256),
        "mask": ArraySpec((8, 8), "bool", 2),
    },
)
LATENT = 4


class Mlp(nn.Module):
    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for size in self.sizes[:-1]:
            x = nn.tanh(nn.Dense(size)(x))
        return nn.Dense(self.sizes[-1])(x)


class BatchNormGenerator(nn.Module):
    @nn.compact
    def __call__(self, z, train: bool):
        h = nn.Dense(16)(z)
        axis_name = parallel.axis_name() if train else None
        h = nn.BatchNorm(use_running_average=not train, axis_name=axis_name, momentum=0.9)(h)
        return jnp.tanh(nn.Dense(IMAGES.size)(nn.relu(h))).reshape(-1, *IMAGES.shape)


def flat(images):
    return to_float(images, IMAGES.levels).reshape(images.shape[0], -1)


def to_images(x):
    return to_uint8(x.reshape(-1, *IMAGES.shape), IMAGES.levels)


def gan(repeats=2, runs=always, standing=False):
    """Two phases, BatchNorm statistics in `extra`, two discriminator steps a generator step.

    standing: whether the statistics to sample with are found anew before sampling.
    """
    generator, critic = BatchNormGenerator(), Mlp((16, 1))

    def init(key, batch, frozen):
        key_g, key_d = jax.random.split(key)
        made = generator.init(key_g, jnp.zeros((2, LATENT)), True)
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

    def sample(params, ctx, keys, cond):
        return to_uint8(generate(params, ctx, keys, False)[0], IMAGES.levels)

    def prepare(params, ctx, keys, cond):
        stats = ctx.extra["gen"]
        for _ in range(30):  # with a momentum of 0.9, nothing is left of what it started from
            stats = generate(params, ctx._replace(extra={"gen": stats}), keys, True)[1]
        return {"gen": stats}

    phases = (Phase(("disc",), disc_loss, repeats, runs), Phase(("gen",), gen_loss))
    return GenerativeModel("toy gan", DATA, init, phases, sample, prepare=prepare if standing else None)


def vae():
    """One phase over two roles, with reparameterisation."""
    encoder, decoder = Mlp((32, 2 * LATENT)), Mlp((32, IMAGES.size))

    def init(key, batch, frozen):
        key_e, key_d = jax.random.split(key)
        enc = encoder.init(key_e, flat(batch["image"]))["params"]
        return {"enc": enc, "dec": decoder.init(key_d, jnp.zeros((1, LATENT)))["params"]}, {}

    def elbo(params, keys, images):
        mu, logvar = jnp.split(encoder.apply({"params": params["enc"]}, flat(images)), 2, axis=-1)
        z = mu + jnp.exp(0.5 * logvar) * rng.normal(keys, (LATENT,))
        x = decoder.apply({"params": params["dec"]}, z)
        return -50 * sum_image((x - flat(images)) ** 2) / IMAGES.size - sum_image(normal_kl(mu, logvar, 0.0, 0.0))

    def loss(params, ctx, keys, batch):
        return -jnp.mean(elbo(params, keys, batch["image"])), ({"constant": 1}, {})

    def encode(params, ctx, keys, images, cond):
        return jnp.split(encoder.apply({"params": params["enc"]}, flat(images)), 2, axis=-1)[0]

    def decode(params, ctx, keys, z, cond):
        return to_images(decoder.apply({"params": params["dec"]}, z))

    def sample(params, ctx, keys, cond):
        return decode(params, ctx, keys, rng.normal(keys, (LATENT,)), cond)

    def log_prob(params, ctx, keys, images, cond):
        return elbo(params, keys, images)

    can = {"log_prob": log_prob, "likelihood": "lower_bound", "encode": encode, "decode": decode}
    best = ("log_prob", "max")
    return GenerativeModel("toy vae", DATA, init, (Phase(("enc", "dec"), loss),), sample, best=best, **can)


def vq():
    """A vector quantiser whose codebook is an average of encodings, in `extra`, synchronised by the step."""
    codes, decay = 8, 0.9
    encoder, decoder = Mlp((32, LATENT)), Mlp((32, IMAGES.size))

    def init(key, batch, frozen):
        key_e, key_d, key_c = jax.random.split(key, 3)
        params = {
            "enc": encoder.init(key_e, flat(batch["image"]))["params"],
            "dec": decoder.init(key_d, jnp.zeros((1, LATENT)))["params"],
        }
        sums = jax.random.normal(key_c, (codes, LATENT))
        return params, {"codebook": {"count": jnp.ones(codes) / codes, "sum": sums / codes}}

    def centres_of(book):
        return book["sum"] / jnp.maximum(book["count"], 1e-6)[:, None]

    def quantise(z, book):
        centres = centres_of(book)
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
        means = {"count": jnp.mean(one_hot, 0), "sum": one_hot.T @ jax.lax.stop_gradient(z) / z.shape[0]}
        new = jax.tree.map(lambda old, f: decay * old + (1 - decay) * f, book, means)
        return error + 0.25 * commitment, ({"error": error}, {"codebook": new})

    def sample(params, ctx, keys, cond):
        q = centres_of(ctx.extra["codebook"])[rng.randint(keys, 0, codes)]
        return to_images(decoder.apply({"params": params["dec"]}, q))

    return GenerativeModel("toy vq", DATA, init, (Phase(("enc", "dec"), loss),), sample)


def latent_prior(*, autoencoder):
    """A Gaussian with a learned mean and scale over the latents of a frozen model, by its `encode` and `decode`."""

    def init(key, batch, frozen):
        # From the frozen model: the mean of the first batch's latents.
        z = autoencoder.encode(*frozen_context_of(frozen, "autoencoder"), None, batch["image"], {})
        return {"prior": {"mean": jnp.mean(z, axis=0), "log_std": jnp.zeros(LATENT)}}, {}

    def loss(params, ctx, keys, batch):
        z = autoencoder.encode(*frozen_context(ctx, "autoencoder"), keys, batch["image"], {})
        p = params["prior"]
        scaled = (z - p["mean"][None, :]) * jnp.exp(-p["log_std"])[None, :]
        return jnp.mean(jnp.sum(0.5 * scaled**2 + p["log_std"][None, :], axis=1)), ({}, {})

    def encode(params, ctx, keys, images, cond):
        z = autoencoder.encode(*frozen_context(ctx, "autoencoder"), keys, images, {})
        return (z - params["prior"]["mean"][None, :]) * jnp.exp(-params["prior"]["log_std"])[None, :]

    def decode(params, ctx, keys, eps, cond):
        p = params["prior"]
        z = p["mean"][None, :] + jnp.exp(p["log_std"])[None, :] * eps
        return autoencoder.decode(*frozen_context(ctx, "autoencoder"), keys, z, {})

    def sample(params, ctx, keys, cond):
        return decode(params, ctx, keys, rng.normal(keys, (LATENT,)), cond)

    can = {"encode": encode, "decode": decode}
    return GenerativeModel("toy latent prior", DATA, init, (Phase(("prior",), loss),), sample, **can)


def frozen_context_of(frozen, role):
    """The frozen model's parameters and context inside `init`."""
    from jgen.core.model import Context

    return frozen_context(Context(jnp.int32(0), frozen=frozen), role)


def classifier():
    """No sampler: it trains, is validated, and provides its `logits`."""
    network = Mlp((16, 10))

    def init(key, batch, frozen):
        return {"classifier": network.init(key, flat(batch["image"]))["params"]}, {}

    def logits(params, ctx, x):
        return network.apply({"params": params["classifier"]}, x.reshape(x.shape[0], -1))

    def cross_entropy(params, ctx, batch):
        log_probs = jax.nn.log_softmax(logits(params, ctx, to_float(batch["image"], IMAGES.levels)))
        return -jnp.sum(log_probs * jax.nn.one_hot(batch["label"], 10), axis=1)

    def loss(params, ctx, keys, batch):
        return jnp.mean(cross_entropy(params, ctx, batch)), ({}, {})

    def validate(params, ctx, keys, batch):
        return {"cross_entropy": cross_entropy(params, ctx, batch)}

    return GenerativeModel(
        "toy classifier",
        DATA,
        init,
        (Phase(("classifier",), loss),),
        validate=validate,
        best=("cross_entropy", "min"),
        functions={"logits": logits},
    )


def guided(*, classifier, autoencoder):
    """Two frozen models by role: images decoded by one from latents pushed towards a class by the other's `logits`."""

    def init(key, batch, frozen):
        return {"push": {"size": jnp.full((LATENT,), 0.1)}}, {}

    def class_log_prob(ctx, x, label):
        logits = classifier.functions["logits"](*frozen_context(ctx, "classifier"), x)
        return jnp.sum(jax.nn.log_softmax(logits) * jax.nn.one_hot(label, 10), axis=1)

    def pushed(params, ctx, z, label):
        def score(z):
            images = jnp.tanh(z @ jnp.eye(LATENT, IMAGES.size)).reshape(-1, *IMAGES.shape)
            return jnp.sum(class_log_prob(ctx, images, label))

        return z + params["push"]["size"][None, :] * jax.grad(score)(z)

    def loss(params, ctx, keys, batch):
        z = autoencoder.encode(*frozen_context(ctx, "autoencoder"), keys, batch["image"], {})
        return jnp.mean((pushed(params, ctx, z, batch["label"]) - z) ** 2), ({}, {})

    def sample(params, ctx, keys, cond):
        z = pushed(params, ctx, rng.normal(keys, (LATENT,)), cond["label"])
        return autoencoder.decode(*frozen_context(ctx, "autoencoder"), keys, z, {})

    return GenerativeModel("toy guided", DATA, init, (Phase(("push",), loss),), sample, conditions=("label",))


SLOTS = 3  # negatives of an example


def energy():
    """State that belongs to the examples: negatives, moved by Langevin steps, and how often each has been moved."""
    network = Mlp((16, 1))

    def init(key, batch, frozen):
        num = batch["image"].shape[0]
        negatives = rng.uniform(rng.image_keys(key, jnp.arange(num)), (SLOTS, IMAGES.size))
        moves = jnp.zeros((num, SLOTS), jnp.int32)
        params = network.init(key, flat(batch["image"]))["params"]
        return {"energy": params}, {"buffer": {"x": negatives, "moves": moves}}

    def energies(params, x):
        return network.apply({"params": params["energy"]}, x)[:, 0]

    def loss(params, ctx, keys, batch):
        key_slot, key_noise = rng.split(keys, 2)
        buffer, rows = ctx.extra["buffer"], jnp.arange(keys.shape[0])
        slot = rng.randint(key_slot, 0, SLOTS)
        x = buffer["x"][rows, slot]
        fixed = jax.lax.stop_gradient(params)
        step = jax.grad(lambda x: jnp.sum(energies(fixed, x)))(x)
        x = jnp.clip(x - 0.1 * step + 0.01 * rng.normal(key_noise, (IMAGES.size,)), -1, 1)
        new = {"x": buffer["x"].at[rows, slot].set(x), "moves": buffer["moves"].at[rows, slot].add(1)}
        positive, negative = energies(params, flat(batch["image"])), energies(params, x)
        value = jnp.mean(positive - negative + 0.1 * (positive**2 + negative**2))
        return value, ({}, {"buffer": new})

    def energy(params, ctx, keys, images, cond):
        return energies(params, flat(images))

    def sample(params, ctx, keys, cond):
        x = rng.uniform(keys, (IMAGES.size,))
        return to_images(x - jax.grad(lambda x: jnp.sum(energies(params, x)))(x))

    phases = (Phase(("energy",), loss),)
    return GenerativeModel("toy energy", DATA, init, phases, sample, energy=energy, by_example=("buffer",))


def conditional(data=CAPTIONED):
    """Conditions of every kind: a class, text tokens, a low-resolution image, a mask."""
    network = Mlp((32, IMAGES.size))
    names = tuple(data.fields)

    def features(cond):
        parts = []
        for name, spec in data.fields.items():
            if spec.dtype == "int32":  # a class, or tokens
                x = jax.nn.one_hot(cond[name], spec.num_values)
            else:
                x = to_float(cond[name], 256) if spec.dtype == "uint8" else cond[name].astype(jnp.float32)
            parts.append(x.reshape(x.shape[0], -1))
        return jnp.concatenate(parts, axis=1)

    def init(key, batch, frozen):
        return {"network": network.init(key, features(batch))["params"]}, {}

    def predict(params, cond):
        return network.apply({"params": params["network"]}, features(cond))

    def log_prob(params, ctx, keys, images, cond):
        return -0.5 * sum_image((predict(params, cond) - flat(images)) ** 2)

    def loss(params, ctx, keys, batch):
        return -jnp.mean(log_prob(params, ctx, keys, batch["image"], batch)), ({}, {})

    def sample(params, ctx, keys, cond):
        return to_images(predict(params, cond) + 0.1 * rng.normal(keys, (IMAGES.size,)))

    can = {"log_prob": log_prob, "likelihood": "estimate", "conditions": names}
    return GenerativeModel("toy conditional", data, init, (Phase(("network",), loss),), sample, **can)


def fitted():
    """A phase that trains nothing: a Gaussian whose moments are means over all batches, in `extra`."""

    def init(key, batch, frozen):
        zeros = jnp.zeros(IMAGES.size)
        return {}, {"moments": {"weight": jnp.zeros(()), "mean": zeros, "square": zeros}}

    def loss(params, ctx, keys, batch):
        x, old = flat(batch["image"]), ctx.extra["moments"]
        weight = old["weight"] + 1
        means = {"mean": jnp.mean(x, axis=0), "square": jnp.mean(x**2, axis=0)}
        new = {name: old[name] + (mean - old[name]) / weight for name, mean in means.items()}
        return jnp.mean(means["square"]), ({"weight": weight}, {"moments": {"weight": weight, **new}})

    def sample(params, ctx, keys, cond):
        m = ctx.extra["moments"]
        std = jnp.sqrt(jnp.maximum(m["square"] - m["mean"] ** 2, 1e-4))
        return to_images(m["mean"][None, :] + std[None, :] * rng.normal(keys, (IMAGES.size,)))

    return GenerativeModel("toy fitted", DATA, init, (Phase((), loss),), sample)


def growing():
    """Phases that come and go: the first two steps train one role, the next two both, the others the second."""
    small, large = Mlp((8, IMAGES.size)), Mlp((16, IMAGES.size))

    def init(key, batch, frozen):
        key_s, key_l = jax.random.split(key)
        z = jnp.zeros((1, LATENT))
        return {"small": small.init(key_s, z)["params"], "large": large.init(key_l, z)["params"]}, {}

    def draw(params, keys):
        z = rng.normal(keys, (LATENT,))
        return small.apply({"params": params["small"]}, z) + large.apply({"params": params["large"]}, z)

    def loss(params, ctx, keys, batch):
        return jnp.mean((draw(params, keys) - flat(batch["image"])) ** 2), ({}, {})

    def sample(params, ctx, keys, cond):
        return to_images(draw(params, keys))

    phases = (Phase(("small",), loss, runs=lambda step: step < 4), Phase(("large",), loss, runs=lambda step: step >= 2))
    return GenerativeModel("toy growing", DATA, init, phases, sample)


class NormalisedNet(nn.Module):
    """A layer whose formulation on CPU has a custom derivative."""

    @nn.compact
    def __call__(self, x, t):
        h = GroupNorm(4, silu=True)(nn.Dense(16)(x)[:, None, None, :] + t[:, None, None, None])
        return nn.Dense(IMAGES.size)(h.reshape(h.shape[0], -1))


def flow_map(tell_first=False):
    """One draw for all examples (evenly spread times from the shared key), and a loss in forward mode.

    tell_first: whether the metrics have the smallest time of a batch, which is no mean over examples.
    """
    network = NormalisedNet()

    def init(key, batch, frozen):
        x = flat(batch["image"])[:1]
        return {"network": network.init(key, x, jnp.zeros(1))["params"]}, {}

    def velocity(params, x, t):
        return network.apply({"params": params["network"]}, x, t)

    def loss(params, ctx, keys, batch):
        t = (jax.random.uniform(ctx.key) + batch["position"]) % 1.0  # low-discrepancy times: one offset for the batch
        x, eps = flat(batch["image"]), rng.normal(keys, (IMAGES.size,))
        x_t = (1 - t)[:, None] * x + t[:, None] * eps
        with plain_forms():
            v, dv_dt = jax.jvp(partial(velocity, params), (x_t, t), (eps - x, jnp.ones_like(t)))
        error = v + 0.1 * dv_dt - (eps - x)
        first = {"first_time": jnp.min(t)} if tell_first else {}
        return jnp.mean(error**2), ({"mean_time": jnp.mean(t), **first}, {})

    def sample(params, ctx, keys, cond):
        x = rng.normal(keys, (IMAGES.size,))
        return to_images(x - velocity(params, x, jnp.ones(x.shape[0])))

    return GenerativeModel("toy flow map", DATA, init, (Phase(("network",), loss),), sample)


class Toy(NamedTuple):
    """A toy's maker, and the toys that it depends on by role."""

    make: Any
    stands_on: dict[str, str] = {}


TOYS = {
    "gan": Toy(gan),
    "lazy_gan": Toy(partial(gan, runs=every(2))),
    "standing": Toy(partial(gan, standing=True)),
    "vae": Toy(vae),
    "vq": Toy(vq),
    "latent_prior": Toy(latent_prior, {"autoencoder": "vae"}),
    "chain": Toy(latent_prior, {"autoencoder": "latent_prior"}),
    "classifier": Toy(classifier),
    "guided": Toy(guided, {"classifier": "classifier", "autoencoder": "latent_prior"}),
    "energy": Toy(energy),
    "conditional": Toy(conditional),
    "fitted": Toy(fitted),
    "growing": Toy(growing),
    "flow_map": Toy(flow_map),
}
