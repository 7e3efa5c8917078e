"""Layers and losses of GANs beside plain PyTorch with the same weights: outputs and gradients, of second order too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jgen.core import keys as rng  # noqa: E402
from jgen.nn.biggan import ConditionalBatchNorm  # noqa: E402
from jgen.nn.conv import grouped_conv  # noqa: E402
from jgen.nn.resampling import upsample  # noqa: E402
from jgen.nn.stylegan2 import TAPS, EqualisedConv, minibatch_deviation, modulated_conv  # noqa: E402
from jgen.prob import adversarial  # noqa: E402

F = torch.nn.functional
draw = np.random.default_rng(0).standard_normal


def normal(*shape):
    return draw(shape).astype(np.float32)


def tensor(x, image=False):
    """A leaf; an image NHWC becomes NCHW."""
    return torch.from_numpy(np.array(x.transpose(0, 3, 1, 2) if image else x)).requires_grad_()


def kernel_of(kernel):
    """(m, n, C, O) as PyTorch's (O, C, m, n)."""
    return tensor(kernel.transpose(3, 2, 0, 1))


def close(ours, theirs, scale=1e-4):
    theirs = theirs.detach().numpy()
    theirs = theirs.transpose(0, 2, 3, 1) if theirs.ndim == 4 else theirs
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=scale * max(1.0, np.abs(theirs).max()))


def close_kernel(ours, theirs):
    close(np.asarray(ours).transpose(3, 0, 1, 2), theirs)


@pytest.mark.parametrize("demodulate", [True, False])
def test_modulated_convolution(demodulate):
    """Beside a grouped convolution that has the weights of every example."""
    x, kernel, styles, g = normal(3, 6, 5, 4), normal(3, 3, 4, 7), normal(3, 4), normal(3, 6, 5, 7)
    tx, tk, ts = tensor(x, True), kernel_of(kernel), tensor(styles)
    weights = tk[None] * ts[:, None, :, None, None]
    if demodulate:
        weights = weights * torch.rsqrt(weights.square().sum((2, 3, 4), keepdim=True) + 1e-8)
    y = F.conv2d(tx.reshape(1, -1, 6, 5), weights.reshape(-1, 4, 3, 3), padding=1, groups=3).reshape(3, 7, 6, 5)
    (y * tensor(g, True)).sum().backward()

    def loss(x, kernel, styles):
        out = modulated_conv(x, kernel, styles, demodulate)
        return jnp.sum(out * g), out

    (_, out), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(x, kernel, styles)
    close(out, y)
    close(gradients[0], tx.grad)
    close_kernel(gradients[1], tk.grad)
    close(gradients[2], ts.grad)


def test_filtered_convolutions():
    x, kernel = normal(2, 8, 6, 3), normal(3, 3, 3, 5)
    taps = torch.tensor(TAPS, dtype=torch.float32)
    window = (torch.outer(taps, taps) / 64)[None, None].repeat(3, 1, 1, 1)
    tx, tk = tensor(x, True), kernel_of(kernel)
    low = F.conv2d(F.conv2d(F.pad(tx, (2, 2, 2, 2)), window, groups=3), tk / 27**0.5, stride=2)
    variables = {"params": {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(5)}}
    close(EqualisedConv(5, down=True).apply(variables, x), low)
    close(upsample(jnp.asarray(x), TAPS), F.conv_transpose2d(tx, 4 * window, stride=2, padding=1, groups=3))


def test_grouped_convolution():
    x, kernel, g = normal(2, 5, 4, 6), normal(3, 3, 2, 9), normal(2, 5, 4, 9)
    tx, tk = tensor(x, True), kernel_of(kernel)
    y = F.conv2d(tx, tk, padding=1, groups=3)
    (y * tensor(g, True)).sum().backward()
    gradients = jax.grad(lambda x, k: jnp.sum(grouped_conv(x, k, 3) * g), (0, 1))(x, kernel)
    close(grouped_conv(jnp.asarray(x), jnp.asarray(kernel), 3), y)
    close(gradients[0], tx.grad)
    close_kernel(gradients[1], tk.grad)


def test_minibatch_deviation():
    x, g = normal(8, 3, 2, 4), normal(8, 3, 2, 5)
    tx = tensor(x, True)
    groups = tx.reshape(2, 4, 4, 3, 2)
    deviation = (groups.var(dim=1, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))
    y = torch.cat([tx, deviation.repeat_interleave(4)[:, None, None, None].expand(8, 1, 3, 2)], dim=1)
    (y * tensor(g, True)).sum().backward()
    close(minibatch_deviation(jnp.asarray(x), 4), y)
    close(jax.grad(lambda x: jnp.sum(minibatch_deviation(x, 4) * g))(x), tx.grad)


def test_conditional_batch_norm():
    h, c, g = 1.0 + 2.0 * normal(6, 3, 2, 4), normal(6, 5), normal(6, 3, 2, 4)
    layer = ConditionalBatchNorm(0.9)
    variables = layer.init(jax.random.key(0), h, c, True)
    parts = {name: torch.nn.Linear(5, 4, bias=False) for name in ("scale", "bias")}
    for name, part in parts.items():
        kernel = np.array(variables["params"][name]["kernel"])  # orthogonal: its largest singular value is 1
        part.weight.data = torch.from_numpy(kernel.T.copy())
    norm = torch.nn.BatchNorm2d(4, affine=False, momentum=0.1)
    th, tc = tensor(h, True), tensor(c)
    scale, bias = (parts[name](tc)[:, :, None, None] for name in ("scale", "bias"))
    y = norm(th) * (1 + scale) + bias
    (y * tensor(g, True)).sum().backward()

    def loss(h, c):
        out, new = layer.apply(variables, h, c, True, mutable=["batch_stats"])
        return jnp.sum(out * g), (out, new)

    (_, (out, new)), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(jnp.asarray(h), jnp.asarray(c))
    close(out, y, 1e-3)
    close(gradients[0], th.grad, 1e-3)
    close(gradients[1], tc.grad, 1e-3)
    close(new["batch_stats"]["norm"]["mean"], norm.running_mean)
    unbiased = 36 / 35  # torch's running variance is
    close(0.9 + (new["batch_stats"]["norm"]["var"] - 0.9) * unbiased, norm.running_var)


def test_relativistic_losses_with_both_penalties():
    """And their gradient in a critic's weights, which is of second order for the penalties."""
    kernel, last = 0.5 * normal(3, 3, 1, 4), normal(4, 4, 4)
    real, fake = normal(5, 4, 4, 1), normal(5, 4, 4, 1)
    keys = rng.image_keys(jax.random.key(0), jnp.arange(5))

    def losses(kernel):
        def critic(x):
            convolved = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            return jnp.sum(jnp.tanh(convolved) * last[None], axis=(1, 2, 3))

        out = critic(jnp.asarray(real)), critic(jnp.asarray(fake))
        disc = adversarial.discriminator_loss("relativistic", *out)
        penalty = adversarial.penalty("r1_r2", critic, jnp.asarray(real), jnp.asarray(fake), keys)
        gen = adversarial.generator_loss("relativistic", out[1], out[0])
        return jnp.mean(disc + 0.3 * penalty), jnp.mean(gen)

    tk, tl = kernel_of(kernel), torch.from_numpy(last.transpose(2, 0, 1).copy())

    def critic(x):
        return (torch.tanh(F.conv2d(x, tk, padding=1)) * tl).sum((1, 2, 3))

    tr, tf = tensor(real, True), tensor(fake, True)
    outputs = critic(tr), critic(tf)
    squares = [
        torch.autograd.grad(out.sum(), x, create_graph=True)[0].square().sum((1, 2, 3))
        for out, x in zip(outputs, (tr, tf))
    ]
    disc = (F.softplus(outputs[1] - outputs[0]) + 0.15 * (squares[0] + squares[1])).mean()
    gen = F.softplus(outputs[0] - outputs[1]).mean()
    for number, theirs in enumerate((disc, gen)):
        (gradient,) = torch.autograd.grad(theirs, tk, retain_graph=True)
        ours, ours_gradient = jax.jit(jax.value_and_grad(lambda k, n=number: losses(k)[n]))(jnp.asarray(kernel))
        close(ours, theirs)
        close_kernel(ours_gradient, gradient)
