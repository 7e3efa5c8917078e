"""Glow against normflows on copied weights: densities, their gradients, latents and samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("normflows")

import flow_peer  # noqa: E402
from specs import data_of  # noqa: E402

from jgen.core.model import Context  # noqa: E402
from jgen.models.flow import glow  # noqa: E402
from jgen.models.flow.dequantised import preprocess  # noqa: E402

DATA = data_of(4, 8, 3, 32)
IMAGES = DATA.image


@pytest.mark.parametrize("coupling", ["affine", "additive"])
def test_densities_gradients_and_latents_are_those_of_normflows(coupling):
    config = glow.Config(scales=2, depth=2, width=16, coupling=coupling, class_conditional=False)
    model, flow = glow.make(config, DATA), glow.make_bijection(config, DATA)
    draw = np.random.default_rng(0)
    batch = {"image": draw.integers(0, 32, (16, *IMAGES.shape)).astype(np.uint8)}
    params, extra = jax.jit(model.init)(jax.random.key(0), batch, {})
    params = jax.tree.map(
        lambda p: (p + 0.03 * draw.standard_normal(p.shape)).astype(np.float32), jax.device_get(params)
    )
    params["flow"]["scale0"]["prior"]["given"]["kernel"] *= 0
    peer = flow_peer.make_peer(2, 2, 16, IMAGES.shape, coupling == "affine")
    flow_peer.copy_weights(peer, params["flow"], extra["flow"])

    ctx = Context(jnp.int32(0), extra=extra)
    x = (batch["image"] + draw.uniform(size=batch["image"].shape)).astype(np.float32)

    def density(x):
        return model.log_density(params, ctx, None, x, {})

    @jax.jit
    def ours(x):
        latents, _ = flow.forward(params["flow"], extra["flow"], preprocess(x, 32, 0.0)[0], None)
        back = flow.inverse(params["flow"], extra["flow"], latents, None)
        return density(x), jax.grad(lambda x: jnp.sum(density(x)))(x), latents, back

    log_p, gradient, latents, again = ours(x)
    theirs = torch.from_numpy(np.asarray(preprocess(jnp.asarray(x), 32, 0.0)[0]).transpose(0, 3, 1, 2).copy())
    theirs.requires_grad_(True)
    peer_log_p = peer.log_prob(theirs, None)
    peer_log_p.sum().backward()
    volume = IMAGES.size * np.log(32)
    np.testing.assert_allclose(log_p, peer_log_p.detach().numpy() - volume, rtol=1e-5)
    peer_gradient = theirs.grad.numpy().transpose(0, 2, 3, 1) / 32
    np.testing.assert_allclose(gradient, peer_gradient, rtol=0, atol=2e-5 * np.abs(peer_gradient).max())

    with torch.no_grad():
        z, _ = peer.inverse_and_log_det(theirs.detach())
        back, _ = peer.forward_and_log_det(z)
    for eps, base, level in zip(latents, reversed(peer.q0), reversed(z)):
        standard = ((level - base.loc) * torch.exp(-base.log_scale)).detach().numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(eps, standard, rtol=0, atol=1e-4 * np.abs(standard).max())
    np.testing.assert_allclose(again, back.numpy().transpose(0, 2, 3, 1), rtol=0, atol=2e-4)
