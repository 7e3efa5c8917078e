"""The diffusion transformer: its start, its conditions, its positions, the papers' sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mistake
from specs import data_of
from stub_network import CTX

from jgen.core.model import ImageSpec
from jgen.models.diffusion import ddpm
from jgen.models.diffusion.dit import Config, make
from jgen.nn import dit
from jgen.samplers.guidance import Guidance, classifier_free

SIZES = dit.Config(patch=2, features=16, layers=2, heads=2)
X = jax.random.normal(jax.random.key(0), (3, 4, 6, 2))
T, LABEL = jnp.array([1.0, 300.0, 999.0]), jnp.array([0, 2, 1])


def network_of(config=SIZES, num_classes=3, out_channels=0):
    network = dit.make_dit(config, ImageSpec(4, 6, 2, 256), num_classes, out_channels)
    return network, jax.jit(network.init)(jax.random.key(1), X, T, LABEL, None)["params"]


def shaken(params, scale=0.1):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    return jax.tree.unflatten(tree, [x + scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)])


@pytest.mark.slow
def test_blocks_are_the_identity_at_first_and_the_output_is_zero():
    network, params = network_of()
    assert not np.any(jax.jit(network.apply)({"params": params}, X, T, LABEL, None))
    h, c = jax.random.normal(jax.random.key(3), (3, 6, 16)), jnp.ones((3, 16))
    first = jax.tree.map(lambda x: x[0], params["blocks"])
    block = jax.jit(lambda h, c: dit.Block(SIZES).apply({"params": first}, h, c, None))
    np.testing.assert_array_equal(block(h, c), h)


@pytest.mark.parametrize("name,number", [("small", 33e6), ("base", 130e6), ("large", 458e6), ("extra_large", 675e6)])
def test_the_papers_sizes(name, number):
    """Table 4; XL/2 with its fixed positions has the 675,129,632 numbers of the published checkpoint."""
    latents = ImageSpec(32, 32, 4, 0)
    network = dit.make_dit(getattr(dit, name)(patch=2), latents, 1001, 8)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 4)), T[:1], LABEL[:1], None)
    count = sum(x.size for x in jax.tree.leaves(shapes))
    assert count == pytest.approx(number, rel=0.01)
    if name == "extra_large":
        assert count + dit.positions(16, 16, 1152).size == 675_129_632


@pytest.mark.slow
def test_a_stack_that_is_one_program_and_recomputed_gradients_are_the_same(monkeypatch):
    network, params = network_of()
    params = shaken(params)

    def gradients(network):
        def loss(params):
            return jnp.sum(network.apply({"params": params}, X, T, LABEL, None) ** 2)

        return jax.jit(jax.grad(loss))(params)

    unrolled = gradients(network)
    remat = gradients(network.clone(config=dit.Config(**{**vars(SIZES), "remat": True})))
    monkeypatch.setattr(dit, "UNROLLED", 1)
    for other in (gradients(network), remat):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), unrolled, other)


@pytest.mark.slow
def test_what_each_output_depends_on():
    """Every pixel on every pixel, on time and class; no image on another."""
    network, params = network_of()
    params = shaken(params)

    @jax.jit
    def apply(x, t, label=LABEL):
        return network.apply({"params": params}, x, t, label, None)

    jacobian_x, jacobian_t = jax.jit(jax.jacobian(apply, argnums=(0, 1)))(X, T)
    assert np.all(np.any(np.asarray(jacobian_x)[0, ..., 0, :, :, :], axis=(1, 2)))
    assert not np.any(np.asarray(jacobian_x)[0, ..., 1, :, :, :]) and np.all(np.asarray(jacobian_t)[0, ..., 0] != 0)
    other = apply(X, T, (LABEL + 1) % 3)
    assert np.all(np.any(np.asarray(other != apply(X, T)), axis=(1, 2, 3)))


def test_patches_are_cut_in_raster_order_and_put_back():
    x = np.arange(2 * 4 * 6 * 2).reshape(2, 4, 6, 2)
    patches = dit.to_patches(jnp.asarray(x), 2)
    assert patches.shape == (2, 6, 8)
    np.testing.assert_array_equal(patches[1, 4], x[1, 2:4, 2:4].ravel())  # second row, second column
    np.testing.assert_array_equal(dit.from_patches(patches, (2, 3), 2), x)


def test_positions_are_sines_and_cosines_of_column_and_row():
    places = dit.positions(2, 3, 8)
    for row in range(2):
        for column in range(3):
            expected = [f(place * w) for place in (column, row) for f in (np.sin, np.cos) for w in (1.0, 0.01)]
            np.testing.assert_allclose(places[3 * row + column], expected, atol=1e-6)


@pytest.mark.slow
def test_guidance_of_some_channels_only():
    """As published: what is predicted for the other channels is the conditional prediction."""
    data = data_of(4, 4, 2, 256, 3)
    model = make(Config(ddpm.Config(network=SIZES, num_timesteps=10)), data)
    batch = {"image": np.zeros((2, 4, 4, 2), np.uint8), "label": np.array([0, 1], np.int32)}
    params = {"dit": shaken(jax.jit(model.init)(jax.random.key(0), batch, {})[0]["dit"], 0.3)}

    @jax.jit
    def denoise(x_t, t, cond):
        return model.functions["denoise"](params, CTX, x_t, t, cond)

    x_t, t, cond, null = X[:2, :, :4], jnp.full(2, 0.5), {"label": jnp.array([0, 1])}, {"label": jnp.full(2, 3)}
    process = model.functions["process"](params, CTX)
    guided = classifier_free(denoise, cond, null, process, Guidance(3.0, channels=1))(x_t, t)
    strong, weak = denoise(x_t, t, cond), denoise(x_t, t, null)
    np.testing.assert_allclose(guided[..., 0], (weak + 3 * (strong - weak))[..., 0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(guided[..., 1], strong[..., 1], rtol=1e-5, atol=1e-5)
    assert not np.allclose(strong, weak)
    check = model.check_sampling
    mistake(lambda: check(model.sampling.__class__(guidance_channels=3)), "guidance_channels is 3", "0 (all) to 2")


def test_bad_sizes_are_one_line():
    data = data_of(4, 4, 1, 256, 3)

    def build(**sizes):
        make(Config(ddpm.Config(network=dit.Config(**{**vars(SIZES), **sizes}))), data)

    mistake(lambda: build(patch=3), "patch is 3", "4x4")
    mistake(lambda: build(heads=3), "features is 16", "heads = 3")
    mistake(lambda: build(features=18, heads=3), "features is 18", "by 4")
    mistake(lambda: build(dropout=1.0), "dropout is 1.0")
    mistake(lambda: make(Config(ddpm.Config()), data_of(8, 8, 1, 256, 3)), "jgen.nn.dit.Config")
    mistake(lambda: make(Config(objective=3), data), "objective.network is None")


def test_learned_variances_double_the_output():
    data = data_of(4, 4, 2, 256, 3)
    model = make(Config(ddpm.Config(network=SIZES, num_timesteps=10, bound_variance="learned")), data)
    batch = {"image": np.zeros((2, 4, 4, 2), np.uint8), "label": np.array([0, 1], np.int32)}
    params, _ = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, {}))
    assert params["dit"]["pixels"]["kernel"].shape == (16, 2 * 2 * 4)
