"""The causal transformer and its sparse patterns beside dense masks, and its steps beside whole sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from naive_autoregressive import normal_params

from jgen.core import keys as rng
from jgen.errors import UserError
from jgen.nn.sparse_attention import Pattern, check_patterns, earlier_positions, make_patterns, sparse_attention
from jgen.nn.transformer import CausalTransformer, check_transformer

N = 24
PATTERNS = {
    "full": Pattern("full"),
    "local": Pattern("local", 6),
    "local, stride of the whole": Pattern("local", N),
    "column": Pattern("column", 6),
    "column, stride 1": Pattern("column", 1),
    "block": Pattern("block", 8, 2),
    "summary": Pattern("summary", 8, 2),
    "summary of one": Pattern("summary", 4, 1),
    "summary of all": Pattern("summary", 6, 6),
}


def sees(pattern, i, j):
    """Whether position i attends to position j, as section 4 of the paper defines it."""
    stride, c = pattern.stride, pattern.summary
    return (
        j <= i
        and {
            "full": True,
            "local": j >= max(0, i - stride),
            "column": (i - j) % stride == 0,
            "block": j // stride == i // stride,
            "summary": j % stride >= stride - c or j == i,
        }[pattern.kind]
    )


def dense_mask(pattern, length, prefix=0):
    """bool (P + N, P + N)."""
    mask = np.tri(prefix + length, dtype=bool)
    for i in range(length):
        mask[prefix + i, prefix:] = [sees(pattern, i, j) for j in range(length)]
    return mask


def dense_attention(q, k, v, mask):
    """softmax(q k^T / sqrt(D)) v over the keys of a mask, in float64."""
    logits = np.einsum("bqhd,bkhd->bhqk", *(np.asarray(x, np.float64) for x in (q, k))) / np.sqrt(q.shape[-1])
    weights = np.exp(np.where(mask, logits, -np.inf) - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhqk,bkhe->bqhe", weights, np.asarray(v, np.float64))


def draw(prefix, key_width=4, value_width=4):
    keys = jax.random.split(jax.random.key(0), 3)
    widths = (key_width, key_width, value_width)
    return [1.5 * jax.random.normal(key, (2, prefix + N, 3, width)) for key, width in zip(keys, widths)]


@pytest.mark.parametrize("prefix", [0, 5])
@pytest.mark.parametrize("name", PATTERNS)
def test_sparse_attention_is_dense_attention_under_a_mask(name, prefix):
    pattern, inputs = PATTERNS[name], draw(prefix)
    out = jax.jit(lambda *x: sparse_attention(*x, pattern, prefix))(*inputs)
    np.testing.assert_allclose(out, dense_attention(*inputs, dense_mask(pattern, N, prefix)), atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "local", "column", "block", "summary"])
def test_gradients_reach_what_is_attended_to_and_are_those_of_a_mask(name):
    prefix, pattern = 3, PATTERNS[name]
    inputs, mask = draw(prefix), dense_mask(pattern, N, prefix)

    def by_mask(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, mask=jnp.asarray(mask)[None, None])

    def gradients(function):
        return jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(function(*x)))))(inputs)

    ours, theirs = gradients(lambda *x: sparse_attention(*x, pattern, prefix)), gradients(by_mask)
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a, b, atol=1e-5)
    # Of the output at i, in the values at j.
    jacobian = jax.jacobian(lambda v: sparse_attention(*inputs[:2], v, pattern, prefix)[0].sum((1, 2)))(inputs[2])
    np.testing.assert_array_equal(np.any(np.asarray(jacobian)[:, 0] != 0, axis=(2, 3)), mask)


@pytest.mark.parametrize("widths", [(2, 6), (6, 2)])
@pytest.mark.parametrize("name", ["full", "column"])
def test_queries_and_keys_may_have_another_width_than_values(name, widths):
    inputs = draw(0, *widths)
    out = jax.jit(lambda *x: sparse_attention(*x, PATTERNS[name]))(*inputs)
    assert out.shape == (2, N, 3, widths[1])
    np.testing.assert_allclose(out, dense_attention(*inputs, dense_mask(PATTERNS[name], N)), atol=2e-6)


@pytest.mark.parametrize("name", PATTERNS)
def test_a_step_reads_the_positions_of_its_pattern(name):
    pattern = PATTERNS[name]
    for i in range(N):
        positions, is_earlier = earlier_positions(pattern, N, jnp.int32(i))
        read = np.asarray(positions)[np.asarray(is_earlier)]
        np.testing.assert_array_equal(np.sort(read), [j for j in range(i) if sees(pattern, i, j)])


def largest(jaxpr):
    """The most numbers that a program holds in one array."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [variable.aval.size for variable in equation.outvars]
        inner = [getattr(value, "jaxpr", value) for value in equation.params.values()]
        sizes += [largest(part) for part in inner if hasattr(part, "eqns")]
    return max(sizes)


@pytest.mark.parametrize("attention", ["strided", "fixed"])
def test_sparse_attention_takes_memory_of_n_sqrt_n(attention):
    length, stride = 1024, 32
    x = jax.ShapeDtypeStruct((1, length, 1, 2), jnp.float32)
    for pattern in make_patterns(attention, stride, 1):
        jaxpr = jax.make_jaxpr(lambda *x, pattern=pattern: sparse_attention(*x, pattern))(x, x, x).jaxpr
        assert largest(jaxpr) < 4 * length * stride
        positions, _ = jax.eval_shape(lambda i, pattern=pattern: earlier_positions(pattern, length, i), 0)
        assert positions.size == stride
    dense = jax.make_jaxpr(lambda *x: sparse_attention(*x, Pattern("full")))(x, x, x).jaxpr
    assert largest(dense) >= length**2


# The network.

FEATURES = 12
NETWORKS = {
    "dense": make_patterns("dense", 1, 1),
    "strided": make_patterns("strided", 6, 1),
    "fixed": make_patterns("fixed", 6, 2),
}


def make(name, layers=2, **options):
    return CausalTransformer(FEATURES, 3, layers, 20, 6, NETWORKS[name], **options)


def make_params(network):
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, N, FEATURES)))
    return {"params": normal_params(shapes["params"], gain=2.0)}


@pytest.mark.slow
@pytest.mark.parametrize("prefix", [0, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_steps_give_the_outputs_of_the_whole_sequence(name, prefix):
    network = make(name, layers=4)
    params, x = make_params(network), jax.random.normal(jax.random.key(1), (2, prefix + N, FEATURES))
    whole = jax.jit(lambda p: network.apply(p, x, None, prefix))(params)

    def by_steps(params):
        def step(caches, inputs):
            out, caches = network.apply(params, inputs[0], caches, inputs[1], method="step")
            return caches, out

        caches = network.apply(params, x[:, :prefix], N, method="start")
        return jax.lax.scan(step, caches, (x[:, prefix:].swapaxes(0, 1), jnp.arange(N)))[1].swapaxes(0, 1)

    np.testing.assert_allclose(jax.jit(by_steps)(params), whole[:, prefix:], atol=2e-5)
    assert np.std(whole) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_two_blocks_depend_on_all_positions_before_and_on_none_after(name):
    network = make(name)
    params, prefix = make_params(network), 3
    x = jax.random.normal(jax.random.key(1), (1, prefix + N, FEATURES))
    jacobian = jax.jit(jax.jacobian(lambda x: network.apply(params, x, None, prefix)[0].sum(-1)))(x)
    depends = np.any(np.asarray(jacobian)[:, 0] != 0, axis=-1)
    first, second = (dense_mask(p, N, prefix) for p in (NETWORKS[name] * 2)[:2])
    np.testing.assert_array_equal(depends, second.astype(int) @ first > 0)
    np.testing.assert_array_equal(depends, np.tri(prefix + N, dtype=bool))


@pytest.mark.slow
def test_layers_in_a_loop_and_features_computed_anew_change_nothing(monkeypatch):
    x = jax.random.normal(jax.random.key(1), (2, N, FEATURES))
    keys = rng.image_keys(jax.random.key(2), jnp.arange(2))

    def run(**options):
        network = make("strided", layers=6, dropout_rate=0.3, **options)
        params = make_params(network)
        return jax.jit(jax.value_and_grad(lambda p: jnp.sum(jnp.sin(network.apply(p, x, keys)))))(params)

    reference = run()
    monkeypatch.setattr("jgen.nn.transformer.UNROLLED", 0)
    for value in (run(), run(remat=True)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), value, reference)


def test_dropout_differs_from_block_to_block_and_belongs_to_an_example():
    network = make("dense", dropout_rate=0.5)
    params, x = make_params(network), jnp.ones((2, N, FEATURES))
    keys = rng.image_keys(jax.random.key(2), jnp.arange(3))
    call = jax.jit(lambda keys: network.apply(params, x, keys))
    a, b = call(keys[:2]), call(keys[jnp.array([2, 1])])
    np.testing.assert_array_equal(a[1], b[1])
    assert np.any(a[0] != b[0])


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"features": 0}, "features is 0: it must be above zero"),
        ({"features": 10}, "features is 10: it must be divisible by the 4 heads"),
        ({"key_features": 6}, "key_features is 6: it must be divisible by the 4 heads"),
        ({"layers": 3}, "layers is 3: it must be divisible by 2, patterns that alternate"),
        ({"hidden": -1}, "hidden is -1: it must be above zero"),
        ({"dropout_rate": 1.0}, "dropout is 1.0: it must be at least 0 and below 1"),
    ],
)
def test_sizes_that_no_network_has(changes, words):
    sizes = {"features": 8, "heads": 4, "layers": 2, "hidden": 8, "key_features": 8, "patterns": 2, "dropout_rate": 0.0}
    check_transformer(**sizes)
    with pytest.raises(UserError) as caught:
        check_transformer(**{**sizes, **changes})
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("attention,stride,summary,words", [
    ("strided", 5, 1, "stride is 5: it must divide the 24 positions of an image"),
    ("fixed", 0, 1, "stride is 0: it must divide the 24 positions"),
    ("strided", 48, 1, "stride is 48: it must divide the 24 positions"),
    ("fixed", 6, 7, "summary is 7: it must be from 1 to the stride, 6"),
    ("fixed", 6, 0, "summary is 0: it must be from 1 to the stride, 6"),
])  # fmt: skip
def test_patterns_that_do_not_fit_the_sequence(attention, stride, summary, words):
    check_patterns("dense", 5, 0, N)
    with pytest.raises(UserError) as caught:
        check_patterns(attention, stride, summary, N)
    assert words in str(caught.value) and "\n" not in str(caught.value)
