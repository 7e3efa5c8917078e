"""What priors over the discrete codes of a frozen autoencoder share: its codes and images, their loss and scores.

A prior does not give the probability of an image: several images have the same codes, and a decoded image has no noise.
So its loss and scores are those of codes, in nats and in bits per code.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jgen.core.model import Batch, Cond, Context, DataSpec, GenerativeModel, ImageSpec, Loss, frozen_context
from jgen.errors import require
from jgen.prob.pixels import bits_per_dim


def codes_of(model: GenerativeModel, role: str, ctx: Context, keys: jax.Array, batch: Batch) -> Any:
    """The codes of a batch's images, by the frozen model of that role."""
    frozen, inner = frozen_context(ctx, role)
    assert model.encode is not None
    return model.encode(frozen, inner, keys, batch["image"], model.condition(batch))


def images_of(model: GenerativeModel, role: str, ctx: Context, keys: jax.Array, codes: Any, cond: Cond) -> jax.Array:
    """The images, uint8 (B, H, W, C), that the frozen model of that role decodes codes to."""
    frozen, inner = frozen_context(ctx, role)
    assert model.decode is not None
    return model.decode(frozen, inner, keys, codes, model.condition(cond))


def code_loss(log_p: jax.Array, codes: ImageSpec) -> Loss:
    """What a phase's loss returns, from log-probabilities (B,) of a grid of codes: nats per code, a mean over
    images."""
    mean = jnp.mean(log_p)
    return -mean / codes.size, ({"bits_per_code": bits_per_dim(mean, codes.size)}, {})


def code_scores(log_p: jax.Array, codes: ImageSpec) -> dict[str, jax.Array]:
    """What `validate` returns, from log-probabilities (B,) of a grid of codes."""
    return {"nll_codes": -log_p, "bits_per_code": bits_per_dim(log_p, codes.size)}


def check_autoencoder(model: GenerativeModel, data: DataSpec, role: str, grids: int, example: str) -> None:
    """Raises `UserError` unless a frozen model has that many grids of codes, for the data's images.

    Args:
      example: a system that has them, with an article, for the error message: "a vq_vae".
    """
    there = len(model.codes)
    has = f"which has {there or 'no'} grid{'s' * (there != 1)} of discrete codes"
    wanted = "one" if grids == 1 else str(grids)
    require(there == grids, f"frozen.{role} is a {model.name}, {has}: it must have {wanted}, as {example} has")
    other = f"frozen.{role} was trained on {model.images}"
    require(model.images == data.image, f"{other}: the data is {data.image}")


def check_conditions(model: GenerativeModel, role: str, class_conditional: bool) -> None:
    """Raises `UserError` if a frozen model is class-conditional and the model that depends on it is not."""
    needs = f"class_conditional is False, but the {role}, {model.name}, needs the class to decode"
    require(not model.conditions or class_conditional, needs)
