"""The priors over two levels of codes: every grid of codes enumerated, samples beside that, the chain of three runs."""

import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import pooled_chisquare
from naive_autoregressive import normal_params, sample_naively
from specs import data_of

import jgen
import sample
import train
from jgen import figures
from jgen.core import keys as rng
from jgen.core.model import Context, FrozenModel, GenerativeModel, ImageSpec
from jgen.errors import NotSupported, UserError
from jgen.experiment import make_model
from jgen.models.vae import vq_prior, vq_vae2_bottom, vq_vae2_top
from jgen.nn.code_pixelcnn import ConditioningStack, make_network
from jgen.nn.code_pixelcnn import Config as Network

DATA = data_of(2, 4, 1, 256, num_classes=2)
TOP, BOTTOM = ImageSpec(1, 2, 1, 2), ImageSpec(2, 4, 1, 2)
NETWORK = Network(6, 1, 3, attention=2, heads=2, hidden=6, embedding=4)
TOP_CONFIG, BOTTOM_CONFIG = vq_vae2_top.Config(NETWORK), vq_vae2_bottom.Config(NETWORK, conditioning_blocks=1)


def keys_of(n, seed=0):
    return rng.image_keys(jax.random.key(seed), jnp.arange(n))


def encode(params, ctx, keys, x, cond):
    return (x[:, ::2, ::2] % 100 // 20).astype(jnp.int32), (x // 100).astype(jnp.int32)


def decode(params, ctx, keys, codes, cond):
    top, bottom = codes
    return (100 * bottom + 20 * top.repeat(2, axis=1).repeat(2, axis=2)).astype(jnp.uint8)


def make_autoencoder(codes=(TOP, BOTTOM)):
    """An autoencoder whose pixels are 100 times their bottom code plus 20 times the top code of their 2x2 pixels."""
    return GenerativeModel("hundreds", DATA, None, (), encode=encode, decode=decode, codes=codes)


def all_codes():
    """Every pair of a top and a bottom grid, ordered as 10 binary digits, top first."""
    digits = np.arange(1024)[:, None] >> np.arange(10)[::-1] & 1
    return digits[:, :2].reshape(-1, 1, 2, 1), digits[:, 2:].reshape(-1, 2, 4, 1)


def random_weights(model, frozen, seed):
    batch = {"image": np.zeros((1, 2, 4, 1), np.uint8), "label": np.zeros(1, np.int32)}
    return normal_params(jax.eval_shape(model.init, jax.random.key(0), batch, frozen)[0], seed, gain=2.0)


def make_chain(class_conditional=True):
    """Both priors with random weights, and the context of the bottom one."""
    frozen = {"autoencoder": FrozenModel({}, {})}
    by_class = {"class_conditional": class_conditional}
    top = make_model(replace(TOP_CONFIG, **by_class), DATA, {"autoencoder": make_autoencoder()})
    above = FrozenModel(random_weights(top, frozen, 1), {}, frozen)
    bottom = make_model(replace(BOTTOM_CONFIG, **by_class), DATA, {"top": top})
    params = random_weights(bottom, {"top": above}, 2)
    return top, bottom, params, Context(jnp.int32(0), frozen={"top": above})


def nats(model, params, ctx, label):
    """log p of the level's codes of every pair, (4, 256) by top and bottom grid."""
    codes = all_codes()
    batch = {"image": np.asarray(decode(None, None, None, codes, {})), "label": np.full(1024, label, np.int32)}
    scores = jax.jit(model.validate)(params, ctx, keys_of(1024), batch)
    np.testing.assert_allclose(
        scores["bits_per_code"], scores["nll_codes"] / np.log(2) / (2 if "top" in model.name else 8), rtol=1e-5
    )
    return -np.asarray(scores["nll_codes"], np.float64).reshape(4, 256)


@pytest.mark.slow
@pytest.mark.parametrize("class_conditional", [True, False])
def test_the_probabilities_of_all_codes_sum_to_one_and_samples_are_as_frequent(class_conditional):
    top, bottom, params, ctx = make_chain(class_conditional)
    above = ctx.frozen["top"]
    inner = Context(jnp.int32(0), frozen=above.frozen)
    log_p = []
    for label in (0, 1):
        top_nats, bottom_nats = nats(top, above.params, inner, label), nats(bottom, params, ctx, label)
        np.testing.assert_array_equal(top_nats, top_nats[:, :1].repeat(256, 1))  # the bottom codes play no part
        np.testing.assert_allclose(np.exp(top_nats[:, 0]).sum(), 1.0, atol=1e-5)
        np.testing.assert_allclose(np.exp(bottom_nats).sum(axis=1), 1.0, atol=1e-5)  # given each top grid
        assert np.abs(bottom_nats[0] - bottom_nats[3]).max() > 0.5 and np.ptp(bottom_nats) > 1
        log_p.append((top_nats + bottom_nats).ravel())
    assert (np.abs(log_p[0] - log_p[1]).max() > 0.1) == class_conditional
    n = 4000
    cond = {"label": jnp.ones(n, jnp.int32)}
    images = jax.jit(bottom.sample)(params, ctx, keys_of(n, 3), cond)
    drawn = np.concatenate([np.asarray(x).reshape(n, -1) for x in encode(None, None, None, images, {})], axis=1)
    assert pooled_chisquare(drawn, 2, log_p[1]) > 1e-3
    if class_conditional:
        assert pooled_chisquare(drawn, 2, log_p[0]) < 1e-6  # the test can fail


@pytest.mark.slow
def test_the_cached_sampler_draws_what_the_naive_one_draws_at_each_levels_temperature():
    """By the networks over whole grids: the same images, exactly."""
    _, bottom, params, ctx = make_chain()
    n, above = 19, ctx.frozen["top"].params
    cond = {"label": jnp.arange(n, dtype=jnp.int32) % 2}
    top_network, network = make_network(NETWORK, TOP, 2), make_network(NETWORK, BOTTOM, 2, local=True)
    stack = ConditioningStack(2, 4, 6, 1, 1)

    @jax.jit
    def naive(params, above):
        key_top, key_bottom, _ = rng.split(keys_of(n), 3)
        top = sample_naively(top_network, above["prior"], key_top, cond, TOP.shape, 2, 0.5)
        given = {**cond, "local": stack.apply({"params": params["stack"]}, top)}
        codes = top, sample_naively(network, params["prior"], key_bottom, given, BOTTOM.shape, 2, 2.0)
        return decode(None, None, None, codes, {})

    options = {"temperature_top": 0.5, "temperature_bottom": 2.0}
    drawn = jax.jit(lambda params, ctx: bottom.sample(params, ctx, keys_of(n), cond, **options))(params, ctx)
    np.testing.assert_array_equal(drawn, naive(params, above))
    other = jax.jit(lambda params, ctx: bottom.sample(params, ctx, keys_of(n), cond))(params, ctx)
    assert np.any(np.asarray(drawn) != other)


@pytest.mark.slow
def test_the_loss_is_the_mean_over_codes_and_trains_the_stack():
    _, bottom, params, ctx = make_chain()
    images = np.asarray(decode(None, None, None, [x[::77] for x in all_codes()], {}))
    batch = {"image": images, "label": np.arange(len(images), dtype=np.int32) % 2}
    keys = keys_of(len(images))
    value, gradients = jax.jit(jax.value_and_grad(lambda p: bottom.phases[0].loss(p, ctx, keys, batch)[0]))(params)
    scores = jax.jit(bottom.validate)(params, ctx, keys, batch)
    assert float(value) == pytest.approx(float(scores["nll_codes"].mean()) / 8, rel=1e-5)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
    "options,words",
    [
        ({"network": replace(NETWORK, attention=3)}, "attention is 3: it must be from 0 to 2"),
        ({"network": replace(NETWORK, heads=4)}, "features is 6: it must be divisible by the 4 heads"),
        ({"network": replace(NETWORK, embedding=0)}, "embedding is 0"),
        ({"network": replace(NETWORK, output_blocks=-1)}, "output_blocks is -1"),
        ({"conditioning_blocks": -1}, "conditioning_blocks is -1"),
        (
            {"sampling": vq_vae2_bottom.Sampling(temperature_top=0.0)},
            "temperature_top is 0.0: it must be above zero and finite: set --model.sampling.temperature-top",
        ),
    ],
)
def test_bad_options_are_one_line(options, words):
    top = make_model(TOP_CONFIG, DATA, {"autoencoder": make_autoencoder()})
    with pytest.raises(UserError, match="^[^\n]*$") as caught:
        make_model(replace(BOTTOM_CONFIG, **options), DATA, {"top": top})
    assert words in str(caught.value)


def test_a_model_that_cannot_serve_is_a_mistake():
    one = make_autoencoder((BOTTOM,))
    top = make_model(TOP_CONFIG, DATA, {"autoencoder": make_autoencoder()})
    prior = make_model(vq_prior.Config(6, 1, 3, hidden=6), DATA, {"autoencoder": one})
    odd = make_model(TOP_CONFIG, DATA, {"autoencoder": make_autoencoder((TOP, ImageSpec(3, 6, 1, 2)))})
    blind = replace(BOTTOM_CONFIG, class_conditional=False)
    for config, data, frozen, message in (
        (
            TOP_CONFIG,
            DATA,
            {"autoencoder": one},
            "is a hundreds, which has 1 grid of discrete codes: it must have 2, as a",
        ),
        (TOP_CONFIG, data_of(2, 4, 1, 17, 2), {"autoencoder": make_autoencoder()}, "frozen.autoencoder was trained on"),
        (
            BOTTOM_CONFIG,
            DATA,
            {"top": prior},
            "frozen.top is a vq_prior, which provides no sample_codes: it must be a vq_",
        ),
        (BOTTOM_CONFIG, DATA, {"top": make_autoencoder()}, "frozen.top is a hundreds, which provides no sample_codes"),
        (BOTTOM_CONFIG, DATA, {"top": odd}, "1x2 top and 3x6 bottom codes: the bottom's sizes must be the top's times"),
        (BOTTOM_CONFIG, data_of(2, 4, 1, 17, 2), {"top": top}, "frozen.top was trained on"),
        (BOTTOM_CONFIG, DATA, {"top": top, "autoencoder": one}, "frozen has 'autoencoder': this system takes top"),
        (blind, DATA, {"top": top}, "class_conditional is False, but the top, vq_vae2_top, needs the class"),
    ):
        with pytest.raises(UserError, match=message):
            make_model(config, data, frozen)


@pytest.mark.slow
def test_three_runs_make_images_and_a_changed_autoencoder_is_noticed(cache, tmp_path):
    quick = ["--train.validate-every", "0", "--train.sample-every", "0", "--train.steps"]
    runs = [tmp_path / name for name in ("first", "second", "third")]
    first, second, third = map(str, runs)

    def fit(system, run, steps, *frozen):
        assert train.command([f"configs/vae/{system}.py:tiny", "--workdir", run, *quick, str(steps), *frozen]) == 0

    below, above = ("--frozen.autoencoder", first), ("--frozen.top", second)
    with pytest.raises(UserError, match="there is no run at .*second: train the top before"):
        fit("vq_vae2_bottom", third, 1, *above)
    fit("vq_vae2", first, 1)
    fit("vq_vae2_top", second, 1, *below)
    fit("vq_vae2_bottom", third, 1, *above)
    with pytest.raises(
        UserError, match="frozen.top is a vq_vae2, which provides no sample_codes: it must be a vq_vae2_top"
    ):
        fit("vq_vae2_bottom", str(tmp_path / "other"), 1, "--frozen.top", first)

    gen, autoencoder = jgen.load(third), jgen.load(first)
    images = gen.sample(jax.random.key(0), 4, label=3, temperature_top=0.9)
    assert images.shape == (4, 8, 8, 1) and images.dtype == np.uint8
    with pytest.raises(UserError, match="temperature_bottom is 0.0: it must be above zero"):
        gen.sample(jax.random.key(0), 4, label=3, temperature_bottom=0.0)
    codes = autoencoder.encode(jax.random.key(0), images)
    for a, b in zip(codes, jgen.load(second).encode(jax.random.key(0), images, label=3)):
        np.testing.assert_array_equal(a, b)
    grid = str(tmp_path / "x.png")
    assert figures.command([first, "--rows", "1", "--columns", "2", "--out", grid]) == 0
    with pytest.raises(
        NotSupported, match="vq_vae2_top cannot sample: top codes alone are no image: train .*bottom.py"
    ):
        sample.command([second, "--out", grid])
    with pytest.raises(NotSupported, match="vq_vae2 cannot sample: it has no distribution of codes"):
        autoencoder.sample(jax.random.key(0), 4)

    # The autoencoder is trained further: both priors take its older checkpoint, as long as that is there.
    fit("vq_vae2", first, 2)
    again = jgen.load(third)
    jax.tree.map(np.testing.assert_array_equal, (again.params, again.ctx.frozen), (gen.params, gen.ctx.frozen))
    shutil.rmtree(runs[0] / "checkpoints" / "1")
    for run in (second, third):
        with pytest.raises(UserError, match="frozen autoencoder has changed since .*second was trained on it"):
            jgen.load(run)
