"""The published Inception-v3 that defines the Frechet Inception distance (Szegedy et al. 2015, arXiv 1512.00567).

It is the network of December 2015 that Heusel et al. 2017 (arXiv 1706.08500) used, with 1,008 outputs. It differs from
the usual one: average pooling does not count the padding, the last block uses max pooling, and the epsilon of batch
normalisation is 1e-3. Images are resized to 299 x 299 as in TensorFlow 1 (bilinear, corners at the origin, no
antialiasing) and scaled to (x - 128) / 128.

The weights come from a file given by the user, `.safetensors` or `.pth` (read with `weights_only`), with the names of
the PyTorch ports, such as `Mixed_5b.branch1x1.conv.weight`. A distance is called FID only if they are known to be the
published weights: by the hash of the file that pytorch-fid and torch-fidelity distribute
(pt_inception-2015-12-05-6726825d.pth), or in a copy for machines without PyTorch, made by

    python -m jgen.metrics.inception pt_inception-2015-12-05-6726825d.pth inception.safetensors
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jgen.core.files import written_whole
from jgen.errors import UserError, exit_code, require

SIZE, FEATURES, CLASSES, EPSILON = 299, 2048, 1008, 1e-3
SPATIAL_CHANNELS = 7  # channels of Mixed_6d's first branch: sFID's features
PUBLISHED = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # SHA-256 of the file
Weights = dict[str, Any]
Layer = Callable[..., Any]


def resize(images: Any) -> Any:
    """uint8 (B, H, W, C) to float32 (B, 299, 299, 3), scaled; one channel becomes three equal ones."""
    x = jnp.asarray(images, jnp.float32)
    for axis in (1, 2):
        n = x.shape[axis]
        place = np.arange(SIZE) * (n / SIZE)
        low = np.floor(place).astype(int)
        weight = (place - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(4)])
        above = jnp.take(x, np.minimum(low + 1, n - 1), axis)
        x = jnp.take(x, low, axis) * (1 - weight) + above * weight
    return jnp.broadcast_to((x - 128) / 128, (*x.shape[:3], 3))


def join(*parts: Any) -> Any:
    """Concatenates along the channels."""
    return jnp.concatenate(parts, axis=-1)


def block_a(layer: Layer, x: jax.Array, name: str, pool: int) -> Any:
    five = layer(f"{name}.branch5x5_2", layer(f"{name}.branch5x5_1", x, 48), 64, (5, 5))
    three = layer(f"{name}.branch3x3dbl_2", layer(f"{name}.branch3x3dbl_1", x, 64), 96, (3, 3))
    three = layer(f"{name}.branch3x3dbl_3", three, 96, (3, 3))
    return join(layer(f"{name}.branch1x1", x, 64), five, three, layer(f"{name}.branch_pool", mean_pool(x), pool))


def block_b(layer: Layer, x: jax.Array, name: str) -> Any:
    double = layer(f"{name}.branch3x3dbl_2", layer(f"{name}.branch3x3dbl_1", x, 64), 96, (3, 3))
    double = layer(f"{name}.branch3x3dbl_3", double, 96, (3, 3), 2, "VALID")
    return join(layer(f"{name}.branch3x3", x, 384, (3, 3), 2, "VALID"), double, max_pool(x, 2, "VALID"))


def block_c(layer: Layer, x: jax.Array, name: str, width: int) -> tuple[Any, Any]:
    seven = layer(f"{name}.branch7x7_2", layer(f"{name}.branch7x7_1", x, width), width, (1, 7))
    seven = layer(f"{name}.branch7x7_3", seven, 192, (7, 1))
    double = layer(f"{name}.branch7x7dbl_1", x, width)
    for number, (features, kernel) in enumerate(
        [(width, (7, 1)), (width, (1, 7)), (width, (7, 1)), (192, (1, 7))], start=2
    ):
        double = layer(f"{name}.branch7x7dbl_{number}", double, features, kernel)
    first = layer(f"{name}.branch1x1", x, 192)
    return join(first, seven, double, layer(f"{name}.branch_pool", mean_pool(x), 192)), first


def block_d(layer: Layer, x: jax.Array, name: str) -> Any:
    three = layer(f"{name}.branch3x3_2", layer(f"{name}.branch3x3_1", x, 192), 320, (3, 3), 2, "VALID")
    seven = layer(f"{name}.branch7x7x3_2", layer(f"{name}.branch7x7x3_1", x, 192), 192, (1, 7))
    seven = layer(f"{name}.branch7x7x3_3", seven, 192, (7, 1))
    return join(three, layer(f"{name}.branch7x7x3_4", seven, 192, (3, 3), 2, "VALID"), max_pool(x, 2, "VALID"))


def block_e(layer: Layer, x: jax.Array, name: str, pool: Callable[[Any], Any]) -> Any:
    three = layer(f"{name}.branch3x3_1", x, 384)
    three = join(*(layer(f"{name}.branch3x3_2{p}", three, 384, k) for p, k in (("a", (1, 3)), ("b", (3, 1)))))
    double = layer(f"{name}.branch3x3dbl_2", layer(f"{name}.branch3x3dbl_1", x, 448), 384, (3, 3))
    double = join(*(layer(f"{name}.branch3x3dbl_3{p}", double, 384, k) for p, k in (("a", (1, 3)), ("b", (3, 1)))))
    return join(layer(f"{name}.branch1x1", x, 320), three, double, layer(f"{name}.branch_pool", pool(x), 192))


def network(layer: Layer, x: jax.Array) -> tuple[Any, Any, Any]:
    """(features (B, 2048), spatial features (B, 17, 17, 7), logits (B, 1008)) of (B, 299, 299, 3).

    Args:
      layer: (name, input, features, kernel (h, w), stride, padding) -> output: convolution, normalisation and ReLU.
    """
    x = layer("Conv2d_1a_3x3", x, 32, (3, 3), 2, "VALID")
    x = layer("Conv2d_2a_3x3", x, 32, (3, 3), 1, "VALID")
    x = max_pool(layer("Conv2d_2b_3x3", x, 64, (3, 3)), 2, "VALID")
    x = layer("Conv2d_3b_1x1", x, 80, (1, 1), 1, "VALID")
    x = max_pool(layer("Conv2d_4a_3x3", x, 192, (3, 3), 1, "VALID"), 2, "VALID")
    for name, pool in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
        x = block_a(layer, x, name, pool)
    x = block_b(layer, x, "Mixed_6a")
    spatial = None
    for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        x, first = block_c(layer, x, name, width)
        spatial = first[..., :SPATIAL_CHANNELS] if name == "Mixed_6d" else spatial
    x = block_d(layer, x, "Mixed_7a")
    x = block_e(layer, x, "Mixed_7b", mean_pool)
    x = block_e(layer, x, "Mixed_7c", lambda y: max_pool(y, 1, "SAME"))
    features = x.mean(axis=(1, 2))
    return features, spatial, layer("fc", features, CLASSES)


def max_pool(x: jax.Array, stride: int, padding: str) -> Any:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def mean_pool(x: jax.Array) -> Any:
    """3x3 average pooling that does not count the padding."""

    def total(y: jax.Array) -> Any:
        return jax.lax.reduce_window(y, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")

    return total(x) / total(jnp.ones((1, *x.shape[1:3], 1), x.dtype))


def apply(weights: Weights, images: Any) -> tuple[Any, Any, Any]:
    """`network` with weights, on uint8 images (B, H, W, 1 or 3). The logits omit the bias, as in the published
    inception score."""

    def layer(
        name: str, x: jax.Array, features: int, kernel: tuple = (1, 1), stride: int = 1, padding: str = "SAME"
    ) -> Any:
        if name == "fc":
            return x @ weights["fc.weight"].T
        w = weights[f"{name}.conv.weight"].transpose(2, 3, 1, 0)
        y = jax.lax.conv_general_dilated(x, w, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        scale, shift, mean, variance = (
            weights[f"{name}.bn.{part}"][None, None, None] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return jax.nn.relu((y - mean) * (scale * jax.lax.rsqrt(variance + EPSILON)) + shift)

    return network(layer, resize(images))


def layout() -> dict[str, tuple[int, ...]]:
    """{name: shape} of all weights, with PyTorch's axis order."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(
        name: str, x: jax.Array, features: int, kernel: tuple = (1, 1), stride: int = 1, padding: str = "SAME"
    ) -> Any:
        if name == "fc":
            shapes.update({"fc.weight": (features, FEATURES), "fc.bias": (features,)})
            return jnp.zeros((len(x), features))
        shapes[f"{name}.conv.weight"] = (features, x.shape[-1], *kernel)
        shapes.update({f"{name}.bn.{p}": (features,) for p in ("weight", "bias", "running_mean", "running_var")})
        taken = 0 if padding == "SAME" else 1
        size = [(n - taken * (k - 1) - 1) // stride + 1 for n, k in zip(x.shape[1:3], kernel)]
        return jnp.zeros((len(x), *size, features))

    jax.eval_shape(lambda x: network(layer, x), jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32))
    return shapes


class Loaded(NamedTuple):
    """weights: {name: array}; hash: their SHA-256; published: whether they are known to be the published ones."""

    weights: Weights
    hash: str
    published: bool


def load(path: str | Path) -> Loaded:
    """Loads the weights from a file.

    Raises:
      UserError: no file, another kind of file, or weights of another network (the first tensor that does not fit is
        named).
    """
    path = Path(path)
    require(path.is_file(), f"there is no file {path}")
    require(path.suffix in (".safetensors", ".pth", ".pt"), f"{path} must be .safetensors, or .pth of PyTorch")
    metadata: dict[str, str] = {}
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "numpy") as file:
                tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
        else:
            import torch

            tensors = {name: tensor.numpy() for name, tensor in torch.load(path, "cpu", weights_only=True).items()}
    except ImportError as error:
        raise UserError(f"{path} cannot be read without {error.name}: pip install {error.name}") from error
    except Exception as error:  # the two libraries raise many types for an invalid file
        raise UserError(f"{path} is not a file of weights: {' '.join(str(error).split())[:200]}") from error
    weights = {}
    for name, shape in layout().items():
        require(name in tensors, f"{path} is not the Inception-v3 of FID: it has no tensor {name}")
        own = tuple(tensors[name].shape)
        require(own == shape, f"{path} is not the Inception-v3 of FID: {name} has shape {own}, not {shape}")
        weights[name] = np.asarray(tensors[name], np.float32)
    digest = hashlib.sha256(b"".join(weights[name].tobytes() for name in sorted(weights))).hexdigest()
    copied = metadata == {"copy_of": PUBLISHED, "weights": digest}
    return Loaded(weights, digest, copied or hashlib.sha256(path.read_bytes()).hexdigest() == PUBLISHED)


def copy(source: str | Path, out: str | Path) -> None:
    """Writes the published weights as .safetensors, which `load` recognises.

    Raises:
      UserError: as in `load`, or a file that is not the published one.
    """
    loaded = load(source)
    require(loaded.published, f"{source} is not the published file: its SHA-256 is not {PUBLISHED}")
    require(Path(out).suffix == ".safetensors", f"{out} must end in .safetensors")
    from safetensors.numpy import save_file

    with written_whole(Path(out)) as aside:
        save_file(loaded.weights, aside, {"copy_of": PUBLISHED, "weights": loaded.hash})


def check(source: str | Path) -> None:
    """Prints whether a file has the published weights, or others of this network. Raises `UserError` as in `load`."""
    print(f"{source}: {'the published' if load(source).published else 'not the published'} Inception network's weights")


def main() -> int:
    title = (copy.__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m jgen.metrics.inception", description=title)
    parser.add_argument("source", help="the published .pth; reading it needs PyTorch")
    parser.add_argument("out", nargs="?", help="the .safetensors to write; without it the file is only checked")
    args = parser.parse_args()
    return exit_code(lambda: copy(args.source, args.out) if args.out else check(args.source))


if __name__ == "__main__":
    sys.exit(main())
