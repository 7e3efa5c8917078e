"""Denoising diffusion GANs: their steps, pairs, penalty and samples, with networks whose answers are known in place."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from specs import data_of

from jgen.core import keys as rng
from jgen.core.generate import sample_images
from jgen.core.model import Context
from jgen.errors import UserError
from jgen.models.diffusion import ddgan
from jgen.nn.unet import TINY
from jgen.prob.pixels import to_float, to_uint8

T, CLASSES, SHAPE = 4, 3, (2, 2, 1)
DATA = data_of(*SHAPE, 256, CLASSES)
LATENT = 4  # a number for each pixel
CTX = Context(jnp.int32(0))
NO_PARAMS = {"gen": {}, "disc": {}}
SMALL = ddgan.Config(
    network=dataclasses.replace(TINY, channels=(8,)),
    latent=LATENT,
    mapping_width=8,
    mapping_layers=1,
    disc_channels=(4, 8),
)


def keys_of(n):
    return rng.image_keys(jax.random.key(1), jnp.arange(n))


def batch_of(n):
    """Images whose pixels are -1 or 1 with equal probability."""
    draw = np.random.default_rng(0)
    image = (255 * draw.integers(0, 2, (n, *SHAPE))).astype(np.uint8)
    return {"image": image, "label": draw.integers(0, CLASSES, n).astype(np.int32)}


class Generator:
    """A function (x_t, z, number, label) in place of G."""

    def __init__(self, function):
        self.function = function

    def apply(self, variables, x_t, z, number, label, keys):
        return self.function(x_t, z, number, label)


class Discriminator:
    """A function (x_s, x_t, number, label) in place of D, which keeps what it was shown."""

    def __init__(self, function=lambda x_s, x_t, number, label: jnp.zeros(len(x_s))):
        self.function, self.shown = function, []

    def apply(self, variables, *inputs):
        self.shown.append(inputs)
        return self.function(*inputs)


def system_of(generator=lambda x_t, z, number, label: 0.0 * x_t, discriminator=None, steps=T):
    """A denoising diffusion GAN of two functions."""
    chain = ddgan.make_chain(ddgan.variance_preserving(0.1, 20.0), steps)
    config = dataclasses.replace(SMALL, num_timesteps=steps)
    networks = Generator(generator), discriminator or Discriminator()
    return ddgan.Ddgan(config, DATA, chain, *networks, ("label",))


def moments(steps=T):
    """alpha and sigma at the times 0 .. T by the closed form of the variance-preserving process."""
    t = np.arange(steps + 1) / steps
    integral = 0.1 * t + 0.5 * (20.0 - 0.1) * t**2
    return np.exp(-0.5 * integral), np.sqrt(1.0 - np.exp(-integral))


def assert_mean(values, expected):
    """The mean of independent values is the expected one, within five of its standard errors."""
    error = np.std(values, axis=0) / np.sqrt(len(values))
    assert np.all(np.abs(np.mean(values, axis=0) - expected) < 5 * error + 1e-5), (np.mean(values, axis=0), expected)


@pytest.mark.parametrize("number", range(1, T + 1))
def test_a_reverse_step_with_the_right_image_has_the_posteriors_mean_and_variance(number):
    """Those of x_s given x_t and x_0 from the joint normal distribution of x_s and x_t given x_0."""
    n, x_0 = 20_000, np.array([-1.0, 0.3, 0.9, 1.0]).reshape(SHAPE)
    x_t = np.array([0.5, -2.0, 1.5, 0.0]).reshape(SHAPE)
    system = system_of(lambda x_t, z, number, label: jnp.broadcast_to(jnp.asarray(x_0, jnp.float32), x_t.shape))
    many = jnp.asarray(np.broadcast_to(x_t, (n, *SHAPE)), jnp.float32)
    x_s = ddgan.reverse_step(system, NO_PARAMS, keys_of(n), many, jnp.full(n, number), {}, True)
    alpha, sigma = moments()
    covariance = alpha[number] / alpha[number - 1] * sigma[number - 1] ** 2
    mean = alpha[number - 1] * x_0 + covariance / sigma[number] ** 2 * (x_t - alpha[number] * x_0)
    variance = sigma[number - 1] ** 2 - covariance**2 / sigma[number] ** 2
    x_s = np.asarray(x_s, np.float64)
    assert_mean(x_s, mean)
    assert_mean((x_s - mean) ** 2, variance)
    if number == 1:
        np.testing.assert_allclose(x_s[:3], np.broadcast_to(x_0, (3, *SHAPE)), rtol=1e-6)


@pytest.mark.slow
def test_real_pairs_are_of_the_joint_distribution_and_both_pairs_have_one_noisy_image():
    n, batch = 40_000, batch_of(40_000)
    system = system_of(discriminator=Discriminator())
    ddgan.disc_loss(system, 0.0, NO_PARAMS, CTX, keys_of(n), batch)
    (x_s, x_t, number, label), fake = system.discriminator.shown
    for real, other in zip((x_t, number, label), fake[1:]):
        np.testing.assert_array_equal(real, other)
    np.testing.assert_array_equal(label, batch["label"])
    alpha, sigma = moments()
    for i in range(1, T + 1):
        chosen = np.asarray(number) == i
        assert_mean(chosen, 1 / T)
        s, t = (np.asarray(x, np.float64)[chosen].reshape(-1, 4) for x in (x_s, x_t))
        # Data of variance 1 keeps it; x_t is sqrt(1 - beta) x_s and noise, whatever x_s is.
        keep = alpha[i] / alpha[i - 1]
        for values, expected in ((s, 0), (t, 0), (s * s, 1), (t * t, 1), (s * t, keep)):
            assert_mean(values, expected)
        assert_mean(s[:, :1] * t[:, 1:], 0)  # pixels are independent
        x_0 = np.asarray(to_float(batch["image"], 256))[chosen].reshape(-1, 4)
        assert_mean(x_0 * s, alpha[i - 1])
        assert_mean(x_0 * t, alpha[i])
        assert_mean((s - alpha[i - 1] * x_0) ** 2, sigma[i - 1] ** 2)


def test_the_penalty_is_the_squared_gradient_in_the_less_noisy_image():
    """Of a discriminator linear in both images, with a slope of its own for each step."""
    n = 64
    slope = np.random.default_rng(1).standard_normal((T, *SHAPE)).astype(np.float32)

    def linear(x_s, x_t, number, label):
        return jnp.sum(slope[number - 1] * x_s - 3.0 * x_t, axis=(1, 2, 3))

    system = system_of(discriminator=Discriminator(linear))
    plain, _ = ddgan.disc_loss(system, 0.0, NO_PARAMS, CTX, keys_of(n), batch_of(n))
    number = np.asarray(system.discriminator.shown[0][2])
    penalised, (metrics, _) = ddgan.disc_loss(system, 2.0, NO_PARAMS, CTX, keys_of(n), batch_of(n))
    expected = np.mean(np.sum(slope[number - 1] ** 2, axis=(1, 2, 3)) / 2)
    np.testing.assert_allclose(metrics["penalty"], expected, rtol=1e-5)
    np.testing.assert_allclose(penalised - plain, 2.0 * expected, rtol=1e-5)


def test_losses_are_the_logistic_ones():
    def bright(x_s, x_t, number, label):
        return 3.0 * x_s[:, 0, 0, 0] + 0.5 * x_t[:, 0, 0, 0] + number

    system = system_of(discriminator=Discriminator(bright))
    for loss in (
        lambda: ddgan.disc_loss(system, 0.0, NO_PARAMS, CTX, keys_of(64), batch_of(64))[0],
        lambda: ddgan.gen_loss(system, NO_PARAMS, CTX, keys_of(64), batch_of(64))[0],
    ):
        system.discriminator.shown.clear()
        value = loss()
        outputs = [np.asarray(bright(*inputs), np.float64) for inputs in system.discriminator.shown]
        probability = [1 / (1 + np.exp(-out)) for out in outputs]
        expected = -np.log(probability[0]) if len(outputs) == 1 else -np.log(probability[0]) - np.log1p(-probability[1])
        np.testing.assert_allclose(value, np.mean(expected), rtol=1e-5)


@pytest.mark.slow
def test_one_step_is_a_conditional_gan():
    n, shown = 16, []

    def generator(x_t, z, number, label):
        shown.append(x_t)
        return jnp.tanh(0.3 * x_t + z.reshape(x_t.shape) + label.reshape(-1, 1, 1, 1))

    system, batch = system_of(generator, Discriminator(), steps=1), batch_of(n)
    ddgan.disc_loss(system, 0.0, NO_PARAMS, CTX, keys_of(n), batch)
    (real, x_t, number, _), (fake, *_) = system.discriminator.shown
    np.testing.assert_array_equal(real, to_float(batch["image"], 256))
    np.testing.assert_array_equal(number, np.ones(n))
    z = rng.normal(rng.split(rng.split(keys_of(n), 3)[2], 3)[0], (LATENT,))
    np.testing.assert_allclose(fake, generator(x_t, z, number, batch["label"]), atol=1e-6)
    key_start, key_steps = rng.split(keys_of(n), 2)
    z = rng.normal(rng.split(rng.fold_in(key_steps, 1), 3)[0], (LATENT,))
    expected = to_uint8(generator(rng.normal(key_start, SHAPE), z, number, batch["label"]), 256)
    images = to_uint8(ddgan.states(system, NO_PARAMS, CTX, keys_of(n), {"label": batch["label"]})[-1], 256)
    assert np.abs(np.asarray(images, int) - np.asarray(expected, int)).max() <= 1 and np.std(images) > 20


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_with_the_exact_conditional_distribution_samples_have_the_datas(steps):
    """Of data N(m, v), for which x_0 given x_t is normal, any number of steps gives N(m, v) again."""
    n, mean, variance = 20_000, 0.2, 0.15**2
    alpha, sigma = (jnp.asarray(x, jnp.float32) for x in moments(steps))

    def generator(x_t, z, number, label):
        a, s = (x[number].reshape(-1, 1, 1, 1) for x in (alpha, sigma))
        gain = a * variance / (a**2 * variance + s**2)
        return mean + gain * (x_t - a * mean) + jnp.sqrt((1 - gain * a) * variance) * z.reshape(x_t.shape)

    images = to_uint8(ddgan.states(system_of(generator, steps=steps), NO_PARAMS, CTX, keys_of(n), {})[-1], 256)
    x = np.asarray(to_float(images, 256), np.float64).reshape(n, -1)
    # The start lacks alpha_T m of the mean, which moves x_0 by at most alpha_T m; rounding adds (2 / 255)^2 / 12.
    assert np.all(np.abs(x.mean(axis=0) - mean) < 5 * np.sqrt(variance / n) + float(alpha[-1]) * mean)
    assert_mean((x - x.mean(axis=0)) ** 2 - (2 / 255) ** 2 / 12, variance)
    assert np.all(np.abs(np.corrcoef(x.T) - np.eye(4)) < 5 / np.sqrt(n))


@pytest.mark.parametrize(
    "changes,expected",
    [
        ({"r1_every": 3}, [("disc_r1", "gen"), ("disc", "gen"), ("disc", "gen"), ("disc_r1", "gen")]),
        ({"r1_every": 1}, [("disc_r1", "gen")] * 4),
        ({"r1_weight": 0.0}, [("disc", "gen")] * 4),
    ],
)
def test_the_penalty_is_in_every_nth_step(changes, expected):
    model = ddgan.make(dataclasses.replace(SMALL, **changes), DATA)
    active = [[phase for phase in model.phases if phase.runs(step)] for step in range(4)]
    assert [tuple(phase.name or phase.trains[0] for phase in phases) for phases in active] == expected
    assert [phase.trains for phase in active[0]] == [("disc",), ("gen",)] and model.averages == ("gen",)


@pytest.mark.slow
def test_the_networks_read_all_that_they_are_given_and_do_not_mix_examples():
    model = ddgan.make(SMALL, DATA)
    batch = batch_of(6)
    shapes, _ = jax.eval_shape(model.init, jax.random.key(0), batch, {})
    params = jax.tree.map(lambda x: 0.3 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), shapes)
    system = model.phases[-1].loss.args[0]
    x, y = jax.random.normal(jax.random.key(2), (2, 6, *SHAPE))
    z = jax.random.normal(jax.random.key(3), (6, LATENT))
    number, label = jnp.arange(6) % T + 1, jnp.asarray(batch["label"])

    @jax.jit
    def disc(x, y, number, label):
        return system.discriminator.apply({"params": params["disc"]}, x, y, number, label)

    @jax.jit
    def gen(x, z, number, label):
        return system.generator.apply({"params": params["gen"]}, x, z, number, label, None).reshape(len(x), -1)

    for network, inputs in ((disc, (x, y, number, label)), (gen, (x, z, number, label))):
        others = (inputs[0][::-1], inputs[1][::-1], number % T + 1, (label + 1) % CLASSES)
        output = network(*inputs)
        assert output.dtype == jnp.float32
        for place, other in enumerate(others):
            moved = network(*inputs[:place], other, *inputs[place + 1 :])
            assert np.all(np.abs(moved - output).reshape(6, -1).max(axis=1) > 1e-5), place
        alone = [jnp.where(jnp.arange(6).reshape(-1, *[1] * (a.ndim - 1)) == 2, a, b) for a, b in zip(inputs, others)]
        np.testing.assert_allclose(network(*alone)[2], output[2], atol=1e-5)
    assert np.abs(gen(10 * x, z, number, label)).max() <= 1


def test_validation_is_whether_the_discriminator_is_right_about_an_example():
    def darker(x_s, x_t, number, label):
        return x_s[:, 0, 0, 0] - 2.0 * (label - 1)

    system, batch = system_of(lambda x_t, z, number, label: 0.0 * x_t + 0.5, Discriminator(darker)), batch_of(32)
    scores = ddgan.validate(system, NO_PARAMS, CTX, keys_of(32), batch)
    real, fake = (np.asarray(darker(*inputs)) for inputs in system.discriminator.shown)
    np.testing.assert_array_equal(scores["accuracy_real"], (real > 0).astype(np.float32))
    np.testing.assert_array_equal(scores["accuracy_fake"], (fake < 0).astype(np.float32))
    assert all(0 < np.mean(score) < 1 for score in scores.values())


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"num_timesteps": 0}, "num_timesteps is 0: it must be above zero"),
        ({"r1_weight": -1.0}, "r1_weight is -1.0: it must be zero or above, and finite"),
        ({"beta_min": 30.0}, "beta_min is 30.0: it must be at most beta_max, 20.0"),
        ({"disc_channels": (4, 4, 4)}, r"images are 2x2: disc_channels \(4, 4, 4\) need sizes divisible by 4"),
        ({"network": dataclasses.replace(TINY, channels=(6,))}, "each must be divisible by groups"),
    ],
)
def test_what_it_refuses(changes, message):
    with pytest.raises(UserError, match=f"^[^\n]*{message}[^\n]*$"):
        ddgan.make(dataclasses.replace(SMALL, **changes), DATA)
    with pytest.raises(UserError, match="class_conditional is True, but the data has no labels"):
        ddgan.make(SMALL, data_of(*SHAPE, 256))


def test_options_of_other_samplers_are_refused():
    model = ddgan.make(SMALL, DATA)
    for option in ({"sampler": "ode"}, {"steps": 8}, {"guidance_scale": 2.0}):
        with pytest.raises(UserError, match=r"^unknown option '\w+': [^\n]* takes no options$"):
            sample_images(model, {}, CTX, jax.random.key(0), 2, **option)
