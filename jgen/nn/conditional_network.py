"""A network over noisy images, a U-Net or a transformer, together with its data and conditions.

It has what every diffusion or flow system does with its network: initialise it, drop labels in training, evaluate it.
Its conditions are fields of the data: the class, if the system is class-conditional, and `low_resolution`, `context`
and `vector`, if the data has them. The low-resolution image is enlarged by linear interpolation and concatenated with
the noisy one along the channels, which turns any system into an upsampler (Dhariwal & Nichol 2021, arXiv 2105.05233,
section 4.3). A context is a sequence of features, such as those of a text's tokens, which the network attends to; it
comes with `negative_context`, which is the weak condition in guidance and replaces dropped contexts. A vector, such as
the embedding of an image, is added to the embedding of the time; zeros replace dropped vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.core.model import Batch, Cond, DataSpec, Frozen, ImageSpec, Roles, select, select_first
from jgen.errors import require, require_labels
from jgen.nn import dit, unet
from jgen.nn.cross_attention import Tokens
from jgen.prob.pixels import to_float

# `unet.Config` or `dit.Config`: the command line shows the options of the configured one.
NetworkConfig = Any


class Options(Protocol):
    """The fields that a system's Config has for its network."""

    @property
    def network(self) -> NetworkConfig: ...
    @property
    def class_conditional(self) -> bool: ...


class ConditionalNetwork(NamedTuple):
    """A network and the role of its parameters, "unet" or "dit".

    null_label: the label that stands for "no class". small_levels: of the low-resolution images.
    """

    network: unet.Network | dit.DiT
    images: ImageSpec
    conditions: tuple[str, ...]
    null_label: int
    role: str = "unet"
    small_levels: int = 0

    def __call__(
        self,
        params: Roles,
        x: jax.Array,
        t: jax.Array,
        cond: Cond,
        key_drop: jax.Array | None = None,
        vector: jax.Array | None = None,
    ) -> jax.Array:
        """The network's output, float32 (B, H, W, outputs C).

        Args:
          x: (B, H, W, C); t: (B,); key_drop: keys of dropout (B,), None for none.
          cond: {"label": (B,), "low_resolution": uint8 (B, h, w, C), "context": Tokens (B, L, D), "vector": (B, E)} or
            less; vector: (B, D), a further condition.
        """
        x = self.with_low_resolution(x, cond)
        inputs = (x, t, cond.get("label"), key_drop, vector_of(cond, vector))
        return self.network.apply({"params": params[self.role]}, *inputs, **context_of(cond))

    def init(
        self,
        key: jax.Array,
        batch: Batch,
        *,
        vector_size: int = 0,
        inputs: Callable[[jax.Array], jax.Array] | None = None,
    ) -> Any:
        """New parameters.

        Args:
          vector_size: D of `vector`; inputs: the network's input computed from x, if that is not x itself.
        """
        x = to_float(batch["image"][:1], self.images.levels)
        cond = select_first(batch, self.conditions)
        x = self.with_low_resolution(x if inputs is None else inputs(x), cond)
        vector = jnp.zeros((1, vector_size)) if vector_size else None
        given = (x, jnp.ones(1), cond.get("label"), None, vector_of(cond, vector))
        return self.network.init(key, *given, **context_of(cond))["params"]

    def with_low_resolution(self, x: jax.Array, cond: Cond) -> jax.Array:
        """x with the enlarged low-resolution image as further channels, if the network is conditioned on one."""
        if "low_resolution" not in self.conditions:
            return x
        small = to_float(cond["low_resolution"], self.small_levels)
        large = jax.image.resize(small, (*x.shape[:3], small.shape[-1]), "linear")
        return jnp.concatenate([x, large], axis=-1)

    def init_roles(self, key: jax.Array, batch: Batch, frozen: Frozen) -> tuple[Roles, Roles]:
        """`init` of a system without other parameters: new ones, or the teacher's if all shapes agree."""
        params = self.init(key, batch)
        if "teacher" in frozen:
            params = start_from(frozen["teacher"].params.get(self.role), params)
        return {self.role: params}, {}

    def cond(self, batch: Batch) -> Cond:
        """The condition of a batch."""
        return select(batch, self.conditions)

    @property
    def droppable(self) -> bool:
        """Whether a condition is dropped in training, for guidance."""
        return not {"label", "context", "vector"}.isdisjoint(self.conditions)

    def cond_for_training(self, keys: jax.Array, batch: Batch, rate: float) -> Cond:
        """The condition of a batch, replaced by that of `without_class` with probability `rate`; keys (B,)."""
        cond = self.cond(batch)
        if not self.droppable:
            return cond
        drop = rng.bernoulli(keys, rate)

        def chosen(null: jax.Array, given: jax.Array) -> jax.Array:
            return jnp.where(drop.reshape(-1, *[1] * (given.ndim - 1)), null, given)

        return jax.tree.map(chosen, self.without_class(cond), cond)

    def without_class(self, cond: Cond) -> Cond:
        """The condition with null labels, the negative context as its context, and a vector of zeros."""
        null = {**cond}
        if "label" in cond:
            null["label"] = jnp.full_like(cond["label"], self.null_label)
        if "context" in cond:
            null["context"] = cond["negative_context"]
        if "vector" in cond:
            null["vector"] = jnp.zeros_like(cond["vector"])
        return null


def context_of(cond: Cond) -> dict[str, Tokens]:
    """A network's further argument: the tokens that it attends to, if there is a context."""
    return {"context": cond["context"]} if "context" in cond else {}


def vector_of(cond: Cond, own: jax.Array | None) -> jax.Array | None:
    """A network's further condition, (B, D): the system's own vector, then that of the condition; None for neither."""
    parts = [part for part in (own, cond.get("vector")) if part is not None]
    return jnp.concatenate(parts, axis=-1) if parts else None


def make_conditional_network(
    config: Options, data: DataSpec, small_t: bool = False, outputs: int = 1
) -> ConditionalNetwork:
    """The network of `config.network` over the images of `data`, with one additional class for "no class".

    Args:
      small_t: whether the t that is passed is of order 1 (a time in [0, 1], ln(sigma) / 4) instead of a step 1 .. T. It
        permits NCSN++, and a transformer then embeds 1000 t.
      outputs: number of outputs for each channel of each pixel.
    Raises:
      UserError: sizes that the network cannot be built with, or classes of data that has none.
    """
    require_labels(data.num_classes, "class_conditional", config.class_conditional, False)
    num_classes = data.num_classes + 1 if config.class_conditional else 0
    bound: dict[str, Any] = {"images": data.image, "null_label": data.num_classes}
    names = ("label",) * config.class_conditional + ("low_resolution",) * ("low_resolution" in data.fields)
    if "context" in data.fields:
        names += ("context", "negative_context")
        network = config.network
        song = isinstance(network, unet.Config) and network.architecture in ("ddpmpp", "ncsnpp")
        message = "it attends to no text; use 'ddpm' or 'adm', or a transformer (jgen.nn.dit.Config)"
        require(not song, f"architecture is {getattr(network, 'architecture', '')!r}: {message}")
    names += ("vector",) * ("vector" in data.fields)
    bound["conditions"] = names
    if "low_resolution" in names:
        bound["small_levels"] = data.fields["low_resolution"].num_values
    sizes: tuple[Any, ...] = (data.image, num_classes, outputs * data.image.channels, small_t)
    if isinstance(config.network, dit.Config):
        return ConditionalNetwork(dit.make_dit(config.network, *sizes), role="dit", **bound)
    known = isinstance(config.network, unet.Config)
    require(known, f"network is {config.network!r}: it must be a jgen.nn.unet.Config or a jgen.nn.dit.Config")
    return ConditionalNetwork(unet.make_unet(config.network, *sizes), **bound)


def start_from(trained: Any, params: Any) -> Any:
    """Copies of another model's parameters if they have the shapes of `params`, else `params`."""
    same = jax.tree.map(jnp.shape, trained) == jax.tree.map(jnp.shape, params)
    return jax.tree.map(jnp.copy, trained) if same else params


def check_label_dropout(rate: float) -> None:
    """Raises `UserError` unless 0 <= rate < 1: at 1, labels would never be seen."""
    require(0 <= rate < 1, f"label_dropout is {rate}: it must be at least 0 and below 1")
