"""VGG-19's maps, from a file that PyTorch saved, beside those of PyTorch's own layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgen.nn import vgg

torch = pytest.importorskip("torch")


def peer():
    """The layers of torchvision's VGG-19 up to the fourth pooling, with periodic boundaries and means for pooling."""
    layers, channels = [], 3
    for width, repeats in ((64, 2), (128, 2), (256, 4), (512, 4)):
        for _ in range(repeats):
            layers += [torch.nn.Conv2d(channels, width, 3, padding=1, padding_mode="circular"), torch.nn.ReLU()]
            channels = width
        layers.append(torch.nn.AvgPool2d(2))
    return torch.nn.Sequential(*layers)


def test_maps_are_those_of_pytorch(tmp_path):
    torch.manual_seed(0)
    network = peer()
    named = {f"features.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save(named, tmp_path / "vgg.pth", _use_new_zipfile_serialization=False)
    x = np.random.default_rng(0).uniform(size=(1, 32, 48, 3)).astype(np.float32)
    maps = jax.jit(lambda x: vgg.texture_maps(vgg.load(tmp_path / "vgg.pth"), x))(jnp.asarray(x))
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    h, expected = torch.tensor(np.float32((x - mean) / deviation)).permute(0, 3, 1, 2), []
    with torch.no_grad():
        for number, layer in enumerate(network):
            h = layer(h)
            if number == 1 or isinstance(layer, torch.nn.AvgPool2d):
                expected.append(h.permute(0, 2, 3, 1).numpy())
    assert len(maps) == 5
    for ours, theirs in zip(maps, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())
