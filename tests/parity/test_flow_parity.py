"""Couplings and residual blocks against normflows, a continuous flow against torchdiffeq, on copied weights."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
nf = pytest.importorskip("normflows")
torchdiffeq = pytest.importorskip("torchdiffeq")

from naive_autoregressive import normal_params  # noqa: E402
from specs import data_of  # noqa: E402

from jgen.core.model import Context  # noqa: E402
from jgen.models.flow import ffjord, realnvp  # noqa: E402
from jgen.models.flow.dequantised import preprocess  # noqa: E402
from jgen.nn.residual_flow import LipschitzNetwork, constrain, invert, start_vectors  # noqa: E402
from jgen.prob.roulette import exact_log_det  # noqa: E402

F = torch.nn.functional


def tensor(value):
    return torch.from_numpy(np.array(value))


def channels_first(x):
    return tensor(np.asarray(x).transpose(0, 3, 1, 2))


def channels_last(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)


class Of(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def convolved(p, x):
    kernel = p["kernel"] * np.exp(p["log_scale"]) if "log_scale" in p else p["kernel"]
    kernel = np.asarray(kernel)
    return F.conv2d(x, tensor(kernel.transpose(3, 2, 0, 1)), tensor(p["bias"]), padding=kernel.shape[0] // 2)


def residual_network(p, x):
    """RealNVP's network of one residual block."""
    h = convolved(p["conv_in"], x)
    h = h + convolved(p["block0_conv2"], F.relu(convolved(p["block0_conv1"], F.relu(h))))
    return convolved(p["conv_out"], F.relu(h))


def peer_coupling(params, parity, shape):
    """normflows' actnorm and coupling with a checkerboard mask, or of halves of the channels."""
    height, width, channels = shape
    norm = nf.flows.affine.coupling.AffineConstFlow((channels, 1, 1))
    with torch.no_grad():
        norm.s.copy_(tensor(params["actnorm"]["log_scale"]).reshape(norm.s.shape))
        norm.t.copy_(tensor(params["actnorm"]["bias"]).reshape(norm.t.shape))
    scale = tensor(params["scale"])[None, :, None, None]
    size = scale.shape[1]

    def log_s(x):
        return scale * torch.tanh(residual_network(params["network"], x)[:, :size])

    def shift(x):
        return residual_network(params["network"], x)[:, size:]

    if parity is None:  # shifts and scales in turn, and the halves swapped afterwards
        turns = Of(lambda x: torch.stack([shift(x), log_s(x)], dim=2).flatten(1, 2))
        swap = nf.flows.Permute(channels, mode="swap")
        return [norm, nf.flows.AffineCouplingBlock(turns, scale_map="exp", split_mode="channel"), swap]
    rows, columns = np.indices((height, width))
    mask = np.broadcast_to((rows + columns + parity) % 2 == 0, (channels, height, width)).astype(np.float32)
    return [norm, nf.flows.MaskedAffineFlow(tensor(mask), t=Of(shift), s=Of(log_s))]


@pytest.mark.parametrize("parity", [0, 1, None])
def test_realnvps_couplings_are_those_of_normflows(parity):
    shape, n = (4, 6, 4), 5
    config = realnvp.Config(width=6, blocks=1, class_conditional=False)
    layer = realnvp.Coupling(config, 6, 0)
    x = np.random.default_rng(0).normal(size=(n, *shape)).astype(np.float32)
    shapes = jax.eval_shape(lambda key: layer.init(key, x, parity, None), jax.random.key(0))
    params = jax.device_get(normal_params(shapes["params"]))

    @jax.jit
    def ours(x):
        def total(x):
            y, log_det = layer.apply({"params": params}, x, parity, None)
            return jnp.sum(jnp.sin(y)) + jnp.sum(log_det), (y, log_det)

        gradient, (y, log_det) = jax.grad(total, has_aux=True)(x)
        return y, log_det, gradient, layer.apply({"params": params}, y, parity, None, True)

    y, log_det, gradient, (back, log_det_back) = ours(x)
    theirs = channels_first(x).requires_grad_(True)
    flows = peer_coupling(params, parity, shape)
    z, total = theirs, torch.zeros(n)
    for flow in flows:
        z, change = flow.forward(z)
        total = total + change
    (torch.sum(torch.sin(z)) + torch.sum(total)).backward()
    np.testing.assert_allclose(y, channels_last(z), rtol=0, atol=1e-5)
    np.testing.assert_allclose(log_det, total.detach().numpy(), rtol=1e-5)
    scale = float(theirs.grad.abs().max())
    np.testing.assert_allclose(gradient, channels_last(theirs.grad), rtol=0, atol=2e-5 * scale)
    for flow in reversed(flows):
        z, _ = flow.inverse(z.detach())
    np.testing.assert_allclose(back, channels_last(z), rtol=0, atol=1e-4)
    np.testing.assert_allclose(log_det_back, -log_det, rtol=1e-5)


def test_residual_blocks_are_those_of_normflows():
    """A network of the plane, of which normflows has the determinant exactly: value, determinant, inverse."""
    network, n = LipschitzNetwork((16, 16), convolutional=False), 40
    x = np.random.default_rng(1).normal(size=(n, 1, 1, 2)).astype(np.float32)
    shapes = jax.eval_shape(lambda key: network.init(key, x, None)["params"], jax.random.key(0))
    params = normal_params(shapes, gain=5.0)
    params, _ = constrain(params, start_vectors(jax.random.key(1), params, (1, 1)), 0.95, 100)

    def residual(params, x):
        return network.apply({"params": params}, x, None)

    @jax.jit
    def ours(params, x):
        y, log_det = exact_log_det(residual, params, x)
        back, done = invert(lambda x: residual(params, x), y, 1e-6, 1000)
        return y, log_det, back, done

    layers = []
    for number in range(3):
        linear = torch.nn.Linear(*params[f"kernel{number}"].shape)
        with torch.no_grad():
            linear.weight.copy_(tensor(params[f"kernel{number}"].T))
            linear.bias.copy_(tensor(params[f"bias{number}"]))
        layers.append(linear)
        if number < 2:
            swish = nf.nets.lipschitz.Swish()
            with torch.no_grad():
                swish.beta.copy_(tensor(params[f"beta{number}"]).reshape(1))
            layers.append(swish)
    block = nf.flows.Residual(torch.nn.Sequential(*layers), reverse=False, brute_force=True)
    y, log_det, back, done = ours(params, x)
    z, total = block.forward(tensor(x.reshape(n, 2)))
    np.testing.assert_allclose(np.asarray(y).reshape(n, 2), z.detach().numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(log_det, total.detach().numpy(), rtol=0, atol=1e-6)
    again, opposite = block.inverse(z.detach())
    assert np.all(done) and np.std(log_det) > 0.005
    np.testing.assert_allclose(np.asarray(back).reshape(n, 2), again.detach().numpy(), rtol=0, atol=2e-2)
    np.testing.assert_allclose(np.asarray(back), x, rtol=0, atol=1e-4)
    np.testing.assert_allclose(opposite.detach().numpy(), -total.detach().numpy(), rtol=0, atol=2e-2)


def squashed(p, x, context):
    gate = torch.sigmoid(context @ tensor(p["gate"]["kernel"]) + tensor(p["gate"]["bias"]))
    return (x @ tensor(p["main"]["kernel"]) + tensor(p["main"]["bias"])) * gate + context @ tensor(p["shift"]["kernel"])


def peer_field(params, layers, label):
    """(t, (x (B, D), log_det (B,))) to their derivatives, the divergence exactly."""

    def velocity(x, t):
        context = torch.cat([t.expand(1), label])[None]
        for number in range(layers):
            x = F.softplus(squashed(params[f"layer{number}"], x, context))
        return squashed(params["out"], x, context)

    def derivative(t, state):
        with torch.enable_grad():
            x = state[0].detach().requires_grad_(True)
            v = velocity(x, t)
            rows = [torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(x.shape[1])]
        return v.detach(), sum(rows)

    return derivative


def test_a_continuous_flow_is_that_of_torchdiffeq():
    """Latents, determinants and densities by its solver in float64, and the way back."""
    data, n, label, tolerance = data_of(1, 3, 1, 8, num_classes=2), 4, 1, 1e-9
    config = ffjord.Config(widths=(10, 10), convolutional=False, logit_alpha=1e-3)
    config = replace(config, scoring=ffjord.Scoring(probes=0, tolerance=tolerance))
    config = replace(config, sampling=ffjord.Sampling(tolerance=tolerance))
    model, flow = ffjord.make(config, data), ffjord.make_bijection(config, data)
    first = {"image": np.zeros((2, 1, 3, 1), np.uint8), "label": np.zeros(2, np.int32)}
    shapes, _ = jax.eval_shape(model.init, jax.random.key(0), first, {})
    x = np.random.default_rng(0).uniform(0.5, 7.5, (n, 1, 3, 1))
    labels = np.full(n, label, np.int32)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), normal_params(shapes, gain=2.0))

        @jax.jit
        def ours(params, x):
            y, _ = preprocess(x, 8, 1e-3)
            (z,), log_det = flow.forward(params["flow"], {}, y, labels)
            density = model.log_density(params, Context(jnp.int32(0)), None, x, {"label": labels})
            return y, z, log_det, density, flow.inverse(params["flow"], {}, (z,), labels)

        y, z, log_det, density, back = map(np.asarray, ours(params, jnp.asarray(x)))
        params = jax.tree.map(np.asarray, params["flow"])
        _, log_det_preprocess = map(np.asarray, preprocess(jnp.asarray(x), 8, 1e-3))
    log_scale, bias = params["actnorm"]["log_scale"], params["actnorm"]["bias"]
    start = (y * np.exp(log_scale) + bias).reshape(n, 3)
    one_hot = torch.eye(2, dtype=torch.float64)[label]
    derivative = peer_field(params["field"], 2, one_hot)
    options = {"rtol": tolerance, "atol": tolerance, "method": "dopri5"}
    state, times = (tensor(start), torch.zeros(n, dtype=torch.float64)), torch.tensor([0.0, 1.0], dtype=torch.float64)
    end, change = (part[-1].numpy() for part in torchdiffeq.odeint(derivative, state, times, **options))
    np.testing.assert_allclose(z.reshape(n, 3), end, rtol=0, atol=1e-6)
    np.testing.assert_allclose(log_det, change + 3 * log_scale.sum(), rtol=0, atol=1e-6)
    assert np.abs(end - start).max() > 0.1 and np.abs(change).max() > 0.1
    peer = -0.5 * np.sum(end**2, axis=1) - 1.5 * np.log(2 * np.pi) + change + 3 * log_scale.sum() + log_det_preprocess
    np.testing.assert_allclose(density, peer, rtol=0, atol=1e-6)
    state = (tensor(end), torch.zeros(n, dtype=torch.float64))
    again, _ = torchdiffeq.odeint(derivative, state, times.flip(0), **options)
    np.testing.assert_allclose(back.reshape(n, 3), (again[-1].numpy() - bias) * np.exp(-log_scale), rtol=0, atol=1e-6)
