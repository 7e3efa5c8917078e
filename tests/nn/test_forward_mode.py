"""Every layer under `jax.jvp`: inside `plain_forms` on CPU, and on other backends without asking for anything.

Jv against finite differences, <w, Jv> = <J^T w, v>, and the Hessian H of a function of the output, taken forward over
reverse, against its symmetry.
"""

import importlib
import inspect
import pkgutil
import re
from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forward_mode_cases import CASES as OTHER_CASES
from forward_mode_gan_cases import GAN_CASES

import jgen.nn
from jgen.core.backend import plain_forms

CASES = OTHER_CASES | GAN_CASES
NETWORKS = (
    "adm.AdmEncoder",
    "dit.DiT",
    "first_stage.Encoder",
    "first_stage.Decoder",
    "UNet",
    "SongUNet",
    "GatedPixelCNN",
    "PixelCNN",
    "Resolution",
    "PixelCNNPP",
    "ConvEncoder",
    "ConvDecoder",
)
NETWORKS += ("PixelRNN", "LocalPixelCNN", "AutoregressiveFlow", "BottomUp", "TopDown", "CausalTransformer")
NETWORKS += ("PixelTransformer", "CodePixelCNN", "Synthesis", "clip.ImageEncoder", "clip.TextEncoder")
NETWORKS += ("TextImageTransformer", "TextTransformer", "DiffusionPrior", "CodePrior")
NETWORKS += ("stylegan3.Synthesis", "stylegan3.Generator", "ProjectedDiscriminator")
NETWORKS += ("ClipTextEncoder", "ConditionUNet", "StyleEncoder")
NETWORKS += tuple(
    f"{family}.{name}"
    for family in ("biggan", "stylegan2", "r3gan", "progan")
    for name in ("Generator", "Discriminator")
)  # compile long, and their layers are here: without second order
REVERSE_ONLY = ("conv 3x3", "conv 4x4 stride 2", "conv_transpose", "convolutions in a scan", "group_norm", "attention")


@cache
def case(name):
    """A function and its inputs, made once for the tests of a process."""
    return CASES[name]()


def modules_of_nn():
    """The layers defined in jgen.nn: names of public `nn.Module` classes."""
    for info in pkgutil.iter_modules(jgen.nn.__path__, "jgen.nn."):
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            if inspect.isclass(value) and issubclass(value, nn.Module) and value.__module__ == info.name:
                yield f"{info.name.removeprefix('jgen.nn.')}.{name}"


def test_every_layer_has_a_case():
    assert {name for name in modules_of_nn() if name not in CASES and name.split(".")[1] not in CASES} == set()


def like(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(np.shape(leaf)), jnp.float32), tree)


def dot(a, b):
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)))


def moved(inputs, direction, size):
    return jax.tree.map(lambda a, b: a + size * b, inputs, direction)


def first_order(function, inputs):
    """(<w, Jv>, <J^T w, v>); Jv and its finite difference, laid end to end."""
    v = like(inputs, 1)
    size = 1e-2 / jnp.sqrt(dot(v, v))
    w = like(jax.eval_shape(function, *inputs), 3)
    _, tangent = jax.jvp(function, inputs, v)
    pulled = jax.vjp(function, *inputs)[1](w)
    above, below = function(*moved(inputs, v, size)), function(*moved(inputs, v, -size))
    difference = jax.tree.map(lambda a, b: (a - b) / (2 * size), above, below)
    flat = [jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)]) for tree in (tangent, difference)]
    return (dot(w, tangent), dot(pulled, v)), flat


def second_order(function, inputs):
    """(<u, H v>, <v, H u>)."""
    v, u = like(inputs, 1), like(inputs, 2)
    w = like(jax.eval_shape(function, *inputs), 3)

    def loss(inputs):
        return sum(jnp.sum(a * jnp.sin(b)) for a, b in zip(jax.tree.leaves(w), jax.tree.leaves(function(*inputs))))

    def hessian_product(direction):
        return jax.jvp(jax.grad(loss), (inputs,), (direction,))[1]

    Hv, Hu = (jax.tree.map(lambda a, i=i: a[i], jax.vmap(hessian_product)(stack(v, u))) for i in range(2))
    return dot(u, Hv), dot(v, Hu)


def stack(a, b):
    return jax.tree.map(lambda x, y: jnp.stack([x, y]), a, b)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_forward_and_forward_over_reverse_mode_in_plain_forms_on_cpu(name):
    function, inputs = case(name)

    @jax.jit
    def both_orders(inputs):
        first = first_order(function, inputs)
        return (first, (0.0, 0.0)) if name in NETWORKS else (first, second_order(function, inputs))

    with plain_forms():
        (products, (tangent, difference)), second = both_orders(inputs)
    size = float(np.linalg.norm(tangent))
    assert size > 0 and np.linalg.norm(difference - tangent) < 0.03 * size
    np.testing.assert_allclose(*products, rtol=1e-3, atol=1e-4 * size)
    np.testing.assert_allclose(*second, rtol=2e-3, atol=1e-3 * max(1.0, abs(float(second[0]))))


def traced(name):
    """The programs of values and of `jax.jvp`, and of layers that of `jax.jvp` of `jax.grad`, without addresses."""
    function, inputs = case(name)

    def program(inputs):
        forward = jax.jvp(function, inputs, inputs)
        return forward if name in NETWORKS else (forward, second_order(function, inputs))

    return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(program)(inputs)))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_other_backends_have_the_plain_forms_without_asking(name, monkeypatch):
    with plain_forms():
        plain = traced(name)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert traced(name) == plain and "custom_vjp" not in plain


@pytest.mark.parametrize("name", REVERSE_ONLY)
def test_the_forms_for_cpu_are_in_use_and_say_that_they_have_no_forward_mode(name):
    function, inputs = case(name)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(function, inputs, inputs)


@pytest.mark.parametrize("name", [*REVERSE_ONLY, "conv of few channels", "SelfAttention2D", "ResnetBlock"])
def test_the_forms_for_cpu_have_the_values_and_gradients_of_the_plain_ones(name):
    function, inputs = case(name)
    w = like(jax.eval_shape(function, *inputs), 3)

    @jax.jit
    def value_and_gradients(inputs):
        value, pull = jax.vjp(function, *inputs)
        return value, pull(w)

    ours = value_and_gradients(inputs)
    with plain_forms():
        plain = value_and_gradients(inputs)  # traced again
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * max(1e-3, float(np.abs(b).max())))
