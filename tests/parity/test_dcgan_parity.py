"""DCGAN against PyTorch with the same weights: outputs, statistics, losses, gradients; spectral norm; penalties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import dcgan_peer  # noqa: E402
from specs import data_of  # noqa: E402

from jgen.core import keys as rng  # noqa: E402
from jgen.core.model import Context  # noqa: E402
from jgen.models.gan.dcgan import Config, make  # noqa: E402
from jgen.nn.dcgan import Generator  # noqa: E402
from jgen.nn.spectral_norm import spectral_norm  # noqa: E402
from jgen.prob import adversarial  # noqa: E402
from jgen.prob.pixels import to_float  # noqa: E402

F = torch.nn.functional
CHANNELS, LATENT, SIZE, BATCH = (8, 16), 5, 16, 6
DATA = data_of(SIZE, SIZE, 3, 256)
LOSSES = {
    "minimax": (
        lambda r, f: (
            F.binary_cross_entropy_with_logits(r, torch.ones_like(r))
            + F.binary_cross_entropy_with_logits(f, torch.zeros_like(f))
        ),
        lambda f: -F.binary_cross_entropy_with_logits(f, torch.zeros_like(f)),
    ),
    "least_squares": (
        lambda r, f: 0.5 * F.mse_loss(r, torch.ones_like(r)) + 0.5 * F.mse_loss(f, torch.zeros_like(f)),
        lambda f: 0.5 * F.mse_loss(f, torch.ones_like(f)),
    ),
    "hinge": (lambda r, f: F.relu(1 - r).mean() + F.relu(1 + f).mean(), lambda f: -f.mean()),
}
LOSSES["non_saturating"] = (
    LOSSES["minimax"][0],
    lambda f: F.binary_cross_entropy_with_logits(f, torch.ones_like(f)),
)


def to_torch(x):
    """NHWC to a tensor NCHW."""
    return torch.from_numpy(np.array(x).transpose(0, 3, 1, 2).copy())


def from_torch(x):
    """A tensor NCHW to NHWC."""
    return x.detach().numpy().transpose(0, 2, 3, 1)


def setting(loss, **changes):
    """A model with shaken parameters and its peer, images, keys, and the latents that the losses draw from the keys."""
    model = make(Config(channels=CHANNELS, latent=LATENT, loss=loss, conditioning="none", **changes), DATA)
    draw = np.random.default_rng(0)
    batch = {"image": draw.integers(0, 256, (BATCH, SIZE, SIZE, 3)).astype(np.uint8)}
    params, extra = jax.jit(model.init)(jax.random.key(0), batch, {})
    params = jax.tree.map(lambda p: p + 0.1 * draw.standard_normal(p.shape).astype(np.float32), params)
    peers = dcgan_peer.make_peers(
        CHANNELS, LATENT, SIZE, 3, jax.device_get(params), norm=changes.get("disc_norm") != "none"
    )
    return model, params, Context(jnp.int32(0), ema=params, extra=extra), batch, peers


def close(ours, theirs, name=""):
    theirs = theirs.detach().numpy() if hasattr(theirs, "detach") else theirs
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * max(1e-2, np.abs(theirs).max()), err_msg=name)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses(loss):
    real, fake = 3 * np.random.default_rng(0).standard_normal((2, 20)).astype(np.float32)
    torch_disc_loss, torch_gen_loss = LOSSES[loss]
    ours = jnp.mean(adversarial.discriminator_loss(loss, jnp.asarray(real), jnp.asarray(fake)))
    close(ours, torch_disc_loss(torch.from_numpy(real), torch.from_numpy(fake)))
    close(jnp.mean(adversarial.generator_loss(loss, jnp.asarray(fake))), torch_gen_loss(torch.from_numpy(fake)))


@pytest.mark.parametrize("loss", ["non_saturating", "least_squares"])
def test_gradients_of_both_networks(loss):
    model, params, ctx, batch, (gen, disc) = setting(loss)
    keys = rng.image_keys(jax.random.key(1), jnp.arange(BATCH))
    torch_disc_loss, torch_gen_loss = LOSSES[loss]
    real = to_torch(to_float(batch["image"], 256))
    for number, role in enumerate(("disc", "gen")):
        grad = jax.jit(jax.value_and_grad(model.phases[number].loss, has_aux=True))
        (ours, (_, extra)), gradients = grad(params, ctx, keys, batch)
        key_z = rng.split(keys, 2)[0] if role == "disc" else keys
        fake = gen(torch.from_numpy(np.array(rng.normal(key_z, (LATENT,)))))
        network = {"disc": disc, "gen": gen}[role]
        theirs = torch_disc_loss(disc(real), disc(fake.detach())) if role == "disc" else torch_gen_loss(disc(fake))
        close(ours, theirs)
        network.zero_grad()
        theirs.backward()
        gen_gradients, disc_gradients = dcgan_peer.as_torch(**jax.device_get({**params, role: gradients[role]}))
        ours_by_name = {"gen": gen_gradients, "disc": disc_gradients}[role]
        for name, parameter in network.named_parameters():
            close(ours_by_name[name], parameter.grad, name)


def test_running_statistics_and_samples():
    """Both take 0.9 of the old and 0.1 of the batch; torch's variances are unbiased, n / (n - 1) of jgen's."""
    model, params, ctx, batch, (gen, disc) = setting("hinge")
    keys = rng.image_keys(jax.random.key(1), jnp.arange(BATCH))
    _, (_, extra) = jax.jit(model.phases[1].loss)(params, ctx, keys, batch)
    z = torch.from_numpy(np.array(rng.normal(keys, (LATENT,))))
    gen(z)
    for number, norm in enumerate(gen.norms):
        statistics = extra["gen"]["averaged"][f"norm{number}"]
        close(statistics["mean"], norm.running_mean)
        n = BATCH * (SIZE >> (len(CHANNELS) - number)) ** 2
        close(0.9 + (statistics["var"] - 0.9) * n / (n - 1), norm.running_var)
        norm.running_var.copy_(torch.from_numpy(np.array(statistics["var"])))
    ctx = ctx._replace(extra={**ctx.extra, **extra})
    ours = model.sample(params, ctx, keys, {}).astype(np.int32)
    theirs = np.round((from_torch(gen.eval()(z)) + 1) * 127.5)
    assert np.abs(ours - theirs).max() <= 1
    _, (_, extra) = jax.jit(model.phases[0].loss)(params, ctx, keys, batch)
    fake = gen.train()(torch.from_numpy(np.array(rng.normal(rng.split(keys, 2)[0], (LATENT,)))))
    for kind, x in (("real", to_torch(to_float(batch["image"], 256))), ("fake", fake)):
        disc.norms[0].running_mean.zero_()
        disc(x)
        close(extra["disc"]["norm"][kind]["norm2"]["mean"], disc.norms[0].running_mean)


def test_spectral_norm_after_the_same_power_iterations():
    """torch's iteration starts from v where jgen's starts from u: that of jgen on the transposed matrix."""
    torch.manual_seed(0)
    conv = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Conv2d(3, 8, 4, bias=False))
    plain = conv.parametrizations.weight.original
    vectors = conv.parametrizations.weight[0]
    matrix, v = plain.detach().numpy().reshape(8, -1), vectors._v.numpy().copy()
    direction = torch.randn_like(plain)
    normalised = conv.weight  # one iteration
    sigma, new_v = spectral_norm(jnp.asarray(matrix), jnp.asarray(v))
    close(plain.detach().numpy() / sigma, normalised)
    close(new_v, vectors._v)
    (normalised * direction).sum().backward()

    def along(w):
        return jnp.sum(w / spectral_norm(w, v)[0] * direction.numpy().reshape(8, -1))

    close(jax.grad(along)(jnp.asarray(matrix)), plain.grad.reshape(8, -1))


@pytest.mark.parametrize("kind", ["r1", "gradient_penalty"])
def test_penalties_and_their_gradients(kind):
    model, params, ctx, batch, (_, disc) = setting("hinge", disc_norm="none", regulariser=kind, penalty_weight=1.0)
    keys = rng.image_keys(jax.random.key(1), jnp.arange(BATCH))

    def penalty(disc_params):
        return model.phases[0].loss({**params, "disc": disc_params}, ctx, keys, batch)[1][0]["penalty"]

    ours, gradients = jax.jit(jax.value_and_grad(penalty))(params["disc"])
    x = to_torch(to_float(batch["image"], 256))
    if kind == "gradient_penalty":
        key_z, key_u = rng.split(keys, 2)
        fake, _ = Generator(CHANNELS, DATA.image, 0.9, jnp.float32).apply(
            {"params": params["gen"], "batch_stats": ctx.extra["gen"]["averaged"]},
            rng.normal(key_z, (LATENT,)),
            True,
            mutable=["batch_stats"],
        )
        u = torch.from_numpy(np.array(rng.uniform(key_u, (1, 1, 1))))
        x = u * x + (1 - u) * to_torch(fake)
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(disc(x).sum(), x, create_graph=True)
    squares = gradient.flatten(1).square().sum(1)
    theirs = (0.5 * squares if kind == "r1" else (squares.sqrt() - 1) ** 2).mean()
    close(ours, theirs)
    theirs.backward()
    ours_by_name = dcgan_peer.as_torch(params["gen"], jax.device_get(gradients))[1]
    for name, parameter in disc.named_parameters():
        close(ours_by_name[name], torch.zeros_like(parameter) if parameter.grad is None else parameter.grad, name)
