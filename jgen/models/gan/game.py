"""What all generative adversarial networks share: everything but the networks and the options of their losses.

    a step: k updates of D on L_D(D(x), D(G(z))) + w P(D), then one update of G on L_G(D(G(z)), D(x)), where only the
            relativistic loss uses D(x)                                            (Goodfellow 2014, algorithm 1)
    losses L_D, L_G and penalties P are those of jgen/prob/adversarial.py; a penalty that is computed only every n-th
    step, with n times the weight, is a phase of its own (Karras 2020, arXiv 1912.04958, appendix B)

extra["gen"]   running statistics of G, {"trained", "averaged"}: the average of the weights has statistics of its own
extra["disc"]  "norm": running statistics of D on {"real", "fake"} images; "boundary": the decision boundary of the last
               training step, which validation uses; and what a system adds, such as spectral normalisation's vectors

Glossary: z latent; x image in [-1, 1]; y class; G, D, "gen", "disc" generator and discriminator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jgen.core import keys as rng
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
    select_first,
)
from jgen.errors import require, require_latents, require_positive
from jgen.prob import adversarial
from jgen.prob.likelihoods import sum_image
from jgen.prob.pixels import to_float, to_uint8
from jgen.samplers import latent_posterior


@dataclass(frozen=True)
class Sampling:
    """Sampling has no options: an image is one pass through the generator."""


@dataclass(frozen=True)
class Inverting:
    """How the latents of given images are searched for."""

    steps: int = 300
    """Steps of Adam."""
    learning_rate: float = 0.05
    """Adam's initial step size, which decays to zero along a cosine."""
    starts: int = 4
    """Random latents to start from; the one that ends nearest to the image is returned."""


class Penalty(NamedTuple):
    """A penalty on the discriminator's gradient: one of `adversarial.PENALTIES`, or "none".

    weight: of the penalty; for R1 and R2, of half the squared gradient.
    every:  n; above 1, it is a separate update of D, once every n steps, with n times the weight.
    """

    kind: str = "none"
    weight: float = 0.0
    every: int = 1


def concatenated(keys: jax.Array, z: jax.Array, one_hot: jax.Array | None) -> tuple[jax.Array]:
    """The one input [z, one_hot(y)], (B, latent + classes), of a generator."""
    return (z if one_hot is None else jnp.concatenate([z, one_hot], axis=-1),)


def without_noise(keys: jax.Array, z: jax.Array, one_hot: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    """The inputs z and the class of a generator without noise of its own."""
    return z, one_hot


def no_state(key: jax.Array, disc: Tree) -> Tree:
    return {}


def no_transform(disc: Tree, state: Tree) -> tuple[Tree, Tree]:
    return disc, {}


def no_augmentation(state: Tree, keys: jax.Array, x: jax.Array) -> jax.Array:
    return x


def no_update(state: Tree, real: jax.Array) -> Tree:
    return {}


def no_regulariser(gen: Tree) -> jax.Array:
    return jnp.zeros(())


def no_guidance(ctx: Context, fake_x: jax.Array, cond: Cond) -> jax.Array:
    return jnp.zeros(())


def unchanged(x: jax.Array) -> jax.Array:
    return x


def no_change(game: Game, step: jax.Array) -> Game:
    return game


class Game(NamedTuple):
    """The networks, losses and hooks of a GAN; `make_gan` binds it as the first argument of the functions below.

    A network with running statistics (the collection "batch_stats") takes as its last argument `train`, whether to use
    the batch's own statistics and to update the running ones; True by default.

    data:              the images and their fields.
    conditions:        the fields that the networks are conditioned on, ("label",) or ().
    generator:         (*inputs) -> x, float32 (B, H, W, C) in about [-1, 1].
    discriminator:     (x, one_hot (B, classes) or None) -> logits D(x), float32 (B,), or (B, n) of n discriminators,
                       over which losses are averaged.
    latent:            dimension of z ~ N(0, I).
    loss:              one of `adversarial.LOSSES`.
    penalty:           on the gradient of D.
    inputs:            (keys, z, one_hot) -> the inputs of the generator; the keys are for its noise.
    init_disc_state:   (key, parameters of D) -> entries of extra["disc"] beside "norm" and "boundary".
    transform_disc:    (parameters of D, extra["disc"]) -> the parameters to use, and entries of extra["disc"] that
                       changed.
    augment:           (extra["disc"], keys, x) -> x as augmented before D sees it, real or generated, in training.
    update_disc_state: (extra["disc"], D of real images) -> entries of extra["disc"] that changed.
    regularise:        (parameters of G) -> a scalar that is added to L_G.
    guide:             (context, G(z), cond) -> a scalar that is added to L_G, such as a classifier's loss.
    drift:             weight of E D(x)^2 in L_D, which keeps a critic's outputs near zero (Karras 2018, 1710.10196).
    prepare_real:      transforms real images before use, such as a reduction of resolution; the shape stays.
    at_step:           (game, step) -> the game at a step of training, for networks that change with it.
    classify:          whether D has logits of the classes, (x, one_hot, classify=True) -> (B, classes), whose
                       cross-entropy is added to the losses of both networks (Odena 2017, 1610.09585).
    """

    data: DataSpec
    conditions: tuple[str, ...]
    generator: nn.Module
    discriminator: nn.Module
    latent: int
    loss: str
    penalty: Penalty = Penalty()
    inputs: Callable[..., tuple] = concatenated
    init_disc_state: Callable[..., Tree] = no_state
    transform_disc: Callable[..., tuple[Tree, Tree]] = no_transform
    augment: Callable[..., jax.Array] = no_augmentation
    update_disc_state: Callable[..., Tree] = no_update
    regularise: Callable[[Tree], jax.Array] = no_regulariser
    guide: Callable[..., jax.Array] = no_guidance
    drift: float = 0.0
    prepare_real: Callable[[jax.Array], jax.Array] = unchanged
    at_step: Callable[..., Game] = no_change
    classify: bool = False

    @property
    def levels(self) -> int:
        return self.data.image.levels

    @property
    def num_classes(self) -> int:
        """Number of classes that the networks are conditioned on, 0 for none."""
        return self.data.num_classes if self.conditions else 0


def make_gan(
    name: str,
    game: Game,
    sampling: Any = Sampling(),
    disc_steps: int = 1,
    project: Callable[[Roles], Roles] | None = None,
) -> GenerativeModel:
    """A `GenerativeModel` of two networks that play against each other.

    Args:
      sampling: see `GenerativeModel`; a system whose sampling has options replaces `sample`.
      disc_steps: k, updates of the discriminator for each update of the generator, each on a different batch.
      project: of the discriminator's phase, see `Phase`.
    """
    phases = [Phase(("disc",), partial(disc_loss, game), repeats=disc_steps, project=project)]
    if game.penalty.every > 1:
        phases.append(Phase(("disc",), partial(penalty_loss, game), runs=every(game.penalty.every), name="penalty"))
    phases.append(Phase(("gen",), partial(gen_loss, game)))
    return GenerativeModel(
        name=name,
        data=game.data,
        init=partial(init, game),
        phases=tuple(phases),
        sample=partial(sample, game),
        sampling=sampling,
        conditions=game.conditions,
        validate=partial(validate, game),
        decode=partial(decode, game),
        invert=partial(invert, game),
        inverting=Inverting(),
        inpaint=partial(inpaint, game) if game.levels else None,
        inpainting=latent_posterior.Inpainting() if game.levels else None,
        averages=("gen",),
    )


def init(game: Game, key: jax.Array, batch: Batch, frozen: Frozen) -> tuple[Roles, Roles]:
    key_gen, key_disc, key_state = jax.random.split(key, 3)
    x, label = to_float(batch["image"][:1], game.levels), one_hot(game, select_first(batch, game.conditions))
    keys = rng.image_keys(key, jnp.arange(1))
    gen = game.generator.init(key_gen, *game.inputs(keys, jnp.zeros((1, game.latent)), label))
    disc = game.discriminator.init(key_disc, x, label)
    stats, norm = gen.get("batch_stats", {}), disc.get("batch_stats", {})
    extra = {"gen": {"trained": stats, "averaged": stats}}
    extra["disc"] = {"norm": {"real": norm, "fake": norm}, "boundary": jnp.zeros(())}
    extra["disc"] |= game.init_disc_state(key_state, disc["params"])
    return {"gen": gen["params"], "disc": disc["params"]}, extra


def one_hot(game: Game, cond: Cond) -> jax.Array | None:
    """The class as one-hot, (B, classes); None in an unconditional model."""
    return jax.nn.one_hot(cond["label"], game.num_classes) if game.conditions else None


def real_images(game: Game, batch: Batch) -> jax.Array:
    """x, (B, H, W, C) in [-1, 1]."""
    return game.prepare_real(to_float(batch["image"], game.levels))


def draw_latents(game: Game, keys: jax.Array) -> jax.Array:
    """z, (B, latent)."""
    return rng.normal(keys, (game.latent,))


def network_keys(keys: jax.Array, number: int) -> tuple[jax.Array, ...]:
    """`number` arrays of keys (B,), for what is random within the networks."""
    return rng.split(rng.fold_in(keys, rng.NETWORK), number)


def run(
    network: nn.Module, params: Tree, stats: Tree, inputs: tuple, train: bool, **options: Any
) -> tuple[jax.Array, Tree]:
    """A network's output, and its updated running statistics."""
    if not stats:
        return network.apply({"params": params}, *inputs, **options), stats
    variables = {"params": params, "batch_stats": stats}
    out, new = network.apply(variables, *inputs, train, mutable=["batch_stats"], **options)
    return out, new["batch_stats"]


def generate(
    game: Game, gen: Tree, stats: Tree, keys: jax.Array, z: jax.Array, cond: Cond, train: bool
) -> tuple[jax.Array, Tree]:
    """G(z, y) in about [-1, 1], and the updated running statistics.

    Args:
      keys: for the noise within G.
      train: normalise by the batch's statistics, not by the running ones.
    """
    return run(game.generator, gen, stats, game.inputs(keys, z, one_hot(game, cond)), train)


def sampling_statistics(ctx: Context) -> Tree:
    """The running statistics of G for sampling: of the averaged weights if `ctx.averaged`, else of the trained ones."""
    stats = ctx.extra["gen"]
    return jax.tree.map(lambda a, t: jnp.where(ctx.averaged, a, t), stats["averaged"], stats["trained"])


def generate_for_sampling(
    game: Game, params: Roles, ctx: Context, keys: jax.Array, z: jax.Array, cond: Cond
) -> jax.Array:
    """G(z, y) with running statistics, in about [-1, 1]; keys are those of the images."""
    (key_gen,) = network_keys(keys, 1)
    return generate(game, params["gen"], sampling_statistics(ctx), key_gen, z, cond, False)[0]


def discriminate(
    game: Game, disc: Tree, stats: Tree, x: jax.Array, cond: Cond, train: bool = True
) -> tuple[jax.Array, Tree]:
    """Logits D(x, y), (B,), and the updated running statistics.

    Args:
      disc: parameters from `game.transform_disc`; stats: running statistics of real images, or of generated ones.
    """
    return run(game.discriminator, disc, stats, (x, one_hot(game, cond)), train)


def class_loss(game: Game, disc: Tree, stats: Tree, x: jax.Array, cond: Cond) -> tuple[jax.Array, jax.Array]:
    """Mean cross-entropy in nats of the classes that D reads in images (Odena 2017), and how often it is right.

    XLA computes only once what this and D(x) have in common.
    """
    wanted = one_hot(game, cond)
    assert wanted is not None
    logits, _ = run(game.discriminator, disc, stats, (x, wanted), True, classify=True)
    right = jnp.argmax(logits, axis=-1) == cond["label"]
    return -jnp.mean(jnp.sum(wanted * jax.nn.log_softmax(logits), axis=-1)), jnp.mean(right)


def penalise(
    game: Game, disc: Tree, state: Roles, keys: jax.Array, key_view: jax.Array, x: jax.Array, fake_x: Any, cond: Cond
) -> jax.Array:
    """The mean penalty on the discriminator's gradient, before its weight.

    Args:
      state: extra["disc"]; keys: for the penalty; key_view: for `game.augment`.
    """

    def critic(x: jax.Array) -> jax.Array:
        return discriminate(game, disc, state["norm"]["real"], game.augment(state, key_view, x), cond)[0]

    return jnp.mean(adversarial.penalty(game.penalty.kind, critic, x, fake_x, keys))


def disc_loss(game: Game, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> Loss:
    """L_D, plus the penalty unless it has a phase of its own."""
    game = game.at_step(game, ctx.step)
    key_z, key_penalty = rng.split(keys, 2)
    key_gen, key_real, key_fake = network_keys(keys, 3)
    x, cond, state = real_images(game, batch), select(batch, game.conditions), ctx.extra["disc"]
    z, stats = draw_latents(game, key_z), ctx.extra["gen"]["trained"]
    fake_x, _ = generate(game, params["gen"], stats, key_gen, z, cond, True)
    disc, changed = game.transform_disc(params["disc"], state)
    shown = {"real": game.augment(state, key_real, x), "fake": game.augment(state, key_fake, fake_x)}
    real, real_stats = discriminate(game, disc, state["norm"]["real"], shown["real"], cond)
    fake, fake_stats = discriminate(game, disc, state["norm"]["fake"], shown["fake"], cond)
    loss = jnp.mean(adversarial.discriminator_loss(game.loss, real, fake))
    boundary = adversarial.decision_boundary(game.loss, real, fake)
    metrics = {
        "accuracy_real": jnp.mean(real > boundary),
        "accuracy_fake": jnp.mean(fake < boundary),
        "diversity": adversarial.relative_diversity(fake_x, x, cond.get("label"), game.num_classes),
    }
    if game.penalty.kind != "none" and game.penalty.every == 1:
        metrics["penalty"] = penalise(game, disc, state, key_penalty, key_real, x, fake_x, cond)
        loss = loss + game.penalty.weight * metrics["penalty"]
    if game.drift > 0:
        loss = loss + game.drift * jnp.mean(real**2)
    if game.classify:
        for kind in ("real", "fake"):
            value, metrics[f"classes_{kind}"] = class_loss(game, disc, state["norm"][kind], shown[kind], cond)
            loss = loss + value
    changed = changed | game.update_disc_state(state, real)
    norm = {"real": real_stats, "fake": fake_stats}
    return loss, (metrics, {"disc": state | changed | {"norm": norm, "boundary": jnp.asarray(boundary, jnp.float32)}})


def penalty_loss(game: Game, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> Loss:
    """The penalty alone, `penalty.every` times as strong: the loss of the lazy phase."""
    game = game.at_step(game, ctx.step)
    key_z, key_penalty = rng.split(keys, 2)
    key_gen, key_view = network_keys(keys, 2)
    x, cond, state = real_images(game, batch), select(batch, game.conditions), ctx.extra["disc"]
    fake_x = None
    if game.penalty.kind in adversarial.PENALTIES_OF_PAIRS:
        z, stats = draw_latents(game, key_z), ctx.extra["gen"]["trained"]
        fake_x, _ = generate(game, params["gen"], stats, key_gen, z, cond, True)
    disc, _ = game.transform_disc(params["disc"], state)
    value = penalise(game, disc, state, key_penalty, key_view, x, fake_x, cond)
    return game.penalty.weight * game.penalty.every * value, ({"penalty": value}, {})


def gen_loss(game: Game, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> Loss:
    """L_G."""
    game = game.at_step(game, ctx.step)
    key_gen, key_real, key_fake = network_keys(keys, 3)
    cond, z = select(batch, game.conditions), draw_latents(game, keys)
    stats, state = ctx.extra["gen"], ctx.extra["disc"]
    fake_x, trained = generate(game, params["gen"], stats["trained"], key_gen, z, cond, True)
    disc, _ = game.transform_disc(params["disc"], state)
    shown = game.augment(state, key_fake, fake_x)
    fake, _ = discriminate(game, disc, state["norm"]["fake"], shown, cond)
    real = None
    if game.loss in adversarial.RELATIVE_LOSSES:
        x = game.augment(state, key_real, real_images(game, batch))
        real, _ = discriminate(game, disc, state["norm"]["real"], x, cond)
    # Samples come from the averaged generator, whose activations have other statistics than the trained one's.
    _, averaged = generate(game, ctx.ema["gen"], stats["averaged"], key_gen, z, cond, True)
    new = {"gen": {"trained": trained, "averaged": averaged}}
    loss = jnp.mean(adversarial.generator_loss(game.loss, fake, real)) + game.regularise(params["gen"])
    loss = loss + game.guide(ctx, fake_x, cond)
    if game.classify:
        loss = loss + class_loss(game, disc, state["norm"]["fake"], shown, cond)[0]
    return loss, ({}, new)


def validate(game: Game, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """The discriminator's accuracy on held-out images and on samples: overfitting shows as held-out images judged fake.

    As in training, real images and samples are normalised by their own running statistics each; the decision boundary
    is the last one of training.
    """
    game = game.at_step(game, ctx.step)
    cond, state = select(batch, game.conditions), ctx.extra["disc"]
    disc, _ = game.transform_disc(params["disc"], state)
    x = {"real": real_images(game, batch)}
    x["fake"] = generate_for_sampling(game, params, ctx, keys, draw_latents(game, keys), cond)
    out = {kind: discriminate(game, disc, state["norm"][kind], x[kind], cond, False)[0] for kind in x}
    accuracy = {"accuracy_real": out["real"] > state["boundary"], "accuracy_fake": out["fake"] < state["boundary"]}
    return {name: flags.astype(jnp.float32) for name, flags in accuracy.items()}


def decode(game: Game, params: Roles, ctx: Context, keys: jax.Array, z: jax.Array, cond: Cond) -> jax.Array:
    require_latents(z, (game.latent,))
    game = game.at_step(game, ctx.step)
    return to_uint8(generate_for_sampling(game, params, ctx, keys, z, cond), game.levels)


def invert(
    game: Game,
    params: Roles,
    ctx: Context,
    keys: jax.Array,
    images: jax.Array,
    cond: Cond,
    steps: int,
    learning_rate: float,
    starts: int,
) -> jax.Array:
    """z, (B, latent), that minimise the squared error |G(z, y) - x|^2: see `Inverting`. Noise within G stays as drawn.

    Raises:
      UserError: options out of their range.
    """
    require_positive(steps=steps, learning_rate=learning_rate, starts=starts)
    import optax  # not at the top: train.py would load it at its start

    game, x = game.at_step(game, ctx.step), to_float(images, game.levels)
    optimiser = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    def errors(z: jax.Array) -> jax.Array:
        return sum_image((generate_for_sampling(game, params, ctx, keys, z, cond) - x) ** 2)

    def step(carry: tuple, _: Any) -> tuple[tuple, None]:
        z, state = carry
        # A sum: neither G with running statistics nor Adam mixes examples.
        updates, state = optimiser.update(jax.grad(lambda z: jnp.sum(errors(z)))(z), state)
        return (z + updates, state), None

    def search(carry: tuple, number: jax.Array) -> tuple[tuple, None]:
        z = draw_latents(game, rng.fold_in(rng.split(keys, 1)[0], number))
        (z, _), _ = jax.lax.scan(step, (z, optimiser.init(z)), length=steps)
        best, least = carry
        now = errors(z)
        return (jnp.where((now < least)[:, None], z, best), jnp.minimum(now, least)), None

    none = jnp.zeros((len(x), game.latent)), jnp.full(len(x), jnp.inf)
    return jax.lax.scan(search, none, jnp.arange(starts))[0][0]


def inpaint(
    game: Game,
    params: Roles,
    ctx: Context,
    keys: jax.Array,
    images: jax.Array,
    mask: jax.Array,
    cond: Cond,
    **options: Any,
) -> jax.Array:
    """By Markov chains in latent space: see `jgen.samplers.latent_posterior`. Noise within G stays as drawn."""
    game = game.at_step(game, ctx.step)
    top = 0.5 * (game.levels - 1)

    def decode(z: jax.Array) -> jax.Array:
        return top * (generate_for_sampling(game, params, ctx, keys, z, cond) + 1.0)

    o = latent_posterior.Inpainting(**options)
    key = rng.split(keys, 1)[0]
    z = latent_posterior.complete(decode, key, game.latent, images.astype(jnp.float32), mask, game.levels, o)
    return jnp.where(mask[..., None], images, to_uint8(decode(z) / top - 1.0, game.levels))


def sample(game: Game, params: Roles, ctx: Context, keys: jax.Array, cond: Cond) -> jax.Array:
    return decode(game, params, ctx, keys, draw_latents(game, keys), cond)


def require_halvings(data: DataSpec, name: str, halvings: int) -> None:
    """Raises `UserError` unless images can be halved once for each entry of the option `name`."""
    height, width = data.image.shape[:2]
    require(
        height % 2**halvings == 0 and width % 2**halvings == 0,
        f"images are {height}x{width}: {name} has {halvings} entries, each of which halves the size, so"
        f" height and width must be divisible by {2**halvings}",
    )
