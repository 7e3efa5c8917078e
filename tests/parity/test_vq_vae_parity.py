"""VQ-VAE against plain PyTorch on the same weights: nearest codes, loss, gradients through them, and the codebook."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from naive_autoregressive import normal_params

torch = pytest.importorskip("torch")
from autoencoder_peer import ConvDecoder, ConvEncoder  # noqa: E402
from same_names import VALUES, assert_close, compare, nchw, nhwc  # noqa: E402
from specs import data_of  # noqa: E402

from jgen.core import keys as rng  # noqa: E402
from jgen.core.model import Context  # noqa: E402
from jgen.models.vae import vq_vae  # noqa: E402
from jgen.prob.codebook import start_book  # noqa: E402

BATCH, SIZE, CHANNELS, LEVELS, CODES, DIM, DECAY, COMMITMENT = 3, 8, 3, 17, 5, 4, 0.9, 0.25
WIDTHS, BLOCKS = (6, 8), 1


class Peer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = torch.nn.Module(), torch.nn.Module()
        self.encoder.layers, self.encoder.out = ConvEncoder(CHANNELS, WIDTHS, BLOCKS), torch.nn.Conv2d(8, DIM, 1)
        self.decoder.add_module("in", torch.nn.Conv2d(DIM, 8, 1))
        self.decoder.layers = ConvDecoder(CHANNELS, WIDTHS, BLOCKS)


def test_codes_loss_gradients_and_codebook_agree():
    """The codebook is that of exponential averages (van den Oord et al. 2017, appendix A.1)."""
    config = vq_vae.Config(
        widths=WIDTHS,
        blocks=BLOCKS,
        num_codes=CODES,
        code_dim=DIM,
        commitment=COMMITMENT,
        decay=DECAY,
        revival=0.0,
    )
    model = vq_vae.make(config, data_of(SIZE, SIZE, CHANNELS, LEVELS))
    draw = np.random.default_rng(0)
    image = draw.integers(0, LEVELS, (BATCH, SIZE, SIZE, CHANNELS)).astype(np.uint8)
    batch = {"image": jnp.asarray(image)}
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, {}))[0]
    params = normal_params(shapes, gain=1.0)
    # Codes are near what is encoded, so that several of them are used.
    z_e = vq_vae.Encoder(config).apply({"params": params["encoder"]}, 2.0 * image / np.float32(LEVELS - 1) - 1)
    vectors = np.asarray(z_e).reshape(-1, DIM)[:CODES] + 0.1 * draw.standard_normal((CODES, DIM), np.float32)
    context = Context(jnp.int32(0), extra={"codebook": start_book(jnp.asarray(vectors))})
    keys = rng.image_keys(jax.random.key(1), jnp.arange(BATCH))

    def loss(params):
        value, (metrics, extra) = model.phases[0].loss(params, context, keys, batch)
        book = extra["codebook"]
        return value, [metrics["mse"], metrics["commitment"], CODES * book["count"], CODES * book["sum"]]

    peer = Peer()

    def peer_loss():
        x, e = 2 * nchw(image) / (LEVELS - 1) - 1, torch.from_numpy(vectors).double()
        z_e = nhwc(peer.encoder.out(peer.encoder.layers(x)))
        flat = z_e.flatten(0, 2)
        codes = torch.cdist(flat, e).argmin(1)
        z_q = e[codes].reshape(z_e.shape)
        passed = z_e + (z_q - z_e).detach()
        x_hat = peer.decoder.layers(getattr(peer.decoder, "in")(passed.permute(0, 3, 1, 2)))
        mse, commitment = torch.nn.functional.mse_loss(x_hat, x), torch.nn.functional.mse_loss(z_e, z_q)
        # N and m start as if every code had been used equally often, with sum one.
        used = torch.nn.functional.one_hot(codes, CODES).double()
        assert int((used.sum(0) > 0).sum()) > 2
        count = DECAY / CODES + (1 - DECAY) * used.mean(0)
        total = DECAY * e / CODES + (1 - DECAY) * used.T @ flat / len(flat)
        return mse + COMMITMENT * commitment, [mse, commitment, CODES * count, (CODES * total).detach()]

    compare(loss, params, peer, peer_loss)


def test_nearest_codes_agree():
    draw = np.random.default_rng(0).standard_normal
    z, vectors = draw((2, 20, 30, DIM), np.float32), draw((64, DIM), np.float32)
    codes = vq_vae.nearest(jnp.asarray(vectors), jnp.asarray(z))
    distances = torch.cdist(torch.from_numpy(z).double().flatten(0, 2), torch.from_numpy(vectors).double())
    # Where two are as near as makes no difference, either will do.
    chosen = distances.gather(1, torch.from_numpy(np.array(codes)).long().reshape(-1, 1))[:, 0]
    assert_close(chosen.numpy(), distances.min(1).values, VALUES)
