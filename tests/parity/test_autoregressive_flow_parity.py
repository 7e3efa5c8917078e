"""The variational lossy autoencoder's flow and local PixelCNN against plain PyTorch: densities, logits, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from naive_autoregressive import normal_params

torch = pytest.importorskip("torch")
import autoregressive_flow_peer as peers  # noqa: E402
from same_names import VALUES, assert_close, compare, load, nchw  # noqa: E402

from jgen.nn.autoregressive_flow import AutoregressiveFlow  # noqa: E402
from jgen.nn.local_pixelcnn import LocalPixelCNN  # noqa: E402
from jgen.prob.autoregressive import categorical_log_prob  # noqa: E402
from jgen.prob.likelihoods import normal_log_prob  # noqa: E402

BATCH, DIMS, UNITS, CLASSES, LEVELS = 3, 5, 4, 4, 6


def make_flow(depth, layers, num_classes):
    draw = np.random.default_rng(0)
    z = draw.standard_normal((BATCH, DIMS)).astype(np.float32)
    label = draw.integers(0, num_classes, BATCH) if num_classes else None
    flow = AutoregressiveFlow(DIMS, UNITS, depth, layers, num_classes)
    params = normal_params(jax.eval_shape(lambda: flow.init(jax.random.key(0), z, label))["params"], gain=1.0)
    peer = peers.Flow(DIMS, UNITS, depth, layers, num_classes)
    return flow, params, peer, z, label, None if label is None else torch.from_numpy(label)


@pytest.mark.parametrize("depth,layers,num_classes", [(1, 1, 0), (2, 3, CLASSES)])
def test_the_density_of_a_flow_and_its_gradients_agree(depth, layers, num_classes):
    """That of PyTorch is from the determinant of the flow's Jacobian."""
    flow, params, peer, z, label, classes = make_flow(depth, layers, num_classes)

    def loss(params):
        eps, log_det = flow.apply({"params": params}, z, label)
        return -jnp.mean(jnp.sum(normal_log_prob(eps, 0.0, 0.0), axis=1) + log_det), [eps, log_det]

    def peer_loss():
        x = torch.from_numpy(z).double()
        eps = peer(x, classes)
        # Summed over images, of which each depends on itself alone: (dims, B, dims).
        jacobian = torch.autograd.functional.jacobian(lambda x: peer(x, classes).sum(0), x, create_graph=True)
        log_det = torch.linalg.slogdet(jacobian.transpose(0, 1)).logabsdet
        log_prob = torch.distributions.Normal(0.0, 1.0).log_prob(eps).sum(1) + log_det
        return -log_prob.mean(), [eps, log_det]

    compare(loss, params, peer, peer_loss)


def test_the_way_back_inverts_the_flow_of_pytorch():
    flow, params, peer, z, label, classes = make_flow(2, 3, CLASSES)
    eps = load(peer, params)(torch.from_numpy(z).double(), classes)
    ours = flow.apply({"params": params}, jnp.asarray(eps.detach().numpy(), jnp.float32), label, method="inverse")
    assert_close(ours, torch.from_numpy(z), VALUES)


@pytest.mark.parametrize("channels,features,window", [(3, 9, 2), (1, 6, 1)])
def test_logits_loss_and_gradients_of_the_local_pixelcnn_agree(channels, features, window):
    draw = np.random.default_rng(0)
    x = draw.integers(0, LEVELS, (BATCH, 5, 4, channels)).astype(np.uint8)
    context = draw.standard_normal((BATCH, 5, 4, 7)).astype(np.float32)
    network = LocalPixelCNN(LEVELS, channels, features, 2, window)
    params = normal_params(jax.eval_shape(lambda: network.init(jax.random.key(0), x, context))["params"])

    def loss(params):
        logits = network.apply({"params": params}, x, context)
        return -jnp.mean(categorical_log_prob(logits, x)) / x[0].size, logits

    peer = peers.LocalPixelCNN(LEVELS, channels, features, 2, window, context.shape[-1])

    def peer_loss():
        logits = peer(2 * nchw(x) / (LEVELS - 1) - 1, nchw(context))
        target = torch.from_numpy(x.astype(np.int64)).permute(0, 3, 1, 2)
        return torch.nn.functional.cross_entropy(logits, target), logits.permute(0, 3, 4, 2, 1)

    compare(loss, params, peer, peer_loss)
