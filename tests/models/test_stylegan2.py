"""StyleGAN2: layers and path lengths against direct formulas, mixing, the probability of augmentation, truncation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract_cases import make_batch
from specs import data_of

from jgen.core import keys as rng
from jgen.core.generate import sample_images
from jgen.core.model import Context
from jgen.errors import UserError
from jgen.models.gan import game as gan
from jgen.models.gan import stylegan2
from jgen.nn.stylegan2 import EqualisedConv, EqualisedDense, Generator, minibatch_deviation, modulated_conv
from jgen.prob.pixels import to_uint8
from jgen.train.config import Optimiser
from jgen.train.presets import lazy_rates

DATA = data_of(4, 4, 1, 256, num_classes=3)
SMALL = stylegan2.Config(channels=(4, 4), latent=5, style=6, mapping_layers=1, group=2)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def keys_of(n, seed=1):
    return rng.image_keys(jax.random.key(seed), jnp.arange(n))


def plain_conv(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize("demodulate", [True, False])
def test_a_modulated_convolution_is_one_with_weights_of_each_example(demodulate):
    x, kernel, styles = draw(3, 5, 4, 2), draw(3, 3, 2, 6, seed=1), draw(3, 2, seed=2)
    y = modulated_conv(jnp.asarray(x), jnp.asarray(kernel), jnp.asarray(styles), demodulate)
    for i in range(3):
        weights = kernel * styles[i][None, None, :, None]
        if demodulate:
            weights = weights / np.sqrt(np.sum(weights**2, axis=(0, 1, 2), keepdims=True))
        np.testing.assert_allclose(y[i], plain_conv(x[i : i + 1], weights)[0], rtol=1e-4, atol=1e-4)


def test_equalised_layers_use_their_weights_in_units_of_the_fan_in():
    x = draw(4, 6)
    layer = EqualisedDense(3, multiplier=0.01, bias=2.0)
    variables = layer.init(jax.random.key(0), x)
    kernel, bias = (np.asarray(variables["params"][name]) for name in ("kernel", "bias"))
    assert 50 < kernel.std() < 150
    np.testing.assert_allclose(bias, 200.0, rtol=1e-6)
    np.testing.assert_allclose(layer.apply(variables, x), x @ kernel * 0.01 / np.sqrt(6) + 2.0, rtol=1e-4, atol=1e-5)
    image, layer = draw(2, 6, 4, 5), EqualisedConv(3, down=True)
    variables = layer.init(jax.random.key(0), image)
    kernel = np.asarray(variables["params"]["kernel"])
    # By hand: the filter's four taps along both axes, zeros outside, and every second place of the 3x3 convolution.
    padded = np.pad(image, ((0, 0), (3, 3), (3, 3), (0, 0)))
    taps = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
    smooth = sum(taps[i, j] * padded[:, i : i + 9, j : j + 7] for i in range(4) for j in range(4))
    wanted = np.zeros((2, 3, 2, 3), np.float32)
    for i, j in np.ndindex(3, 2):
        window = smooth[:, 2 * i + 1 : 2 * i + 4, 2 * j + 1 : 2 * j + 4]
        wanted[:, i, j] = np.einsum("bmnc,mnco->bo", window, kernel) / np.sqrt(45)
    np.testing.assert_allclose(layer.apply(variables, image), wanted, rtol=1e-4, atol=1e-4)


def test_minibatch_deviation_of_groups():
    x = draw(6, 3, 2, 4)
    for group, size in ((2, 2), (6, 6), (4, 2)):  # of six examples, groups of four would not be whole
        y = np.asarray(minibatch_deviation(jnp.asarray(x), group))
        np.testing.assert_array_equal(y[..., :4], x)
        for first in range(0, 6, size):
            expected = np.sqrt(x[first : first + size].var(axis=0) + 1e-8).mean()
            np.testing.assert_allclose(y[first : first + size, :, :, 4], expected, rtol=1e-5)


GENERATOR = Generator((4, 4), 6, 1, 0.5, DATA.image)


def started(config=SMALL, size=8):
    model = stylegan2.make(config, DATA)
    batch = make_batch(model, size)
    params, extra = jax.jit(model.init)(jax.random.key(0), batch, {})
    return model, params, Context(jnp.int32(0), ema=params, extra=extra), batch


@pytest.mark.slow
def test_mixing_gives_the_layers_from_a_random_one_on_another_w():
    model, params, ctx, _ = started()
    n, label = 2000, jax.nn.one_hot(jnp.arange(2000) % 3, 3)
    variables = {"params": params["gen"], "batch_stats": ctx.extra["gen"]["trained"]}
    inputs = (draw(n, 5), label, keys_of(n))

    @jax.jit
    def styles(variables):
        mixed = GENERATOR.apply(variables, *inputs, True, method="styles", mutable=["batch_stats"])
        return mixed, GENERATOR.apply(variables, *inputs, False, method="styles")

    (ws, new), plain = jax.device_get(styles(variables))
    assert ws.shape == (n, 4, 6) and np.ptp(plain, axis=1).max() == 0.0
    same = np.all(ws == plain, axis=2)
    np.testing.assert_array_equal(same, np.sort(same, axis=1)[:, ::-1])  # first those of the own latent
    counts = np.bincount(same.sum(axis=1), minlength=5) / n
    np.testing.assert_allclose(counts, [0, 1 / 6, 1 / 6, 1 / 6, 1 / 2], atol=4 * 0.5 / np.sqrt(n))
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.005 * plain[:, 0].mean(axis=0), rtol=1e-4, atol=1e-7)
    mixed = ws[same.sum(axis=1) < 4]
    assert np.all(mixed[:, 0] != mixed[:, 3])


@pytest.mark.slow
def test_path_lengths_are_those_of_the_jacobian():
    model, params, ctx, _ = started(dataclasses.replace(SMALL, mixing=0.0))
    game, label = model.phases[0].loss.args[0], {"label": jnp.arange(2)}
    keys, z, stats = keys_of(2), jnp.asarray(draw(2, 5)), ctx.extra["gen"]["trained"]
    lengths = jax.jit(lambda gen: stylegan2.path_lengths(game, gen, stats, keys, z, label))(params["gen"])
    key_styles, key_synthesis, key_n = rng.split(keys, 3)
    variables = {"params": params["gen"], "batch_stats": stats}
    one_hot = jax.nn.one_hot(label["label"], 3)
    ws = game.generator.apply(variables, z, one_hot, key_styles, False, method="styles")

    def image(w, i):
        return game.generator.apply(variables, w[None], key_synthesis[i : i + 1], method="synthesise")[0]

    for i in range(2):
        jacobian = jax.jit(jax.jacfwd(lambda w, i=i: image(w, i)))(ws[i])  # (4, 4, 1, layers, width)
        n = rng.normal(key_n, (4, 4, 1))[i] / 4.0
        back = np.einsum("hwc,hwcle->le", n, jacobian)
        np.testing.assert_allclose(lengths[i], np.sqrt(np.mean(np.sum(back**2, axis=1))), rtol=1e-4)


@pytest.mark.slow
def test_the_path_phase_pulls_lengths_to_their_moving_mean():
    model, params, ctx, batch = started()
    assert [phase.name for phase in model.phases] == ["", "penalty", "", "path"]
    assert [phase.runs(4) for phase in model.phases] == [True, False, True, True]
    ctx = ctx._replace(extra={**ctx.extra, "path_length": jnp.float32(2.0)})
    value, (metrics, new) = jax.jit(model.phases[3].loss)(params, ctx, keys_of(8), batch)
    game = model.phases[0].loss.args[0]
    key_z, key_path = rng.split(keys_of(8), 2)
    z, stats = rng.normal(key_z, (5,)), ctx.extra["gen"]["trained"]
    label = {"label": batch["label"]}
    lengths = jax.jit(lambda gen: stylegan2.path_lengths(game, gen, stats, key_path, z, label))(params["gen"])
    np.testing.assert_allclose(value, 2.0 * 4 * np.mean((lengths - 2.0) ** 2), rtol=1e-4)
    np.testing.assert_allclose(metrics["path_length"], np.mean(lengths), rtol=1e-4)
    np.testing.assert_allclose(new["path_length"], 0.99 * 2.0 + 0.01 * np.mean(lengths), rtol=1e-5)


def test_the_probability_of_augmentation_follows_the_signs_of_real_images():
    state = {"p": jnp.float32(0.1), "sign": jnp.float32(0.0)}
    sure, unsure = jnp.array([3.0, 1.0, 2.0, 0.5]), jnp.array([1.0, -1.0, 2.0, -3.0])
    history = []
    for real in [sure] * 8 + [unsure] * 8:
        state = stylegan2.adapt(0.6, 0.05, state, real)
        history.append(float(state["p"]))
    # The moving mean is 1 - 0.75^n of all-sure batches: above 0.6 after four, and below it after two unsure ones.
    moves = np.sign(np.diff([0.1, *history]))
    np.testing.assert_array_equal(moves, [-1, -1, 0, 0, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1])
    assert max(history) < 0.31
    for _ in range(100):
        state = stylegan2.adapt(0.6, 0.05, state, sure)
    assert state["p"] == 1.0


@pytest.mark.slow
def test_truncation_moves_samples_to_that_of_the_mean_w():
    model, params, ctx, _ = started()
    stats = {"mean": jnp.asarray(0.3 * draw(6))}
    ctx = ctx._replace(extra={**ctx.extra, "gen": {"trained": stats, "averaged": stats}})
    key, cond = jax.random.key(0), {"label": 1}
    whole, half, none = (
        sample_images(model, params, ctx, key, 8, cond=cond, truncation=psi).astype(float) for psi in (1.0, 0.5, 0.0)
    )
    z = rng.normal(rng.image_keys(key, jnp.arange(8)), (5,))
    decoded = model.decode(params, ctx, rng.image_keys(key, jnp.arange(8)), z, {"label": jnp.ones(8, int)})
    np.testing.assert_allclose(whole, decoded, atol=1)
    assert np.ptp(none, axis=0).max() <= 1 < np.ptp(whole, axis=0).max()  # without noise, at the start, all are one
    assert np.abs(half - none).mean() < 0.8 * np.abs(whole - none).mean()
    with pytest.raises(UserError, match="truncation is -0.5: it must be zero or above"):
        sample_images(model, params, ctx, key, 8, truncation=-0.5)


@pytest.mark.slow
def test_mixed_styles_are_coarse_ones_of_one_sample_and_fine_ones_of_another():
    model, params, ctx, _ = started()
    keys = [rng.image_keys(jax.random.key(seed), jnp.arange(4)) for seed in (0, 1)]
    conds = [{"label": np.array(label)} for label in ([0, 1, 2, 0], [2, 2, 1, 1])]
    generator = model.phases[0].loss.args[0].generator
    bound = generator.bind({"params": params["gen"], "batch_stats": ctx.extra["gen"]["trained"]})

    @jax.jit
    def mixtures(params):
        mix = model.functions["mix_styles"]
        return [mix(params, ctx, (keys[i], keys[j]), (conds[i], conds[j])) for i, j in ((0, 0), (0, 1))]

    alone, mixed = mixtures(params)
    np.testing.assert_allclose(alone, model.sample(params, ctx, keys[0], conds[0]).astype(int), atol=1)
    z, one_hots = [rng.normal(k, (5,)) for k in keys], [jnp.eye(3)[cond["label"]] for cond in conds]
    w = [np.asarray(bound.mapping(*pair)) for pair in zip(z, one_hots)]
    layers = bound.synthesis.layers
    ws = np.stack([w[0 if layer < layers // 2 else 1] for layer in range(layers)], axis=1)
    _, key_noise = rng.split(gan.network_keys(keys[0], 1)[0], 2)
    wanted = to_uint8(bound.synthesise(jnp.asarray(ws), key_noise), model.images.levels)
    np.testing.assert_allclose(mixed, wanted.astype(int), atol=1)
    assert np.any(mixed != alone)


def test_lazy_rates_are_those_of_the_paper():
    lazy = lazy_rates(Optimiser(learning_rate=0.0025, beta1=0.5, beta2=0.99), gen=4, disc=16, other=1)
    for role, c in (("gen", 4 / 5), ("disc", 16 / 17), ("other", 1.0)):
        options = lazy.of(role)
        rates = (options.learning_rate, options.beta1, options.beta2)
        np.testing.assert_allclose(rates, (0.0025 * c, 0.5**c, 0.99**c), rtol=1e-12)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"channels": (4, 4, 4, 4)}, "images are 4x4: channels has 3 entries, each of which halves the size"),
        ({"mixing": 1.5}, "mixing is 1.5: it must be from 0 to 1"),
        ({"group": -1}, "group is -1: it must be zero or above"),
        ({"path_every": 0}, "path_every is 0: it must be above zero"),
        ({"ada_target": 1.0}, "ada_target is 1.0: it must be at least 0 and below 1"),
        ({"sampling": stylegan2.Sampling(-1.0)}, "truncation is -1.0: .* set --model.sampling.truncation"),
    ],
)
def test_a_mistake_is_one_line(changes, message):
    with pytest.raises(UserError, match=f"^[^\n]*{message}[^\n]*$"):
        stylegan2.make(dataclasses.replace(SMALL, **changes), DATA)
