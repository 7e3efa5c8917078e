"""Attention to tokens beside its formula in NumPy, and the networks that have it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, softmax

from jgen.core.backend import plain_forms
from jgen.core.model import ImageSpec
from jgen.nn import dit, unet
from jgen.nn.attention import attention
from jgen.nn.cross_attention import CrossAttention, SpatialTransformer, Tokens

MASK = np.arange(7)[None] < np.array([[3], [7], [1]])
LABELS = None, None, None  # label, keys of dropout, vector


def normal(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def shaken(shapes):
    """Parameters of these shapes without zeros."""
    return jax.tree.map(lambda x: 0.3 * normal(*x.shape, 1)[..., 0], shapes)


def attended(params, x, tokens, mask, heads):
    """softmax(Q K^T / sqrt(d)) V, a head and an example at a time, of the tokens that count."""
    p = jax.tree.map(np.float64, params)
    outputs = []
    for one, features, counts in zip(x, tokens, mask):
        q, k, v = (
            h @ p[name]["kernel"] for h, name in ((one, "query"), *((features[counts], n) for n in ("key", "value")))
        )
        parts = zip(*(np.split(part, heads, axis=1) for part in (q, k, v)))
        joined = np.concatenate([softmax(a @ b.T / np.sqrt(a.shape[1]), axis=1) @ c for a, b, c in parts], axis=1)
        outputs.append(joined @ p["out"]["kernel"] + p["out"]["bias"])
    return np.stack(outputs)


def test_cross_attention_is_its_formula():
    x, tokens = normal(3, 5, 8), Tokens(normal(3, 7, 6), MASK)
    module = CrossAttention(heads=2)
    params = shaken(jax.eval_shape(module.init, jax.random.key(0), x, tokens)["params"])
    for mask in (MASK, np.ones_like(MASK)):
        expected = attended(params, x, tokens.features, mask, 2)
        np.testing.assert_allclose(module.apply({"params": params}, x, tokens._replace(mask=mask)), expected, atol=1e-5)
    np.testing.assert_allclose(module.apply({"params": params}, x, tokens._replace(mask=None)), expected, atol=1e-5)


def test_an_example_attends_to_its_own_values_with_the_weights_of_another():
    x, tokens = normal(2, 5, 8), normal(2, 7, 6)
    module = CrossAttention(heads=1)
    given = Tokens(tokens, MASK[:2], jnp.array([0, -1]))
    params = shaken(jax.eval_shape(module.init, jax.random.key(0), x, given)["params"])
    p = jax.tree.map(np.float64, params)
    logits = (x[0] @ p["query"]["kernel"]) @ (tokens[0] @ p["key"]["kernel"]).T / np.sqrt(8)
    weights = softmax(np.where(MASK[0], logits, -np.inf), axis=1)
    expected = weights @ (tokens @ p["value"]["kernel"]) @ p["out"]["kernel"] + p["out"]["bias"]
    np.testing.assert_allclose(module.apply({"params": params}, x, given), expected, atol=1e-5)


def test_a_transformer_over_positions_is_its_formula():
    x, tokens = normal(3, 2, 3, 8), Tokens(normal(3, 7, 6), MASK)
    module = SpatialTransformer(head_dim=4, groups=2)
    params = shaken(jax.eval_shape(module.init, jax.random.key(0), x, tokens)["params"])
    p = jax.tree.map(np.float64, params)

    def dense(h, layer):
        return h @ layer["kernel"] + layer["bias"]

    def normalised(h, layer):
        h = h - h.mean(-1, keepdims=True)
        return h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-5) * layer["scale"] + layer["bias"]

    grouped = np.float64(x).reshape(3, 6, 2, 4)
    grouped = grouped - grouped.mean((1, 3), keepdims=True)
    grouped = grouped / np.sqrt((grouped**2).mean((1, 3), keepdims=True) + 1e-6)
    h = dense(grouped.reshape(3, 6, 8) * p["norm"]["scale"] + p["norm"]["bias"], p["in"])
    block = p["block0"]
    own = normalised(h, block["norm_self"])
    h = h + attended(block["self_attention"], own, own, np.ones((3, 6), bool), 2)
    h = h + attended(block["cross_attention"], normalised(h, block["norm_cross"]), tokens.features, MASK, 2)
    a, gate = np.split(dense(normalised(h, block["norm_feed_forward"]), block["wide"]), 2, axis=-1)
    h = h + dense(a * gate * (1 + erf(gate / np.sqrt(2))) / 2, block["narrow"])
    expected = x + dense(h, p["out"]).reshape(x.shape)
    np.testing.assert_allclose(module.apply({"params": params}, x, tokens), expected, atol=2e-5)


def test_masked_attention_and_its_gradient_are_those_of_jax():
    q, k, v, g = normal(3, 5, 2, 8), normal(3, 7, 2, 8), 2 * normal(3, 7, 2, 8), normal(3, 5, 2, 8, 1)[..., 0]

    def run(function):
        gradients = jax.grad(lambda *x: jnp.sum(function(*x) * g), (0, 1, 2))
        return jax.jit(lambda *x: (function(*x), gradients(*x)))(q, k, v)

    ours = run(lambda *x: attention(*x, jnp.asarray(MASK)))
    peer = run(lambda *x: jax.nn.dot_product_attention(*x, mask=jnp.asarray(MASK)[:, None, None]))
    with plain_forms():
        plain = run(lambda *x: attention(*x, jnp.asarray(MASK)))
    for a, b, c in zip(*map(jax.tree.leaves, (ours, peer, plain))):
        np.testing.assert_allclose(a, b, atol=1e-5)
        np.testing.assert_array_equal(b, c)


NETWORKS = {
    "ddpm": lambda: unet.make_unet(unet.Config((8, 8), 1, (4,), 4, 4, 0.0), ImageSpec(4, 4, 2, 256), 0),
    "adm": lambda: unet.make_unet(
        unet.Config((8, 8), 1, (4,), 4, 4, 0.0, architecture="adm"), ImageSpec(4, 4, 2, 256), 0
    ),
    "dit": lambda: dit.make_dit(dit.Config(2, 8, 2, 2), ImageSpec(4, 4, 2, 256), 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_sees_the_tokens_that_count_and_no_others(name):
    network, x, t = NETWORKS[name](), normal(3, 4, 4, 2), np.array([0.1, 0.5, 0.9], np.float32)
    tokens = Tokens(normal(3, 7, 6), MASK)
    params = shaken(jax.eval_shape(network.init, jax.random.key(0), x, t, *LABELS, tokens))

    @jax.jit
    def gradient(features):
        def total(features):
            return jnp.sum(network.apply(params, x, t, *LABELS, Tokens(features, MASK)) ** 2)

        return jax.grad(total)(features)

    moves = np.abs(np.asarray(gradient(tokens.features))).max(-1)
    assert np.all(moves[~MASK] == 0.0)
    assert np.all(moves[MASK] > 0.0)
