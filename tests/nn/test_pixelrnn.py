"""The LSTM layers of PixelRNN against loops over pixels written out, and the maps that they are skewed into."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from naive_autoregressive import normal_params
from scipy.special import expit

from jgen.nn.masked_convolution import group_mask
from jgen.nn.pixelrnn import DiagonalBiLSTM, PixelRNN, RowLSTM, skew, unskew

B, F, CHANNELS, CLASSES = 2, 6, 3, 2
LABEL = np.array([1, 0])


@pytest.mark.parametrize("height,width", [(3, 4), (4, 2), (1, 3), (3, 1), (1, 1)])
def test_a_skewed_map_has_each_row_a_column_further_to_the_right(height, width):
    x = np.random.default_rng(0).standard_normal((B, height, width, 2)).astype(np.float32)
    skewed = np.asarray(skew(x))
    expected = np.zeros((B, height, height + width - 1, 2), np.float32)
    for i, j in np.ndindex(height, width):
        expected[:, i, i + j] = x[:, i, j]
    np.testing.assert_array_equal(skewed, expected)
    np.testing.assert_array_equal(unskew(skewed), x)


def make(module, height, width):
    draw = np.random.default_rng(1)
    x, image = (draw.standard_normal((B, height, width, n)).astype(np.float32) for n in (2 * F, CHANNELS))
    params = normal_params(jax.eval_shape(module.init, jax.random.key(0), x, image, LABEL)["params"])
    out = jax.jit(lambda p: module.apply({"params": p}, x, image, LABEL))(params)
    return (x.astype(np.float64), image), jax.tree.map(lambda p: np.asarray(p, np.float64), params), np.asarray(out)


def cell_of(gates, cell):
    """(h, c) of equation 3."""
    o, f, i, g = np.split(gates, 4, axis=-1)
    cell = expit(f) * cell + expit(i) * np.tanh(g)
    return expit(o) * np.tanh(cell), cell


def taps_of(params, groups):
    """K_is, (columns, 2 F, 4 F), the last column being the own pixel, whose later channels are hidden."""
    kernel = params["input"]["kernel"].copy()
    if groups > 1:
        kernel[-1] *= group_mask(2 * F, 4 * F, groups, "B", 4)
    return kernel


@pytest.mark.parametrize("size,height,width", [(3, 4, 5), (5, 3, 2), (3, 1, 3)])
def test_a_row_lstm_is_the_recurrence_over_rows_pixel_by_pixel(size, height, width):
    (x, _), params, out = make(RowLSTM(F, size, CHANNELS, CLASSES, jnp.float32), height, width)
    taps, reach = taps_of(params, CHANNELS), size // 2
    states = params["kernel"].reshape(size, F, 4 * F)
    h, c = np.zeros((2, height, width, B, F))
    for i, j in np.ndindex(height, width):
        gates = params["input"]["bias"] + params["label"]["embedding"][LABEL]
        for b in range(size):
            k = j - reach + b
            if 0 <= k < width:
                gates = gates + (x[:, i, k] @ taps[b] if k <= j else 0) + (h[i - 1, k] @ states[b] if i else 0)
        h[i, j], c[i, j] = cell_of(gates, c[i - 1, j] if i else 0)
    np.testing.assert_allclose(out, h.transpose(2, 0, 1, 3), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("height,width", [(3, 4), (4, 2), (1, 3), (3, 1)])
def test_a_diagonal_bilstm_is_the_recurrence_over_pixels_from_both_sides(height, width):
    (x, image), params, out = make(DiagonalBiLSTM(F, CHANNELS, CLASSES, jnp.float32), height, width)
    expected = np.zeros((height + 1, width, B, F))
    for side, groups in (("left", CHANNELS), ("right", 1)):
        own = params[side]
        (taps,), kernel = taps_of(own, groups), own["kernel"]
        h, c = np.zeros((2, height, width, B, F))
        for i in range(height):
            for place in range(width):
                j, before = (place, place - 1) if side == "left" else (width - 1 - place, width - place)
                seen = x[:, i, j] if side == "left" else np.concatenate([x[:, i, j], image[:, i, j]], -1)
                gates = seen @ taps + own["input"]["bias"] + own["label"]["embedding"][LABEL]
                if place:
                    gates = gates + h[i, before] @ kernel[:F]
                if i:
                    gates = gates + h[i - 1, j] @ kernel[F:]
                h[i, j], c[i, j] = cell_of(gates, c[i, before] if place else 0)
        down = int(side == "right")
        expected[down : down + height] += h
    np.testing.assert_allclose(out, expected[:height].transpose(2, 0, 1, 3), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", ["row", "diagonal"])
def test_a_pixel_costs_as_many_operations_as_its_part_of_the_network(layer):
    size = 16
    network = PixelRNN(4, 1, layer, 8, 2, 8)
    shape = (size, size, 1)
    params = {
        "params": normal_params(jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *shape)))["params"])
    }

    def operations(method, *args):
        function = jax.jit(lambda *args: network.apply(params, *args, method=method))
        return function.lower(*args).cost_analysis()["flops"]

    rows, columns = network.apply(params, 1, size, method="start")
    rows, contexts = network.apply(params, rows, None, method="enter_row")
    here, pixel = jax.tree.map(lambda a: a[0], contexts), jnp.zeros((1, 1), jnp.int32)
    whole = operations(None, jnp.zeros((1, *shape), jnp.int32))
    assert operations("at_pixel", columns, here, pixel) < 2 * whole / size**2
