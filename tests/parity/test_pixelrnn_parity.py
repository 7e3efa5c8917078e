"""Layers of PixelRNN against PyTorch's LSTM with the same weights, on images of one column or row: with gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jgen.nn.pixelrnn import DiagonalLSTM, RowLSTM  # noqa: E402

B, STEPS, F, SIZE = 3, 7, 5, 3


def to_torch(matrix):
    """Gates o, f, i, g along the last axis as PyTorch has them: i, f, g, o along the first."""
    o, f, i, g = np.split(np.asarray(matrix), 4, axis=-1)
    return torch.from_numpy(np.concatenate([i, f, g, o], axis=-1).T.copy())


@pytest.mark.parametrize("kind", ["row", "diagonal"])
def test_outputs_and_gradients_are_those_of_pytorchs_lstm(kind):
    """Of a Row LSTM the middle column meets the one above; of a diagonal's one row each pixel meets the one before."""
    draw = np.random.default_rng(0)
    shape = (B, STEPS, 1, 2 * F) if kind == "row" else (B, 1, STEPS, 2 * F)
    x = draw.standard_normal(shape).astype(np.float32)
    if kind == "row":
        layer, rest, states = RowLSTM(F, SIZE, 1, 0, jnp.float32), (x[..., :1], None), slice(F, 2 * F)
    else:
        layer, rest, states = DiagonalLSTM(2 * F, F, 1, 0, jnp.float32), (None,), slice(0, F)
    params = jax.jit(layer.init)(jax.random.key(0), x, *rest)["params"]
    params = jax.tree.map(lambda p: np.asarray(p) + 0.1 * draw.standard_normal(p.shape, dtype=np.float32), params)

    def loss(params, x):
        out = layer.apply({"params": params}, x, *rest)
        return jnp.sum(jnp.sin(out)), out

    (_, out), (gradients, gradient_x) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)

    peer = torch.nn.LSTM(2 * F, F, batch_first=True)
    with torch.no_grad():
        peer.weight_ih_l0.copy_(to_torch(params["input"]["kernel"][-1]))
        peer.weight_hh_l0.copy_(to_torch(params["kernel"][states]))
        peer.bias_ih_l0.copy_(to_torch(params["input"]["bias"][None])[:, 0])
        peer.bias_hh_l0.zero_()
    inputs = torch.from_numpy(x.reshape(B, STEPS, 2 * F)).requires_grad_()
    expected, _ = peer(inputs)
    torch.sin(expected).sum().backward()

    np.testing.assert_allclose(out.reshape(B, STEPS, F), expected.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(gradient_x.reshape(B, STEPS, 2 * F), inputs.grad.numpy(), atol=1e-5)
    for ours, theirs in (
        (gradients["input"]["kernel"][-1], peer.weight_ih_l0.grad),
        (gradients["kernel"][states], peer.weight_hh_l0.grad),
        (gradients["input"]["bias"][None], peer.bias_ih_l0.grad[:, None]),
    ):
        np.testing.assert_allclose(to_torch(ours), theirs, rtol=1e-4, atol=1e-5)
