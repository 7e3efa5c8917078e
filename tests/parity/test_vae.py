"""jgen's VAE against pythae's on the same weights, images and noise: terms of the bound, gradients, and the IWAE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pythae")

import vae_peer  # noqa: E402
from specs import data_of  # noqa: E402

from jgen.core import keys as rng  # noqa: E402
from jgen.core.model import Context  # noqa: E402
from jgen.models.vae import vae  # noqa: E402

LATENT, BATCH, SAMPLES = 5, 6, 7


def make(**options):
    config = vae.Config(
        network="dense", widths=(vae_peer.HIDDEN,), blocks=0, latent=LATENT, decoder="bernoulli", **options
    )
    model = vae.make(config, data_of(8, 8, 1, 2))
    image = np.random.default_rng(0).integers(0, 2, (BATCH, 8, 8, 1)).astype(np.uint8)
    batch = {"image": image}
    params, _ = jax.jit(model.init)(jax.random.key(0), batch, {})
    # Small, so that no pixel is certain: pythae's cross-entropy of probabilities loses what float32 rounds to 0 or 1.
    noise = iter(jax.random.split(jax.random.key(1), 100))
    params = jax.tree.map(lambda p: p + 0.02 * jax.random.normal(next(noise), p.shape), params)
    keys = rng.image_keys(jax.random.key(2), jnp.arange(BATCH))

    def loss(params):
        return model.phases[0].loss(params, Context(jnp.int32(0)), keys, batch)

    (value, (metrics, _)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    # The noise of sample k of an image is a function of its key and k alone.
    numbers = range(config.num_samples)
    eps = np.stack([np.asarray(rng.normal(rng.fold_in(keys, k), (LATENT,))) for k in numbers])
    peer = vae_peer.make_peer((1, 8, 8), LATENT)
    peer.load_state_dict(vae_peer.by_peer_name(params), strict=True)
    x = torch.from_numpy(image.astype(np.float32).transpose(0, 3, 1, 2))
    return float(value), metrics, vae_peer.by_peer_name(jax.device_get(gradients)), peer, x, torch.from_numpy(eps)


def encode(peer, x):
    # jgen's encoder reads images scaled to [-1, 1], whatever the decoder.
    output = peer.encoder(2 * x - 1)
    return output.embedding, output.log_covariance


def test_the_terms_of_the_bound_and_all_gradients_agree():
    value, metrics, gradients, peer, x, eps = make()
    mu, logvar = encode(peer, x)
    z = mu + torch.exp(0.5 * logvar) * eps[0]
    loss, reconstruction, kl = peer.loss_function(peer.decoder(z).reconstruction, x, mu, logvar, z)
    assert value == pytest.approx(loss.item(), rel=1e-5)
    assert float(metrics["kl"]) == pytest.approx(kl.item(), rel=1e-4)
    assert float(metrics["reconstruction"]) == pytest.approx(-reconstruction.item(), rel=1e-5)
    loss.backward()
    wanted = {name: p.grad for name, p in peer.named_parameters()}
    assert gradients.keys() == wanted.keys()
    for name, gradient in wanted.items():
        scale = float(gradient.abs().max())
        np.testing.assert_allclose(gradients[name], gradient, atol=1e-4 * max(scale, 1.0), err_msg=name)


def test_the_iwae_objective_and_its_gradients_agree():
    """pythae's loss weighs samples by their detached importance; its gradient is that of the log of the mean weight."""
    from pythae.models import IWAE, IWAEConfig

    value, _, gradients, peer, x, eps = make(objective="iwae", num_samples=SAMPLES)
    config = IWAEConfig(input_dim=(1, 8, 8), latent_dim=LATENT, reconstruction_loss="bce", number_samples=SAMPLES)
    iwae = IWAE(config)
    iwae.load_state_dict(peer.state_dict())
    mu, logvar = (a.unsqueeze(1).repeat(1, SAMPLES, 1) for a in encode(iwae, x))
    z = mu + torch.exp(0.5 * logvar) * eps.transpose(0, 1)
    recon = iwae.decoder(z.reshape(-1, LATENT)).reconstruction.reshape(BATCH, SAMPLES, -1)
    iwae.loss_function(recon, x, mu, logvar, z)[0].backward()
    for name, p in iwae.named_parameters():
        scale = float(p.grad.abs().max())
        np.testing.assert_allclose(gradients[name], p.grad, atol=1e-4 * max(scale, 1.0), err_msg=name)
    # The value, which pythae does not give, from PyTorch's distributions.
    normal = torch.distributions.Normal
    log_w = (
        torch.distributions.Bernoulli(recon).log_prob(x.reshape(BATCH, 1, -1).expand_as(recon)).sum(-1)
        + normal(0.0, 1.0).log_prob(z).sum(-1)
        - normal(mu, torch.exp(0.5 * logvar)).log_prob(z).sum(-1)
    )
    bound = torch.logsumexp(log_w, dim=1) - np.log(SAMPLES)
    assert value == pytest.approx(-bound.mean().item(), rel=1e-5)
