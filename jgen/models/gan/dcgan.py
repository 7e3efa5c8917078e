"""Deep convolutional GAN (Radford, Metz & Chintala 2016, arXiv 1511.06434), with what came after it.

    G: z ~ N(0, I) -> dense, BatchNorm, ReLU -> [4x4 transposed convolution of stride 2, BatchNorm, ReLU]*
       -> 4x4 transposed convolution of stride 2 -> tanh
    D: x -> 4x4 convolution of stride 2, LeakyReLU 0.2 -> [convolution, BatchNorm, LeakyReLU]* -> dense -> logit
    a step: k updates of D on L_D(D(x), D(G(z))) + penalty, then one update of G on L_G(D(G(z)), D(x)), where only the
            relativistic loss uses D(x)                                            (Goodfellow 2014, algorithm 1)

    losses      minimax, non-saturating, least squares, hinge, Wasserstein, relativistic: jgen/prob/adversarial.py
    Lipschitz   weight clipping |w| <= c (1701.07875); gradient penalty (1704.00028); R1 and R2 (1801.04406);
                spectral normalisation W / sigma(W) of D (1802.05957)
    lazy        the penalty as a separate update of D, once every n steps, with n times the weight (1912.04958,
                appendix B)
    classes     G(z, y) has [z, one_hot(y)] at its input; D(x, y) has one_hot(y) as further channels of x
                (concatenation), or adds the inner product <embedding(y), last features of D>
                (projection: 1802.05637, equation 3); or D has a second head, logits of the class, whose cross-entropy
                on real and generated images is added to D's loss, and on generated ones to G's (auxiliary, AC-GAN:
                1610.09585, equation 3)

Glossary: z latent; x image in [-1, 1]; y class; G, D, "gen", "disc" generator and discriminator (a critic, in the
Wasserstein GAN); k `disc_steps`; u the vector of the power iteration for sigma(W).

Differs from the paper: kernels are 4x4, not 5x5: a multiple of the stride, which avoids checkerboard artifacts away
from the borders; z is normal, not uniform; the number of halvings is an option, since images may be 8x8 or 28x28; real
and generated images are normalised separately, each by their own batch statistics; samples use the moving average of
G's weights, which has its own BatchNorm statistics, updated by one more forward pass per step. A lazy penalty uses the
moments of D's Adam without the correction of 1912.04958, and is one update in n steps even if k > 1.

Measured: a classifier assigns 99.8 % of samples to the class they were conditioned on, on MNIST, 8,000 steps of
`python train.py configs/gan/dcgan.py:mnist` (channels (64, 128), 64 latent dimensions).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jgen.core.model import DataSpec, GenerativeModel, Roles, Tree
from jgen.errors import require, require_labels, require_positive
from jgen.models.gan.game import Game, Penalty, Sampling, make_gan, require_halvings
from jgen.nn.dcgan import Discriminator, Generator, kernels_of
from jgen.nn.spectral_norm import normalise, start_vector
from jgen.prob import adversarial


@dataclass(frozen=True)
class Config:
    """A convolutional generator and discriminator."""

    channels: tuple[int, ...] = (64, 128, 256)
    """Channels after each convolution of stride 2 in the discriminator, at 1/2, 1/4, ... of the image's size; the
    generator has them in reverse order."""
    latent: int = 100
    """Dimension of z."""
    loss: Literal["minimax", "non_saturating", "least_squares", "hinge", "wasserstein", "relativistic"] = (
        "non_saturating"
    )
    """Adversarial loss of discriminator and generator: see `jgen/prob/adversarial.py`."""
    disc_norm: Literal["batch", "spectral", "none"] = "batch"
    """Normalisation in the discriminator: batch (after every convolution but the first), spectral (of the weights) or
    none."""
    regulariser: Literal["none", "clip", "gradient_penalty", "r1", "r1_r2"] = "none"
    """Regulariser of the discriminator: weight clipping, gradient penalty, R1, R1 and R2, or none."""
    clip: float = 0.01
    """Clipping bound c of the discriminator's weights, for regulariser clip."""
    penalty_weight: float = 10.0
    """Weight of the penalty. R1 and R2 are defined with a factor 1/2: weight * 0.5 * ||gradient of D||^2."""
    penalty_every: int = 1
    """n: above 1, the penalty is a separate update, once every n steps, with n times the weight."""
    disc_steps: int = 1
    """k: updates of the discriminator per generator update, each on a different batch."""
    conditioning: Literal["none", "projection", "concatenation", "auxiliary"] = "projection"
    """How the discriminator is conditioned on the class; auxiliary (AC-GAN): it predicts the class and does not
    take it as an input; none: both networks are unconditional."""
    norm_momentum: float = 0.9
    """Decay of the running statistics of batch normalisation, which sampling uses."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the networks' computation; parameters, statistics and losses stay float32."""
    sampling: Sampling = field(default_factory=Sampling)


def make(config: Config, data: DataSpec) -> GenerativeModel:
    """A DCGAN for the image shape, levels and classes of `data`.

    Raises:
      UserError: images that cannot be halved `len(channels)` times, or options out of their range.
    """
    check_config(config, data)
    shared: dict[str, Any] = {"momentum": config.norm_momentum, "dtype": jnp.dtype(config.dtype)}
    kind = config.regulariser if uses_gradient_penalty(config) else "none"
    game = Game(
        data=data,
        conditions=() if config.conditioning == "none" else ("label",),
        generator=Generator(config.channels, data.image, **shared),
        discriminator=Discriminator(config.channels, config.disc_norm == "batch", config.conditioning, **shared),
        latent=config.latent,
        loss=config.loss,
        penalty=Penalty(kind, config.penalty_weight, config.penalty_every),
        init_disc_state=no_vectors,
        classify=config.conditioning == "auxiliary",
    )
    if config.disc_norm == "spectral":
        game = game._replace(init_disc_state=init_power_iteration, transform_disc=spectrally_normalised)
    project = partial(clip_weights, config.clip) if config.regulariser == "clip" else None
    return make_gan("dcgan", game, config.sampling, config.disc_steps, project)


def no_vectors(key: jax.Array, disc: Tree) -> Tree:
    """Without spectral normalisation "u" is empty, so that all checkpoints have the same keys."""
    return {"u": {}}


def init_power_iteration(key: jax.Array, disc: Tree) -> Tree:
    """The vectors u of all kernels, as an entry of extra["disc"]."""
    kernels = kernels_of(disc)
    u = {name: start_vector(jax.random.fold_in(key, i), kernel) for i, (name, kernel) in enumerate(kernels.items())}
    return {"u": u}


def spectrally_normalised(disc: Tree, state: Tree) -> tuple[Tree, Tree]:
    """The discriminator's parameters with every kernel (convolutions, dense layer, class embedding) divided by its
    spectral norm, and the updated u."""
    kernels, u = normalise(kernels_of(disc), state["u"])
    return {name: {**layer, "kernel": kernels[name]} for name, layer in disc.items()}, {"u": u}


def uses_gradient_penalty(config: Config) -> bool:
    """Whether the regulariser is a penalty on the discriminator's gradient."""
    return config.regulariser in adversarial.PENALTIES


def clip_weights(limit: float, roles: Roles) -> Roles:
    """Clips every parameter of the discriminator, biases and scales included, to [-limit, limit] (Wasserstein GAN)."""
    return jax.tree.map(lambda w: jnp.clip(w, -limit, limit), roles)


def check_config(config: Config, data: DataSpec) -> None:
    """Raises `UserError` if the configuration is invalid for this data."""
    require_positive(channels=config.channels, latent=config.latent, disc_steps=config.disc_steps, clip=config.clip)
    require_positive(penalty_weight=config.penalty_weight, penalty_every=config.penalty_every)
    momentum = config.norm_momentum
    require(0 <= momentum < 1, f"norm_momentum is {momentum}: it must be at least 0 and below 1")
    require_halvings(data, "channels", len(config.channels))
    require(
        not (uses_gradient_penalty(config) and config.disc_norm == "batch"),
        f"disc_norm is 'batch', which couples the gradients of images: {config.regulariser} needs 'spectral' or 'none'",
    )
    require(
        uses_gradient_penalty(config) or config.penalty_every == 1,
        f"penalty_every is {config.penalty_every}: it must be 1, since regulariser {config.regulariser!r} adds no"
        " penalty",
    )
    require(
        config.loss != "wasserstein" or config.regulariser != "none" or config.disc_norm == "spectral",
        "loss is 'wasserstein', for which the critic's gradient must be bounded: set the regulariser, such as clip or"
        " gradient_penalty, or disc_norm to spectral",
    )
    require_labels(data.num_classes, "conditioning", config.conditioning, "none")
