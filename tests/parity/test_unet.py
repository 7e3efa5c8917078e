"""jgen's U-Net against diffusers' on the same weights: outputs and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import peers  # noqa: E402

from jgen.nn.unet import UNet  # noqa: E402


def to_torch(x):
    """NHWC to a tensor NCHW."""
    return torch.from_numpy(np.asarray(x).transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize(
    "channels,blocks,attention,head_dim,classes",
    # Of 64 channels at 16x16, convolutions and their gradients take fewer products on CPU.
    [((16, 32), 1, (8,), 8, 0), ((16, 32, 32), 2, (8, 4), 16, 11), ((64, 64), 1, (8,), 8, 0)],
)
def test_outputs_and_gradients_agree(channels, blocks, attention, head_dim, classes):
    size, groups, batch = 16, 8, 4
    unet = UNet(channels, blocks, attention, head_dim, groups, 0.0, classes, 3)
    keys = jax.random.split(jax.random.key(0), 4)
    x, g = jax.random.normal(keys[0], (2, batch, size, size, 3))
    t = jnp.array([1, 20, 500, 1000])
    label = jnp.arange(batch) % classes if classes else None
    params = jax.jit(lambda k: unet.init(k, x, t, label, None))(keys[1])["params"]
    noise = iter(jax.random.split(keys[2], 1000))
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(next(noise), p.shape), params)

    peer = peers.make_peer(channels, blocks, attention, size, head_dim, groups, classes, 3)
    peers.copy_unet_weights(peer, jax.device_get(params))
    extra = {"class_labels": torch.from_numpy(np.array(label))} if classes else {}
    theirs = peer(to_torch(x), torch.from_numpy(np.array(t)), **extra).sample
    ours = jax.jit(lambda p: unet.apply({"params": p}, x, t, label, None))(params)
    scale = float(jnp.abs(ours).max())
    np.testing.assert_allclose(to_torch(ours), theirs.detach(), atol=1e-4 * max(scale, 1.0))

    (theirs * to_torch(g)).sum().backward()
    gradients = jax.jit(jax.grad(lambda p: jnp.sum(unet.apply({"params": p}, x, t, label, None) * g)))(params)
    wanted = {name: p.grad for name, p in peer.named_parameters()}
    actual = peers.as_torch(jax.device_get(gradients), wanted, len(channels))
    for name, gradient in wanted.items():
        limit = 2e-4 * max(float(gradient.abs().max()), 1.0)
        np.testing.assert_allclose(actual[name], gradient, atol=limit, err_msg=name)
