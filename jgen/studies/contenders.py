"""The flows that `jgen.studies.free_form_jacobian` compares, each a map of dequantised images or points with a loss.

Points of the plane are images (1, 1, 2). For images, couplings, transformers and residual blocks are those of the
systems in `jgen/models/flow`, without classes; for points, couplings use dense networks
(`jgen/studies/point_flows.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.core.model import DataSpec, ImageSpec
from jgen.models.flow import ffjord, glow, realnvp, residual_flow, tarflow
from jgen.models.flow.dequantised import Bijection
from jgen.nn.flow import ActNorm, apply_chain, init_chain
from jgen.nn.residual_flow import Draws, constrain_all, transport
from jgen.nn.velocity_field import VelocityField
from jgen.prob.likelihoods import mean_image, normal_log_prob, sum_image
from jgen.prob.roulette import exact_log_det
from jgen.samplers import ode
from jgen.studies.point_flows import ConvexStep, CouplingStep, Mlp

Shape = tuple[int, ...]  # (H, W, C)
TOLERANCE = 1e-5  # tolerance of the adaptive solver and of fixed points, for scores and samples


class Map(NamedTuple):
    """A flow from x (B, H, W, C) to latents z (B, D) with a standard normal prior.

    init:    (key, x) -> (params, extra), where x is the first batch.
    loss:    (params, extra, key, keys, x) -> (scalar, new extra, or None if it does not change); `key` is shared
             by the batch.
    forward: (params, extra, x) -> (z, log_det), with the exact determinant.
    inverse: (params, extra, z) -> x.
    """

    init: Callable[..., tuple[Any, Any]]
    loss: Callable[..., tuple[jax.Array, Any]]
    forward: Callable[..., tuple[jax.Array, jax.Array]]
    inverse: Callable[..., jax.Array]


class Contender(NamedTuple):
    """A kind of flow: the form of its Jacobian, and a function that makes it for an image shape and a network width.

    bijective: whether it is a bijection by construction. For other maps, phi(f(x)) |det f'(x)| need not integrate to 1:
    if several x have the same z, the integral is larger.
    """

    jacobian: str
    make: Callable[[Shape, int], Map]
    bijective: bool = True


def log_density(flow: Map, params: Any, extra: Any, x: jax.Array) -> jax.Array:
    """log p(x), nats (B,)."""
    z, log_det = flow.forward(params, extra, x)
    return jnp.sum(normal_log_prob(z, 0.0, 0.0), axis=1) + log_det


def likelihood(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The loss -log p(x) of a `Map.forward`."""

    def loss(params: Any, extra: Any, key: jax.Array, keys: jax.Array, x: jax.Array) -> tuple[jax.Array, Any]:
        z, log_det = forward(params, extra, x)
        return -jnp.mean(jnp.sum(normal_log_prob(z, 0.0, 0.0), axis=1) + log_det), None

    return loss


def spec_of(shape: Shape) -> DataSpec:
    """The specification of float images of a shape."""
    height, width, channels = shape
    return DataSpec(ImageSpec(height, width, channels, levels=0))


def from_bijection(bijection: Bijection, shape: Shape, loss: Callable[..., Any] | None = None, seen: Shape = ()) -> Map:
    """A `Map` from a system's bijection, for images of a shape, trained by maximum likelihood unless a loss is given.

    Args:
      seen: the shape in which the bijection takes the images, if it differs.
    """
    sizes = [math.prod(latent) for latent in bijection.shapes]

    def reshaped(x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0], *(seen or shape))

    def forward(params: Any, extra: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        latents, log_det = bijection.forward(params, extra, reshaped(x), None)
        return jnp.concatenate([z.reshape(z.shape[0], -1) for z in latents], axis=1), log_det

    def inverse(params: Any, extra: Any, z: jax.Array) -> jax.Array:
        places = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
        parts = zip(jnp.split(z, places, axis=1), bijection.shapes)
        latents = tuple(part.reshape(-1, *latent) for part, latent in parts)
        return bijection.inverse(params, extra, latents, None).reshape(-1, *shape)

    def init(key: jax.Array, x: jax.Array) -> tuple[Any, Any]:
        return bijection.init(key, reshaped(x), None)

    return Map(init, likelihood(forward) if loss is None else loss, forward, inverse)


def chain_of(step: Any, depth: int, shape: Shape) -> Map:
    """A `Map` that is a chain of identical layers."""

    def init(key: jax.Array, x: jax.Array) -> tuple[Any, Any]:
        stacked, _ = init_chain(lambda key, x, _: step.init_with_output(key, x), key, x, jnp.arange(depth))
        return stacked["params"], {"fixed": stacked["fixed"]} if "fixed" in stacked else {}

    def run(params: Any, extra: Any, x: jax.Array, inverse: bool) -> tuple[jax.Array, jax.Array]:
        return apply_chain(lambda v, x: step.apply(v, x, inverse), {"params": params, **extra}, x, inverse)

    def forward(params: Any, extra: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        z, log_det = run(params, extra, x, False)
        return z.reshape(x.shape[0], -1), log_det

    def inverse(params: Any, extra: Any, z: jax.Array) -> jax.Array:
        return run(params, extra, z.reshape(-1, *shape), True)[0]

    return Map(init, likelihood(forward), forward, inverse)


def is_point(shape: Shape) -> bool:
    return shape[:2] == (1, 1)


def make_realnvp(shape: Shape, width: int) -> Map:
    if is_point(shape):
        return chain_of(CouplingStep((width, width)), 8, shape)
    config = realnvp.Config(scales=2, couplings=2, width=width, blocks=1, class_conditional=False)
    return from_bijection(realnvp.make_bijection(config, spec_of(shape)), shape)


def make_glow(shape: Shape, width: int) -> Map:
    if is_point(shape):
        return chain_of(CouplingStep((width, width), learned_mixing=True), 8, shape)
    config = glow.Config(scales=2, depth=8, width=width, class_conditional=False)
    return from_bijection(glow.make_bijection(config, spec_of(shape)), shape)


def make_flow_plus_plus(shape: Shape, width: int) -> Map:
    return chain_of(CouplingStep((width, width), mixtures=8), 6, shape)


def make_tarflow(shape: Shape, width: int) -> Map:
    """For a point, each of its two numbers is a patch."""
    patch = 1 if is_point(shape) else 2
    config = tarflow.Config(patch=patch, blocks=4, layers=1, features=2 * width, heads=2, hidden=4 * width)
    config = replace(config, noise="uniform", class_conditional=False)
    seen = (1, 2, 1) if is_point(shape) else shape
    return from_bijection(tarflow.make_bijection(config, spec_of(seen)), shape, seen=seen)


def ffjord_config(width: int) -> ffjord.Config:
    exact = ffjord.Scoring(probes=0, tolerance=TOLERANCE)
    sampling = ffjord.Sampling(tolerance=TOLERANCE)
    config = ffjord.Config(widths=(width,) * 3, convolutional=False, class_conditional=False)
    return replace(config, sampling=sampling, scoring=exact)


def make_ffjord(shape: Shape, width: int) -> Map:
    """Trained with Runge-Kutta steps, Hutchinson's trace estimator and the system's regularisation."""
    config = ffjord_config(width)
    bijection = ffjord.make_bijection(config, spec_of(shape))
    network = VelocityField(config.widths, False)

    def loss(params: Any, extra: Any, key: jax.Array, keys: jax.Array, x: jax.Array) -> tuple[jax.Array, Any]:
        x, log_det = ActNorm().apply({"params": params["actnorm"]}, x)
        v = ode.probe_directions(keys, shape, 1, config.probe)[:, 0]
        end = ode.integrate(lambda x, t: network.apply({"params": params["field"]}, x, t, None), x, v, config.steps)
        nats = sum_image(normal_log_prob(end.x, 0.0, 0.0)) + end.trace + log_det
        size = math.prod(shape)
        penalty = config.kinetic * end.kinetic + config.jacobian * end.jacobian
        return jnp.mean(-nats + size * math.log(2) * penalty), None

    return from_bijection(bijection, shape, loss)


def make_flow_matching(shape: Shape, width: int) -> Map:
    """The network and scoring of FFJORD, but trained by regression on the velocity z - x of straight lines (Lipman et
    al. 2023, arXiv 2210.02747)."""
    config = ffjord_config(width)
    network = VelocityField(config.widths, False)

    def loss(params: Any, extra: Any, key: jax.Array, keys: jax.Array, x: jax.Array) -> tuple[jax.Array, Any]:
        actnorm = jax.lax.stop_gradient(params["actnorm"])  # only the likelihood could train it
        x, _ = ActNorm().apply({"params": actnorm}, x)
        key_t, key_z = rng.split(keys, 2)
        t, z = rng.uniform(key_t, ()), rng.normal(key_z, shape)
        place = t[:, None, None, None]
        field = network.apply({"params": params["field"]}, (1 - place) * x + place * z, t, None)
        return jnp.mean(mean_image((field - (z - x)) ** 2)), None

    return from_bijection(ffjord.make_bijection(config, spec_of(shape)), shape, loss)


def residual_config(shape: Shape, width: int) -> residual_flow.Config:
    blocks = 8 if is_point(shape) else 12
    sampling = residual_flow.Sampling(tolerance=1e-6, iterations=1000)
    config = residual_flow.Config(scales=1, blocks=blocks, widths=(width, width), convolutional=False)
    return replace(config, class_conditional=False, sampling=sampling)


def make_residual(shape: Shape, width: int, exact: bool = False) -> Map:
    """Trained with the Russian-roulette estimator, or with `exact` with determinants of the full Jacobians."""
    config, data = residual_config(shape, width), spec_of(shape)
    network = residual_flow.make_residual_flow(config, data).network

    def loss(params: Any, extra: Any, key: jax.Array, keys: jax.Array, x: jax.Array) -> tuple[jax.Array, Any]:
        constrained, vectors = constrain_all(params, extra, config.lipschitz, config.power_iterations)
        draws = None if exact else Draws(key, keys, config.terms)
        z, log_det = transport(network, constrained, x, None, draws)
        return -jnp.mean(sum_image(normal_log_prob(z, 0.0, 0.0)) + log_det), vectors

    return from_bijection(residual_flow.make_bijection(config, data), shape, loss)


def make_unbounded(shape: Shape, width: int) -> Map:
    """Residual blocks of unconstrained networks, with exact determinants: they need not be invertible, and their
    "density" need not be one. The inverse is attempted by the same fixed-point iteration."""
    config = replace(residual_config(shape, width), lipschitz=1e9)
    return from_bijection(residual_flow.make_bijection(config, spec_of(shape)), shape)


def make_free_form(shape: Shape, width: int) -> Map:
    """Encoder f and decoder g, each x + network(x); scores use the full Jacobian of f."""
    size, beta = math.prod(shape), 10.0
    network = Mlp((width,) * 3, size, jax.nn.initializers.normal(1e-3))

    def init(key: jax.Array, x: jax.Array) -> tuple[Any, Any]:
        key_f, key_g = jax.random.split(key)
        (x, _), actnorm = ActNorm().init_with_output(key, x)
        x = x.reshape(x.shape[0], -1)
        f, g = (network.init(key, x)["params"] for key in (key_f, key_g))
        return {"actnorm": actnorm["params"], "encoder": f, "decoder": g}, {}

    def change(params: Any, x: jax.Array) -> jax.Array:
        return network.apply({"params": params}, x.reshape(x.shape[0], -1)).reshape(x.shape)

    def loss(params: Any, extra: Any, key: jax.Array, keys: jax.Array, x: jax.Array) -> tuple[jax.Array, Any]:
        x, log_det = ActNorm().apply({"params": params["actnorm"]}, x)
        f, g = (lambda x, own=params[name]: x + change(own, x) for name in ("encoder", "decoder"))
        v = rng.normal(keys, shape)
        z, pull = jax.vjp(f, x)
        back, pushed = jax.jvp(g, (z,), (v,))
        # This product is an estimate of d log |det f'| = tr(g' df'); the gradient treats g' v as a constant.
        volume = sum_image(pull(v)[0] * jax.lax.stop_gradient(pushed))
        nats = sum_image(normal_log_prob(z, 0.0, 0.0)) + volume + log_det
        return jnp.mean(-nats + beta * sum_image((back - x) ** 2)), None

    def forward(params: Any, extra: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, log_det = ActNorm().apply({"params": params["actnorm"]}, x)
        z, volume = exact_log_det(change, params["encoder"], x)
        return z.reshape(z.shape[0], -1), log_det + volume

    def inverse(params: Any, extra: Any, z: jax.Array) -> jax.Array:
        z = z.reshape(-1, *shape)
        return ActNorm().apply({"params": params["actnorm"]}, z + change(params["decoder"], z), True)[0]

    return Map(init, loss, forward, inverse)


def make_convex(shape: Shape, width: int) -> Map:
    return chain_of(ConvexStep((width,) * 2), 6, shape)


CONTENDERS = {
    "RealNVP": Contender("triangular", make_realnvp),
    "Glow": Contender("triangular", make_glow),
    "Flow++ couplings": Contender("triangular", make_flow_plus_plus),
    "TarFlow": Contender("block triangular", make_tarflow),
    "Convex potential": Contender("symmetric", make_convex),
    "Residual, roulette": Contender("free-form", make_residual),
    "Residual, exact": Contender("free-form", partial(make_residual, exact=True)),
    "FFJORD": Contender("free-form", make_ffjord),
    "Flow matching": Contender("free-form", make_flow_matching),
    "Free-form flow": Contender("free-form", make_free_form, bijective=False),
    "Unbounded residual": Contender("free-form", make_unbounded, bijective=False),
}
ON_POINTS_ALONE = ("Flow++ couplings", "Convex potential", "Unbounded residual")


def parameters_of(flow: Map, shape: Shape) -> int:
    """The number of trained parameters."""
    x = jax.ShapeDtypeStruct((4, *shape), jnp.float32)
    params, _ = jax.eval_shape(flow.init, jax.random.key(0), x)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def width_for(contender: Contender, shape: Shape, parameters: int) -> int:
    """The width for which the flow's number of parameters is nearest to `parameters`."""

    def count(width: int) -> int:
        return parameters_of(contender.make(shape, width), shape)

    low, high = 1, 2
    while count(high) < parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < parameters else (low, middle)
    return min((low, high), key=lambda width: abs(count(width) - parameters))
