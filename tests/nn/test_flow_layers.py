import operator
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgen.nn import flow


def shaken(tree, dtype=jnp.float64, size=0.3):
    """The tree with noise on its floats: nothing is left at its start, zeros and ones least of all."""
    leaves, structure = jax.tree.flatten(tree)
    draw = np.random.default_rng(7).standard_normal
    noisy = [
        jnp.asarray(leaf + size * draw(leaf.shape), dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
        for leaf in leaves
    ]
    return jax.tree.unflatten(structure, noisy)


LAYERS = {
    "actnorm": (flow.ActNorm(), ()),
    "invertible_1x1": (flow.InvertibleConv(), ()),
    "shuffle": (flow.Permutation(), ()),
    "reverse": (flow.Permutation(reverse=True), ()),
    "prior": (flow.GaussianPrior(3), (None, np.array([2]))),
    "conditional_prior": (flow.GaussianPrior(), (np.random.default_rng(1).standard_normal((1, 2, 3, 2)), None)),
}


def jacobian_of(apply, x, *rest, inverse):
    """The Jacobian of a layer's output, both as vectors."""

    def flat_output(flat):
        return apply(flat.reshape(x.shape), *rest, inverse=inverse)[0].ravel()

    return jax.jacrev(flat_output)(x.ravel())


@pytest.mark.parametrize("name", LAYERS)
def test_log_det_is_that_of_the_jacobian_and_the_inverse_undoes(name):
    layer, rest = LAYERS[name]
    x = np.random.default_rng(0).standard_normal((1, 2, 3, 4))
    with jax.enable_x64(True):
        variables = layer.init(jax.random.key(0), jnp.asarray(x), *rest)
        fixed = {"fixed": variables["fixed"]} if "fixed" in variables else {}
        variables = {"params": shaken(variables.get("params", {})), **fixed}
        start = jnp.asarray(x)
        for inverse in (False, True):
            y, log_det = layer.apply(variables, start, *rest, inverse=inverse)
            jacobian = jacobian_of(partial(layer.apply, variables), start, *rest, inverse=inverse)
            np.testing.assert_allclose(log_det[0], np.linalg.slogdet(np.asarray(jacobian))[1], rtol=0, atol=1e-8)
            if not inverse:
                start, first = y, log_det
                assert np.max(np.abs(np.asarray(y) - x)) > 0.1
                if name not in ("shuffle", "reverse"):
                    assert abs(float(log_det[0])) > 0.1
        np.testing.assert_allclose(y, x, atol=1e-10)
        np.testing.assert_allclose(log_det, -first, atol=1e-10)


def test_the_1x1_convolution_starts_as_a_rotation():
    x = np.random.default_rng(0).standard_normal((2, 3, 3, 8)).astype(np.float32)
    (y, log_det), variables = flow.InvertibleConv().init_with_output(jax.random.key(3), x)
    np.testing.assert_allclose(log_det, 0.0, atol=1e-5)
    np.testing.assert_allclose(np.sum(np.asarray(y) ** 2, -1), np.sum(x**2, -1), rtol=1e-5)
    assert not np.allclose(np.abs(y), np.abs(x), atol=0.1)
    assert sorted(np.asarray(variables["fixed"]["order"])) == list(range(8))


def test_scaled_convolutions_start_standardised_and_shift_by_class():
    x = 5 + 3 * np.random.default_rng(0).standard_normal((16, 6, 6, 3)).astype(np.float32)
    label = np.arange(16) % 4
    for size in (1, 3):
        layer = flow.ScaledConv(8, size, num_classes=4)
        y, variables = layer.init_with_output(jax.random.key(0), x, label)
        np.testing.assert_allclose(np.mean(y, (0, 1, 2)), 0.0, atol=1e-4)
        np.testing.assert_allclose(np.std(y, (0, 1, 2)), 1.0, atol=1e-4)
        table = np.random.default_rng(1).standard_normal((4, 8)).astype(np.float32)
        params = {**variables["params"], "classes": {"embedding": table}}
        moved = layer.apply({"params": params}, x, label) - y
        np.testing.assert_allclose(moved, np.broadcast_to(table[label][:, None, None], moved.shape), atol=1e-4)


def test_a_chain_is_its_layers_one_after_another_and_back():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, inverse=False):
            layers = [flow.ActNorm(name="a"), flow.InvertibleConv(name="b")]
            total = 0.0
            for layer in layers[::-1] if inverse else layers:
                x, log_det = layer(x, inverse)
                total = total + log_det
            return x, total

    layer, depth = Layer(), 5
    x = np.random.default_rng(0).gamma(2.0, size=(6, 2, 2, 4)).astype(np.float32)

    def init(key, x, number):
        return layer.init_with_output(key, x)

    stacked, last = flow.init_chain(init, jax.random.key(0), x, jnp.arange(depth))
    stacked = {**stacked, "params": shaken(stacked["params"], jnp.float32, 0.05)}

    def apply(inverse):
        return lambda variables, x: layer.apply(variables, x, inverse)

    y, log_det = flow.apply_chain(apply(False), stacked, x)
    wanted, total = x, 0.0
    for number in range(depth):
        wanted, one = layer.apply(jax.tree.map(operator.itemgetter(number), stacked), wanted)
        total = total + one
    np.testing.assert_allclose(y, wanted, atol=1e-5)
    np.testing.assert_allclose(log_det, total, atol=1e-5)
    back, opposite = flow.apply_chain(apply(True), stacked, y, inverse=True)
    np.testing.assert_allclose(back, x, atol=1e-5)
    np.testing.assert_allclose(opposite, -log_det, atol=1e-5)
    # Layers are unlike one another: one standardises what the one before left
    assert np.ptp(np.asarray(stacked["params"]["b"]["lower"]), axis=0).max() > 0.1
    np.testing.assert_allclose(np.var(last, (0, 1, 2)).sum(), 4.0, rtol=1e-3)
