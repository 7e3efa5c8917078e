"""A classifier of noisy images, which guides diffusion (Dhariwal & Nichol 2021, arXiv 2105.05233, section 4).

    x = alpha x_0 + sigma eps,  alpha^2 + sigma^2 = 1,  lambda = log(alpha / sigma)
    loss      - log p(y | x, lambda),  t uniform,  lambda = - log tan(pi t / 2)
    guidance  D + s sigma^2 / alpha grad log p(y | x_t)                       (jgen.samplers.guidance.by_classifier)

The network is given the noise level as lambda and images scaled to unit variance, so that one classifier can guide
diffusions with any schedule.

Glossary: x_0 data in [-1, 1]; y its class; t = 0 is data; D the denoiser that is guided.

Differs from the paper: training uses the cosine schedule in continuous time, not the chain that is guided; the network,
the U-Net's encoder with attention in the middle as published, may have any size.

Measured: it provides logits only; see jgen/models/diffusion/adm.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jgen.core import keys as rng
from jgen.core.model import Batch, Context, DataSpec, Frozen, GenerativeModel, ImageSpec, Loss, Phase, Roles
from jgen.errors import require
from jgen.nn import unet
from jgen.nn.adm import AdmEncoder
from jgen.prob.pixels import to_float
from jgen.prob.process import add_noise, cosine, half_log_snr
from jgen.samplers.guidance import NOISE_RANGE

TIME_SCALE = 50.0  # of lambda, for an embedding that is designed for steps 1 .. 1000


@dataclass(frozen=True)
class Config:
    """A classifier: the encoder of a U-Net, with attention pooling."""

    channels: tuple[int, ...] = (128, 256, 256)
    """Width of each level, from full resolution down."""
    blocks: int = 2
    """Residual blocks of each level."""
    attention: tuple[int, ...] = (16, 8)
    """Heights of the feature maps that have self-attention."""
    head_dim: int = 64
    """Width of an attention head."""
    groups: int = 32
    """Groups of group normalisation."""
    dropout: float = 0.1
    """Dropout rate in the residual blocks."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the network's computation; parameters, logits and losses stay float32."""


class NoisyClassifier(NamedTuple):
    """First argument of the functions below, bound by `make` with `functools.partial`."""

    network: AdmEncoder
    images: ImageSpec


def make(config: Config, data: DataSpec) -> GenerativeModel:
    """A classifier for the image shape, levels and classes of `data`.

    Raises:
      UserError: data without classes, or sizes that the network cannot be built with.
    """
    require(data.num_classes > 1, "noisy_classifier needs data with classes: this data has none")
    unet.check_unet(unet.Config(**{name: getattr(config, name) for name in vars(config)}), data.image)
    sizes = (config.channels, config.blocks, config.attention, config.head_dim, config.groups, config.dropout)
    network = AdmEncoder(*sizes, data.num_classes, jnp.dtype(config.dtype))
    classifier = NoisyClassifier(network, data.image)
    return GenerativeModel(
        name="noisy_classifier",
        data=data,
        init=partial(init, classifier),
        phases=(Phase(trains=("classifier",), loss=partial(loss, classifier)),),
        validate=partial(validate, classifier),
        best=("nll", "min"),
        functions={"noisy_logits": partial(noisy_logits, classifier), "logits": partial(logits, classifier)},
        why_not={"sample": "it classifies noisy images: a diffusion model takes it as --frozen.classifier"},
    )


def init(classifier: NoisyClassifier, key: jax.Array, batch: Batch, frozen: Frozen) -> tuple[Roles, Roles]:
    x = to_float(batch["image"][:1], classifier.images.levels)
    return {"classifier": classifier.network.init(key, x, jnp.ones(1), None)["params"]}, {}


def scores(
    classifier: NoisyClassifier, params: Roles, keys: jax.Array, batch: Batch, key_drop: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """-log p(y | x, lambda) at a random lambda, and whether y is the likeliest class: float32 (B,)."""
    key_t, key_eps = rng.split(keys, 2)
    x_0 = to_float(batch["image"], classifier.images.levels)
    t = rng.uniform(key_t, ())
    x = add_noise(cosine(), x_0, t, rng.normal(key_eps, classifier.images.shape))
    answer = apply(classifier, params, x, half_log_snr(cosine(), t), key_drop)
    nll = optax.softmax_cross_entropy_with_integer_labels(answer, batch["label"])
    return nll, (jnp.argmax(answer, axis=-1) == batch["label"]).astype(jnp.float32)


def apply(
    classifier: NoisyClassifier, params: Roles, x: jax.Array, log_snr: jax.Array, key_drop: jax.Array | None
) -> jax.Array:
    """Logits, float32 (B, classes), of images of unit variance at lambda (B,)."""
    t = TIME_SCALE * jnp.clip(log_snr, -NOISE_RANGE, NOISE_RANGE)
    return classifier.network.apply({"params": params["classifier"]}, x, t, key_drop)


def loss(classifier: NoisyClassifier, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> Loss:
    key_noise, key_drop = rng.split(keys, 2)
    nll, correct = scores(classifier, params, key_noise, batch, key_drop)
    return jnp.mean(nll), ({"accuracy": jnp.mean(correct)}, {})


def validate(
    classifier: NoisyClassifier, params: Roles, ctx: Context, keys: jax.Array, batch: Batch
) -> dict[str, jax.Array]:
    """Scores at random noise levels; at half of them little of the image remains."""
    nll, correct = scores(classifier, params, keys, batch, None)
    return {"nll": nll, "accuracy": correct}


def noisy_logits(
    classifier: NoisyClassifier, params: Roles, ctx: Context, x: jax.Array, log_snr: jax.Array
) -> jax.Array:
    return apply(classifier, params, x, log_snr, None)


def logits(classifier: NoisyClassifier, params: Roles, ctx: Context, x: jax.Array) -> jax.Array:
    """Logits of clean images."""
    return apply(classifier, params, x, jnp.full(len(x), NOISE_RANGE), None)
