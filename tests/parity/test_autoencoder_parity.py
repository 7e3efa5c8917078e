"""jgen's VAE, convolutional and dense with residual layers, against plain PyTorch: terms of the bound, and gradients.

Weights, images and noise are the same. Beside pythae's in test_vae.py, which has a dense layer and Bernoulli pixels.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from naive_autoregressive import normal_params

torch = pytest.importorskip("torch")
import autoencoder_peer as peers  # noqa: E402
from same_names import compare, nchw  # noqa: E402
from specs import data_of  # noqa: E402
from torch.distributions import Normal, kl_divergence  # noqa: E402

from jgen.core import keys as rng  # noqa: E402
from jgen.core.model import Context  # noqa: E402
from jgen.models.vae import vae  # noqa: E402

BATCH, SIZE, CHANNELS, LEVELS, CLASSES, LATENT, SCALE = 3, 8, 3, 17, 4, 3, 0.5
BETA, FREE = 0.7, 0.4
CONV = {"widths": (6, 8), "blocks": 1, "hidden": (10, 7)}
DENSE = {"widths": (12, 9), "blocks": 1}


@pytest.mark.parametrize("network,decoder,scale", [("conv", "logistic", "pixel"), ("dense", "gaussian", "shared")])
def test_the_loss_its_terms_and_all_gradients_agree(network, decoder, scale):
    """With a class, free bits and a weight of the KL divergence."""
    sizes = CONV if network == "conv" else DENSE
    config = vae.Config(
        network=network,
        latent=LATENT,
        decoder=decoder,
        scale=scale,
        initial_scale=SCALE,
        beta=BETA,
        free_bits=FREE,
        class_conditional=True,
        **sizes,
    )
    model = vae.make(config, data_of(SIZE, SIZE, CHANNELS, LEVELS, CLASSES))
    draw = np.random.default_rng(0)
    image = draw.integers(0, LEVELS, (BATCH, SIZE, SIZE, CHANNELS)).astype(np.uint8)
    label = draw.integers(0, CLASSES, BATCH)
    batch = {"image": jnp.asarray(image), "label": jnp.asarray(label, jnp.int32)}
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, {}))[0]
    keys = rng.image_keys(jax.random.key(1), jnp.arange(BATCH))

    def loss(params):
        value, (metrics, _) = model.phases[0].loss(params, Context(jnp.int32(0)), keys, batch)
        return value, [metrics["reconstruction"], metrics["kl"]]

    if network == "conv":
        peer = peers.ConvVae(SIZE, CHANNELS, 2 * CHANNELS, latent=LATENT, classes=CLASSES, **sizes)
    else:
        peer = peers.DenseVae(SIZE, CHANNELS, latent=LATENT, classes=CLASSES, **sizes)
    # The noise of sample k of an image is a function of its key and k alone.
    eps = torch.from_numpy(np.asarray(rng.normal(rng.fold_in(keys, 0), (LATENT,)), np.float64))

    def peer_loss():
        classes = torch.from_numpy(label)
        q = peer.encode(2 * nchw(image) / (LEVELS - 1) - 1, classes)
        mean, log_scale = peer.decode(q.mean + q.stddev * eps, classes)
        x = torch.from_numpy(image.astype(np.int64))
        log_p_x = peers.log_prob_of_levels(decoder, x, mean, SCALE * torch.exp(log_scale), LEVELS).sum((1, 2, 3))
        kl = kl_divergence(q, Normal(0.0, 1.0))
        losses = BETA * kl.clamp(min=FREE).sum(1) - log_p_x
        return losses.mean(), [log_p_x.mean(), kl.sum(1).mean()]

    compare(loss, normal_params(shapes, gain=1.0), peer, peer_loss)
