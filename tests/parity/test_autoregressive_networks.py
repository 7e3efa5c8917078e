"""Gated PixelCNN and PixelCNN against PyTorch with whole masked kernels and the same weights: outputs and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch_pixelcnn as peers  # noqa: E402

from jgen.nn.gated_pixelcnn import GatedPixelCNN  # noqa: E402
from jgen.nn.pixelcnn import PixelCNN  # noqa: E402
from jgen.prob.autoregressive import categorical_log_prob  # noqa: E402

LEVELS, FEATURES, BLOCKS, HIDDEN, FIRST, SIZE, CLASSES = 16, 12, 3, 20, 7, 3, 4


def make(kind):
    if kind == "gated":
        net = GatedPixelCNN(LEVELS, 1, FEATURES, BLOCKS, HIDDEN, FIRST, SIZE, num_classes=CLASSES)
        peer = peers.GatedPixelCNN(LEVELS, FEATURES, BLOCKS, HIDDEN, FIRST, SIZE, CLASSES)
    else:
        net = PixelCNN(LEVELS, 1, FEATURES, BLOCKS, HIDDEN, FIRST, SIZE)
        peer = peers.PixelCNN(LEVELS, FEATURES, BLOCKS, HIDDEN, FIRST, SIZE)
    rng = np.random.default_rng(0)
    x = rng.integers(0, LEVELS, (3, 9, 10, 1))
    label = np.array([0, 3, 1])
    params = jax.jit(net.init)(jax.random.key(0), x, label)["params"]
    params = jax.tree.map(lambda p: np.asarray(p) + 0.1 * rng.standard_normal(p.shape, dtype=np.float32), params)
    peer.copy_from(params)
    inputs = [torch.from_numpy(x).permute(0, 3, 1, 2)]
    if kind == "gated":
        inputs.append(torch.nn.functional.one_hot(torch.from_numpy(label), CLASSES).float())
    return net, params, x, label, peer, inputs


@pytest.mark.parametrize("kind", ["gated", "plain"])
def test_outputs_and_gradients_are_those_of_pytorch(kind):
    net, params, x, label, peer, inputs = make(kind)

    def loss(params):
        logits = net.apply({"params": params}, x, label)
        return -jnp.mean(categorical_log_prob(logits, x)), logits

    (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    out = peer(*inputs)
    np.testing.assert_allclose(logits[:, :, :, 0], out.detach().permute(0, 2, 3, 1).numpy(), atol=2e-5)
    total = torch.nn.functional.cross_entropy(out, inputs[0][:, 0], reduction="sum") / len(x)
    assert abs(total.item() - float(value)) < 1e-4 * abs(total.item())
    total.backward()
    expected = make(kind)[4]  # to hold jgen's gradients, laid out as torch's weights
    expected.copy_from(jax.tree.map(np.asarray, gradients))
    parameters = dict(peer.named_parameters())
    for name, parameter in expected.named_parameters():
        ours, theirs = parameter.detach().numpy(), parameters[name].grad.numpy()
        if kind == "plain" and name.endswith("bias") and ("conv" in name or name.startswith("first")):
            ours = ours / 2  # two biases are one in torch: each has its gradient
        np.testing.assert_allclose(ours, theirs, atol=2e-3, rtol=1e-3, err_msg=name)
