"""The Inception-v3 of FID against the port of torch-fidelity, with the same random weights, from a file."""

import hashlib
import importlib.util
import sys
import types

import jax
import numpy as np
import pytest

from jgen.data.pictures import write_png
from jgen.errors import UserError
from jgen.metrics import inception, quality

torch = pytest.importorskip("torch")
PEER = importlib.util.find_spec("torch_fidelity")
pytestmark = pytest.mark.skipif(PEER is None, reason="torch-fidelity is not installed")


def peer_class():
    """The network alone: the package around it asks for torchvision, which the network does not use."""
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(PEER.submodule_search_locations)
    sys.modules.setdefault("torch_fidelity", package)
    return importlib.import_module("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3


@pytest.fixture(scope="module")
def random_weights():
    rng = np.random.default_rng(0)
    weights = {}
    for name, shape in inception.layout().items():
        if name.endswith("conv.weight"):
            array = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith(("bn.weight", "running_var")):
            array = rng.uniform(0.5, 1.5, shape)
        else:
            array = 0.1 * rng.standard_normal(shape)
        weights[name] = array.astype(np.float32)
    return weights


def test_features_are_those_of_the_peer(random_weights, tmp_path):
    path = tmp_path / "inception.pth"
    torch.save({name: torch.from_numpy(array) for name, array in random_weights.items()}, path)
    peer = peer_class()("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path))
    weights, digest, published = inception.load(path)
    assert len(digest) == 64 and not published
    assert quality.of_inception(path).name == f"FD-inception-{digest[:8]}"  # not FID: these are not the published ones
    images = np.random.default_rng(1).integers(0, 256, (2, 40, 33, 3)).astype(np.uint8)
    features, spatial, logits = jax.jit(inception.apply)(weights, images)
    seen = []
    peer.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    expected = peer(torch.from_numpy(images).permute(0, 3, 1, 2))
    scale = float(expected[0].std())
    np.testing.assert_allclose(features, expected[0].numpy(), atol=1e-4 * scale)
    np.testing.assert_allclose(logits, expected[1].numpy(), atol=1e-4 * float(expected[1].std()))
    peer_maps = seen[0][:, : inception.SPATIAL_CHANNELS].permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(spatial, peer_maps, atol=1e-4 * peer_maps.std())
    grey = jax.jit(inception.apply)(weights, images[..., :1])[0]
    np.testing.assert_allclose(grey, inception.apply(weights, images[..., :1].repeat(3, -1))[0], atol=1e-4 * scale)


def test_the_published_file_and_its_copy_are_known(random_weights, tmp_path, monkeypatch, capsys):
    path, out = tmp_path / "inception.pth", tmp_path / "copy.safetensors"
    torch.save({name: torch.from_numpy(array) for name, array in random_weights.items()}, path)
    monkeypatch.setattr(sys, "argv", ["inception", str(path), str(out)])
    assert inception.main() == 2 and "is not the published file" in capsys.readouterr().err and not out.exists()
    monkeypatch.setattr(inception, "PUBLISHED", hashlib.sha256(path.read_bytes()).hexdigest())
    assert inception.main() == 0
    capsys.readouterr()
    for file in (path, out):
        monkeypatch.setattr(sys, "argv", ["inception", str(file)])
        assert (
            inception.main() == 0 and capsys.readouterr().out == f"{file}: the published Inception network's weights\n"
        )
    of_file, of_copy = inception.load(path), inception.load(out)
    assert of_file.published and of_copy.published and of_file.hash == of_copy.hash
    for name, array in random_weights.items():
        np.testing.assert_array_equal(of_copy.weights[name], array)
    assert quality.of_inception(out).name == "FID"
    # Others' weights under the same words are not.
    from safetensors.numpy import save_file

    save_file({**random_weights, "fc.bias": random_weights["fc.bias"] + 1}, out, {"copy_of": inception.PUBLISHED})
    assert not inception.load(out).published
    metadata = {"copy_of": inception.PUBLISHED, "weights": of_file.hash}
    save_file({**random_weights, "fc.bias": random_weights["fc.bias"] + 1}, out, metadata)
    assert not inception.load(out).published


def test_files_of_another_layout_are_refused(random_weights, tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "inception.safetensors"
    save_file(random_weights, path)
    np.testing.assert_array_equal(inception.load(path).weights["fc.bias"], random_weights["fc.bias"])
    other = dict(random_weights)
    other["Mixed_5c.branch1x1.conv.weight"] = other["Mixed_5c.branch1x1.conv.weight"][:3].copy()
    save_file(other, path)
    with pytest.raises(UserError, match=r"Mixed_5c.branch1x1.conv.weight has shape \(3, 256, 1, 1\)"):
        inception.load(path)
    del other["Mixed_5b.branch1x1.conv.weight"]
    save_file(other, path)
    with pytest.raises(UserError, match="no tensor Mixed_5b.branch1x1.conv.weight"):
        inception.load(path)
    path.write_bytes(b"not weights")
    with pytest.raises(UserError, match="is not a file of weights"):
        inception.load(path)
    with pytest.raises(UserError, match="there is no file"):
        inception.load(tmp_path / "nothing.pth")


class Harmful:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_file_that_would_run_a_program_is_refused_unread(random_weights, tmp_path):
    marker, unsafe = tmp_path / "marker", tmp_path / "unsafe.pth"
    torch.save({"fc.bias": Harmful(marker)}, unsafe)
    with pytest.raises(UserError, match="is not a file of weights"):
        inception.load(unsafe)
    assert not marker.exists()
    torch.load(unsafe, weights_only=False)  # so it would have
    assert marker.exists()


def test_the_feature_network_takes_images_in_any_batches_and_sizes(random_weights, tmp_path):
    """Of any size: larger images than the network's are made smaller, as the peer makes them."""
    from safetensors.numpy import save_file

    path, rng = tmp_path / "inception.safetensors", np.random.default_rng(2)
    save_file(random_weights, path)
    images = rng.integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
    features = quality.of_inception(path, batch_size=2).apply(images)
    expected = jax.jit(inception.apply)(random_weights, images)
    assert features[1].shape == (3, 17 * 17 * inception.SPATIAL_CHANNELS)
    for a, b in zip(features, (expected[0], np.reshape(expected[1], (3, -1)), expected[2])):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.std(b))
    torch.save({name: torch.from_numpy(array) for name, array in random_weights.items()}, tmp_path / "x.pth")
    peer = peer_class()("inception", ["2048"], feature_extractor_weights_path=str(tmp_path / "x.pth"))
    large = rng.integers(0, 256, (1, 400, 310, 3)).astype(np.uint8)
    (wanted,) = peer(torch.from_numpy(large).permute(0, 3, 1, 2))
    features = quality.of_inception(path, batch_size=1).apply(large)[0]
    np.testing.assert_allclose(features, wanted.numpy(), atol=1e-4 * float(wanted.std()))


def test_an_evaluation_with_weights_that_are_not_the_published_ones_is_not_called_fid(cache, random_weights, tmp_path):
    import json

    from safetensors.numpy import save_file

    from jgen import evaluate

    save_file(random_weights, tmp_path / "x.safetensors")
    pictures = tmp_path / "pictures"
    rng = np.random.default_rng(3)
    for i in range(70):
        write_png(pictures / f"{i:02d}.png", rng.integers(0, 256, (8, 8, 1)).astype(np.uint8))
    np.savez(tmp_path / "x.npz", images=rng.integers(0, 256, (50, 8, 8, 1)).astype(np.uint8))
    words = [
        "--images",
        str(tmp_path / "x.npz"),
        "--data.name",
        f"folder:{pictures}",
        "--out",
        str(tmp_path / "x.json"),
    ]
    assert evaluate.command([*words, "--inception", str(tmp_path / "x.safetensors")]) == 0
    scored = json.loads((tmp_path / "x.json").read_text())["quality"]
    assert scored["network"] == f"FD-inception-{inception.load(tmp_path / 'x.safetensors').hash[:8]}"
    assert "classifier_score" in scored and "inception_score" not in scored and scored["frechet_distance"]["value"] > 0
