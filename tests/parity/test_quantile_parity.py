"""The implicit quantile function and the Huber quantile loss against plain PyTorch: values, loss, gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from naive_autoregressive import normal_params

torch = pytest.importorskip("torch")
from same_names import compare  # noqa: E402

from jgen.nn.quantile_head import QuantileHead  # noqa: E402
from jgen.prob.quantiles import huber_quantile_loss  # noqa: E402

BATCH, QUANTILES, FEATURES, LAYERS, COSINES = 4, 5, 6, 2, 7


class Peer(torch.nn.Module):
    """The quantile values of features that are parameters themselves, for their gradient."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Module()
        self.head.embed = torch.nn.Linear(COSINES, FEATURES)
        self.head.hidden = torch.nn.ModuleList(torch.nn.Linear(FEATURES, FEATURES) for _ in range(LAYERS))
        self.head.value = torch.nn.Linear(FEATURES, 1)
        self.features = torch.nn.Parameter(torch.zeros(BATCH, 1, FEATURES))

    def forward(self, tau):
        cosines = torch.stack([torch.cos(math.pi * i * tau) for i in range(COSINES)], dim=-1)
        h = self.features * torch.relu(self.head.embed(cosines))
        for layer in self.head.hidden:
            h = torch.relu(layer(h))
        return self.head.value(h).squeeze(-1)


@pytest.mark.parametrize("kappa", [0.0, 0.5])
def test_quantile_values_huber_loss_and_gradients_agree(kappa):
    """kappa = 0 is the pinball loss; PyTorch's `huber_loss` is kappa times as large."""
    draw = np.random.default_rng(0)
    tau = draw.uniform(size=(BATCH, QUANTILES)).astype(np.float32)
    y = draw.standard_normal((BATCH, 1)).astype(np.float32)
    features = jnp.asarray(draw.standard_normal((BATCH, 1, FEATURES)), jnp.float32)
    head = QuantileHead(FEATURES, LAYERS, COSINES)
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), features, jnp.asarray(tau)))["params"]
    params = {"head": normal_params(shapes), "features": features}

    def loss(params):
        q = head.apply({"params": params["head"]}, params["features"], jnp.asarray(tau))
        return jnp.mean(huber_quantile_loss(jnp.asarray(y), q, jnp.asarray(tau), kappa)), q

    peer = Peer()

    def peer_loss():
        levels, target = torch.from_numpy(tau).double(), torch.from_numpy(y).double()
        q = peer(levels)
        u = target - q
        if kappa == 0:
            rho = torch.maximum(levels * u, (levels - 1) * u)
        else:
            huber = torch.nn.functional.huber_loss(q, target.expand_as(q), reduction="none", delta=kappa)
            rho = torch.where(u < 0, 1 - levels, levels) * huber / kappa
        return rho.mean(), q

    compare(loss, params, peer, peer_loss)
