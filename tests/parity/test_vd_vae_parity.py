"""The very deep VAE against plain PyTorch on the same weights, images and noise: terms of the bound, and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from naive_autoregressive import normal_params

torch = pytest.importorskip("torch")
import vd_vae_peer as peers  # noqa: E402
from pixelcnn_pp_peer import mixture_log_prob  # noqa: E402
from same_names import compare, nchw, nhwc  # noqa: E402
from specs import data_of  # noqa: E402

from jgen.core import keys as rng  # noqa: E402
from jgen.core.model import Context  # noqa: E402
from jgen.models.vae import vd_vae  # noqa: E402
from jgen.nn.vd_vae import Block, Bottleneck  # noqa: E402
from jgen.prob.logistic_mixture import num_parameters  # noqa: E402

BATCH, LEVELS, CLASSES, WIDTH, HIDDEN, LATENT, MIXTURES = 3, 17, 4, 8, 4, 2, 2


@pytest.mark.parametrize("height", [4, 2, 1])
@pytest.mark.parametrize("kind", ["bottleneck", "block"])
def test_bottlenecks_agree(kind, height):
    """Of small maps too, whose convolutions are 1x1."""
    x = np.random.default_rng(0).standard_normal((BATCH, height, height, WIDTH)).astype(np.float32)
    module = Bottleneck(HIDDEN) if kind == "bottleneck" else Block(HIDDEN, 1.0)
    peer = (peers.Bottleneck if kind == "bottleneck" else peers.Block)(WIDTH, HIDDEN, height)

    def loss(params):
        out = module.apply({"params": params}, x)
        return jnp.mean(out**3), out

    def peer_loss():
        out = peer(nchw(x))
        return (out**3).mean(), nhwc(out)

    compare(loss, normal_params(jax.eval_shape(module.init, jax.random.key(0), x)["params"]), peer, peer_loss)


@pytest.mark.parametrize("decoder,channels,bias_height", [("logistic_mixture", 3, 2), ("bernoulli", 1, 4)])
def test_the_terms_of_the_bound_and_all_gradients_agree(decoder, channels, bias_height):
    binary = decoder == "bernoulli"
    levels, down, up = 2 if binary else LEVELS, ((4, 2), (2, 1), (1, 1)), ((1, 1), (2, 1), (4, 2))
    config = vd_vae.Config(
        encoder_blocks=down,
        decoder_blocks=up,
        width=WIDTH,
        bottleneck=HIDDEN / WIDTH,
        latent=LATENT,
        bias_height=bias_height,
        decoder=decoder,
        mixtures=MIXTURES,
        class_conditional=True,
    )
    model = vd_vae.make(config, data_of(4, 4, channels, levels, CLASSES))
    draw = np.random.default_rng(0)
    image = draw.integers(0, levels, (BATCH, 4, 4, channels)).astype(np.uint8)
    label = draw.integers(0, CLASSES, BATCH)
    batch = {"image": jnp.asarray(image), "label": jnp.asarray(label, jnp.int32)}
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, {}))[0]["vae"]
    keys = rng.image_keys(jax.random.key(1), jnp.arange(BATCH))
    params = normal_params(shapes, gain=0.8)

    def loss(params):
        value, (metrics, _) = model.phases[0].loss({"vae": params}, Context(jnp.int32(0)), keys, batch)
        return value, [metrics["reconstruction"], metrics["kl_1"], metrics["kl_2"], metrics["kl_4"]]

    outputs = channels if binary else num_parameters(MIXTURES, channels)
    peer = peers.VdVae(
        peers.Encoder(down, channels, WIDTH, HIDDEN),
        peers.Decoder(up, WIDTH, HIDDEN, LATENT, outputs, bias_height, CLASSES),
    )
    # The noise of a layer, of an image, is a function of its key and the layer's number alone.
    heights = [height for height, blocks in up for _ in range(blocks)]
    noise = [nchw(rng.normal(rng.fold_in(keys, n), (size, size, LATENT))) for n, size in enumerate(heights)]

    def peer_loss():
        features = peer.encoder(2 * nchw(image) / (levels - 1) - 1)
        out, kl = peer.decoder(features, torch.from_numpy(label), noise)
        out, x = nhwc(out), torch.from_numpy(image.astype(np.int64))
        if binary:
            log_p_x = torch.distributions.Bernoulli(logits=out).log_prob(x.double()).sum((1, 2, 3))
        else:
            log_p_x = mixture_log_prob(out, x, levels).sum((1, 2))
        elbo = log_p_x - kl.sum(1)
        terms = [log_p_x.mean(), kl[:, 0].mean(), kl[:, 1].mean(), kl[:, 2:].sum(1).mean()]
        return -elbo.mean() / image[0].size, terms

    compare(loss, params, peer, peer_loss)
