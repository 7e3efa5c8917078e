"""The image transformer against PyTorch's attention under the masks of the sparse patterns: logits, loss, gradients."""

from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from naive_autoregressive import normal_params

torch = pytest.importorskip("torch")
from same_names import compare  # noqa: E402
from specs import data_of  # noqa: E402
from transformer_peer import PixelTransformer as Peer  # noqa: E402

from jgen.core import keys as rng  # noqa: E402
from jgen.core.model import Context  # noqa: E402
from jgen.models.autoregressive import image_transformer  # noqa: E402
from jgen.nn.pixel_transformer import PixelTransformer  # noqa: E402
from jgen.nn.sparse_attention import make_patterns  # noqa: E402
from jgen.prob.autoregressive import categorical_log_prob  # noqa: E402

BATCH, SHAPE, LEVELS, CLASSES, LAYERS, STRIDE, SUMMARY = 3, (3, 4, 3), 5, 4, 4, 6, 2
KINDS = {"dense": ("full",), "strided": ("local", "column"), "fixed": ("block", "summary")}


def draw_images():
    draw = np.random.default_rng(1)
    return draw.integers(0, LEVELS, (BATCH, *SHAPE)).astype(np.uint8), draw.integers(0, CLASSES, BATCH)


def named_by_block(params):
    """The stacked parameters of the blocks apart, in the order in which the blocks follow one another."""
    params = dict(params)
    stacks = dict(params.pop("transformer"))
    params["norm"] = stacks.pop("norm")
    for place in range(LAYERS):
        number, i = divmod(place, len(stacks))
        params[f"blocks_{place}"] = jax.tree.map(itemgetter(number), stacks[f"blocks_{i}"])
    return params


@pytest.mark.parametrize("attention,key_features", [("dense", 4), ("dense", 12), ("strided", 8), ("fixed", 4)])
def test_the_models_loss_and_its_gradients_agree(attention, key_features):
    image, label = draw_images()
    config = image_transformer.Config(
        features=8,
        heads=2,
        layers=LAYERS,
        hidden=12,
        key_features=key_features,
        attention=attention,
        stride=STRIDE,
        summary=SUMMARY,
    )
    data = data_of(*SHAPE, LEVELS, CLASSES)
    model, network = image_transformer.make(config, data), image_transformer.make_network(config, data)
    batch = {"image": jnp.asarray(image), "label": jnp.asarray(label, jnp.int32)}
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), batch["image"], batch))["params"]
    keys = rng.image_keys(jax.random.key(0), jnp.arange(BATCH))

    def loss(params):
        value, _ = model.phases[0].loss({"transformer": params}, Context(jnp.int32(0)), keys, batch)
        return value, ()

    peer = Peer(SHAPE, LEVELS, (8, 2, 12, key_features), LAYERS, KINDS[attention], STRIDE, SUMMARY, CLASSES)
    x, classes = torch.from_numpy(image).long(), torch.from_numpy(label)

    def peer_loss():
        return torch.nn.functional.cross_entropy(peer(x, classes).flatten(0, 3), x.flatten()), ()

    compare(loss, normal_params(shapes), peer, peer_loss, arrange=named_by_block)


@pytest.mark.parametrize("attention", ["strided", "fixed"])
def test_logits_with_text_and_augmentation_agree(attention):
    image, _ = draw_images()
    text, transformation = np.array([[0, 3, 2], [1, 1, 6], [5, 4, 0]]), np.array([7, 0, 2])
    network = PixelTransformer(
        SHAPE,
        LEVELS,
        8,
        2,
        LAYERS,
        12,
        8,
        make_patterns(attention, STRIDE, SUMMARY),
        text="caption",
        vocabulary=7,
        text_length=3,
        transformations=8,
    )
    cond = {"caption": jnp.asarray(text, jnp.int32)}
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), image, cond))["params"]

    def loss(params):
        logits = network.apply({"params": params}, image, cond, jnp.asarray(transformation))
        return -jnp.mean(categorical_log_prob(logits, image)) / image[0].size, logits

    peer = Peer(SHAPE, LEVELS, (8, 2, 12, 8), LAYERS, KINDS[attention], STRIDE, SUMMARY, 0, 8, 7, 3)

    def peer_loss():
        x = torch.from_numpy(image).long()
        logits = peer(x, None, torch.from_numpy(transformation), torch.from_numpy(text))
        return torch.nn.functional.cross_entropy(logits.flatten(0, 3), x.flatten()), logits

    compare(loss, normal_params(shapes), peer, peer_loss, arrange=named_by_block)
