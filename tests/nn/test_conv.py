"""The one convolution: its sizes, its layers, which formulation it takes, and that all formulations agree."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgen.core.backend import plain_forms
from jgen.nn.conv import Conv, ConvTranspose, conv, conv_transpose
from jgen.nn.cpu import patches, scanned, strided, winograd3x3

ZEROS = nn.initializers.zeros


def normal(*shape):
    return jnp.asarray(np.random.default_rng(shape).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("rows,columns,stride", [(3, 3, 1), (3, 3, 2), (4, 4, 2), (1, 5, 1), (5, 5, 2), (1, 1, 1)])
@pytest.mark.parametrize("padding", [None, ((2, 1), (0, 3))])
def test_values_by_the_definition(rows, columns, stride, padding):
    x, kernel = normal(2, 8, 10, 3), normal(rows, columns, 3, 4)
    above_below, left_right = padding or (((rows - 1) // 2,) * 2, ((columns - 1) // 2,) * 2)
    padded = np.pad(x, ((0, 0), above_below, left_right, (0, 0)))
    height, width = ((padded.shape[i + 1] - (rows, columns)[i]) // stride + 1 for i in range(2))
    expected = np.zeros((2, height, width, 4))
    for i in range(height):
        for j in range(width):
            window = padded[:, stride * i : stride * i + rows, stride * j : stride * j + columns]
            expected[:, i, j] = np.einsum("nabc,abco->no", window, kernel)
    np.testing.assert_allclose(conv(x, kernel, stride, padding), expected, atol=1e-4)
    with plain_forms():
        np.testing.assert_allclose(conv(x, kernel, stride, padding), expected, atol=1e-4)


def test_a_padding_below_zero_leaves_pixels_out():
    """Values and gradients, by sums over the taps; of the last column, JAX 0.10 had a gradient of no meaning on CPU."""
    x, kernel, w = normal(2, 4, 5, 3), normal(1, 1, 3, 16), normal(2, 4, 5, 16)
    padding = ((0, 0), (1, -1))

    def by_taps(x, kernel):
        return jnp.pad(x, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1] @ kernel[0, 0]

    def gradients(function):
        return jax.jit(jax.value_and_grad(lambda x, kernel: jnp.sum(w * function(x, kernel)), (0, 1)))(x, kernel)

    expected = gradients(by_taps)
    assert not np.any(expected[1][0][:, :, -1])
    with plain_forms():
        ours = gradients(lambda x, kernel: conv(x, kernel, padding=padding))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, expected)


@pytest.mark.parametrize("size,stride,height,width", [(4, 2, 3, 5), (3, 1, 4, 5), (2, 2, 3, 4), (5, 3, 3, 2)])
def test_conv_transpose_is_the_transpose_of_conv(size, stride, height, width):
    y, kernel = normal(2, height, width, 4), normal(size, size, 3, 4)
    up = conv_transpose(y, kernel, stride)
    with plain_forms():
        np.testing.assert_allclose(up, conv_transpose(y, kernel, stride), atol=1e-4)
    assert up.shape[1] == (height - 1) * stride + size - 2 * ((size - 1) // 2) and up.shape[3] == 3
    x = normal(*up.shape)
    np.testing.assert_allclose(jnp.sum(up * x), jnp.sum(y * conv(x, kernel, stride)), rtol=1e-4, atol=1e-3)


def test_doubling_and_halving():
    down, up = Conv(5, 4, 2), ConvTranspose(3)
    x = normal(2, 6, 10, 3)
    y = down.apply(down.init(jax.random.key(0), x), x)
    assert y.shape == (2, 3, 5, 5)
    assert up.apply(up.init(jax.random.key(0), y), y).shape == x.shape
    # An odd size loses a row, in the gradient too.
    x, kernel = normal(1, 7, 6, 2), normal(4, 4, 2, 3)
    assert conv(x, kernel, 2).shape == (1, 3, 3, 3)
    assert jax.grad(lambda x: jnp.sum(conv(x, kernel, 2) ** 2))(x).shape == x.shape


@pytest.mark.parametrize(
    "ours,theirs,shape",
    [
        (Conv(64), nn.Conv(64, (3, 3), padding=1), (2, 16, 16, 32)),
        (Conv(4, stride=2, cpu="plain"), nn.Conv(4, (3, 3), 2, padding=1), (2, 6, 5, 3)),
        (Conv(4, 4, 2, use_bias=False), nn.Conv(4, (4, 4), 2, padding=1, use_bias=False), (2, 6, 4, 3)),
        (Conv(4, 5, kernel_init=ZEROS), nn.Conv(4, (5, 5), kernel_init=ZEROS), (2, 5, 6, 3)),
    ],
)
def test_the_layer_has_the_parameters_and_outputs_of_flax(ours, theirs, shape):
    x = normal(*shape)
    params, peer = ours.init(jax.random.key(0), x), theirs.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, params, peer)
    if ours.use_bias:
        params["params"]["bias"] += jnp.arange(float(ours.features))
    np.testing.assert_allclose(ours.apply(params, x), theirs.apply(params, x), atol=1e-4)


def test_layers_compute_in_their_type_from_float32_parameters():
    for layer in (Conv(3, dtype=jnp.bfloat16), ConvTranspose(3, dtype=jnp.bfloat16)):
        x = normal(1, 4, 4, 2)
        params = layer.init(jax.random.key(0), x)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        assert layer.apply(params, x).dtype == jnp.bfloat16


CALLS = {
    # name: ((x, kernel), stride, padding, cpu), the formulation that it takes on CPU
    "wide 3x3": (((2, 16, 16, 32), (3, 3, 32, 32)), 1, None, "auto", winograd3x3),
    "narrow 3x3": (((2, 16, 16, 3), (3, 3, 3, 32)), 1, None, "auto", None),
    "asked to be plain": (((2, 16, 16, 32), (3, 3, 32, 32)), 1, None, "plain", None),
    "wide 3x3 of another padding": (((2, 16, 16, 32), (3, 3, 32, 32)), 1, ((2, 0), (1, 1)), "auto", None),
    "wide 3x3 of stride 2": (((2, 16, 16, 32), (3, 3, 32, 32)), 2, None, "auto", None),
    "4x4 of stride 2": (((2, 6, 8, 3), (4, 4, 3, 5)), 2, None, "auto", strided),
    "4x4 of stride 2, odd": (((2, 7, 8, 3), (4, 4, 3, 5)), 2, None, "auto", None),
    "scan": (((2, 5, 6, 4), (3, 3, 4, 5)), 1, None, "scan", scanned),
    "scan, thin input": (((2, 5, 6, 2), (3, 3, 2, 5)), 1, None, "scan", scanned),
    "scan, thin output": (((2, 5, 6, 5), (3, 3, 5, 2)), 1, None, "scan", scanned),
    "few channels": (((2, 5, 6, 3), (2, 3, 3, 5)), 1, ((1, 0), (1, 1)), "patches", patches),
    "many channels": (((2, 5, 6, 5), (2, 3, 5, 5)), 1, ((1, 0), (1, 1)), "patches", None),
    "1x1": (((2, 5, 6, 5), (1, 1, 5, 3)), 1, None, "scan", None),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_formulation_for_cpu_is_used_on_cpu_alone_and_agrees_with_the_plain_one(name, monkeypatch):
    shapes, stride, padding, cpu, module = CALLS[name]
    x, kernel = (normal(*shape) for shape in shapes)
    used = record_calls(monkeypatch)

    def value_and_gradients(x, kernel):
        y, pull = jax.vjp(lambda x, kernel: conv(x, kernel, stride, padding, cpu), x, kernel)
        return y, *pull(normal(*y.shape))

    ours = value_and_gradients(x, kernel)
    assert set(used) == ({module.__name__} if module else set())
    used.clear()
    with plain_forms():
        plain = value_and_gradients(x, kernel)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    elsewhere = value_and_gradients(x, kernel)
    assert not used
    for a, b, c in zip(ours, plain, elsewhere):
        np.testing.assert_array_equal(b, c)
        np.testing.assert_allclose(a, b, atol=1e-4 * float(np.abs(b).max()))


def record_calls(monkeypatch):
    """A list that gets the name of each module of `jgen.nn.cpu` whose convolution is called."""
    used = []

    def recorded(module, function):
        return lambda *args, **options: (used.append(module.__name__), function(*args, **options))[1]

    for module, name in ((winograd3x3, "conv"), (scanned, "conv"), (patches, "conv"), (strided, "conv_down")):
        monkeypatch.setattr(module, name, recorded(module, getattr(module, name)))
    return used


@pytest.mark.parametrize(
    "shape,stride,padding,cpu",
    [
        ((4, 4), 1, None, "scan"),
        ((3, 3), 2, None, "scan"),
        ((3, 5), 1, None, "scan"),
        ((3, 3), 1, ((2, 0), (1, 1)), "scan"),
        ((3, 3), 2, None, "patches"),
    ],
)
def test_a_formulation_that_does_not_serve_is_an_error_on_every_backend(shape, stride, padding, cpu):
    x, kernel = normal(1, 8, 8, 2), normal(*shape, 2, 2)
    with pytest.raises(ValueError, match=f"^cpu is '{cpu}': it does not serve"):
        conv(x, kernel, stride, padding, cpu)
    with plain_forms(), pytest.raises(ValueError, match=f"^cpu is '{cpu}': it does not serve"):
        conv(x, kernel, stride, padding, cpu)
