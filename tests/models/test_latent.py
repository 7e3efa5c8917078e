"""Latent diffusion and its first stage: latents of unit scale, the adversary's weight, one draw with its decoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, mistake
from gaussians import keys_of
from specs import data_of
from stub_network import CTX, stub_network

from jgen.cli import import_config
from jgen.core import keys as rng
from jgen.core.model import Context, FrozenModel
from jgen.models.diffusion import edm, flow_matching, latent
from jgen.models.vae import autoencoder_kl as kl
from jgen.models.vae import patch_adversary, vae, vqgan
from jgen.models.vae.patch_adversary import Config as Adversary
from jgen.nn import first_stage
from jgen.prob.codebook import centres
from jgen.prob.pixels import to_float, to_uint8
from jgen.samplers.diffusion import Sampling

DATA = data_of(8, 8, 1, 256, 3)
NETWORK = first_stage.Config(channels=(8, 8), blocks=1, latent_channels=2, attention=False, groups=4)
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1)).astype(np.uint8)
BATCH = {"image": IMAGES, "label": np.arange(6, dtype=np.int32) % 3, "index": np.arange(6, dtype=np.int32)}
OPTIONS = Sampling(sampler="ddim", steps=4, clip=False)


def first_stage_case(**options):
    model = kl.make(kl.Config(NETWORK, **options), DATA)
    params, extra = jax.jit(model.init)(jax.random.key(0), BATCH, {})
    return model, params, extra


def latent_case(monkeypatch, objective=None, watch=None):
    """watch: a list that gains the number of images of every encoding and decoding."""
    stub = stub_network(monkeypatch)
    autoencoder, params, extra = first_stage_case()
    if watch is not None:

        def watched(name, function):
            def call(*arguments):
                watch.append((name, len(arguments[-1])))
                return function(*arguments)

            return call

        functions = {name: watched(name, function) for name, function in autoencoder.functions.items()}
        autoencoder = autoencoder._replace(functions=functions)
    objective = objective or flow_matching.Config(dequantise=False, sampling=OPTIONS)
    model = latent.make(latent.Config(objective), DATA, autoencoder=autoencoder)
    frozen = {"autoencoder": FrozenModel(params, extra)}
    return model, autoencoder, frozen, stub


@pytest.mark.slow
def test_latents_are_scaled_to_unit_mean_square(monkeypatch):
    model, autoencoder, frozen, stub = latent_case(monkeypatch)
    monkeypatch.setattr(latent, "PART", 4)  # the batch is encoded in two parts
    stub.init = lambda *args: {"params": {}}
    _, extra = model.init(jax.random.key(1), BATCH, frozen)
    ctx = Context(jnp.int32(0), None, frozen=frozen, extra=extra)
    params = frozen["autoencoder"].params
    mean = autoencoder.encode(params, CTX, keys_of(6), IMAGES, {})
    keys = rng.image_keys(jax.random.split(jax.random.key(1))[1], jnp.arange(6))  # of the draw in `init`
    z = latent.encoded(model.phases[0].loss.args[0], ctx, keys, IMAGES)
    assert z.shape == (6, 4, 4, 2) == mean.shape
    scaled = np.asarray(z) / np.asarray(extra["latent_scale"])
    assert np.mean(scaled**2) == pytest.approx(1, abs=1e-4)
    assert extra["latent_scale"].shape == ()


@pytest.mark.slow
def test_a_sample_is_the_decoded_draw_of_the_objective(monkeypatch):
    model, autoencoder, frozen, stub = latent_case(monkeypatch)
    stub.answer = lambda x, t, label: 0.3 * x + 0.1 * label.reshape(-1, 1, 1, 1)
    ctx = Context(jnp.int32(0), None, frozen=frozen, extra={"latent_scale": jnp.float32(1.7)})
    cond, params = {"label": jnp.array([0, 1, 2])}, {"unet": {}}
    z = model.sample.args[0].diffusion.sample(params, ctx, keys_of(3), cond)
    images = autoencoder.decode(frozen["autoencoder"].params, CTX, keys_of(3), 1.7 * z, {})
    np.testing.assert_array_equal(model.sample(params, ctx, keys_of(3), cond), images)
    steps = model.trajectory(params, ctx, keys_of(3), cond)
    assert steps.shape == (3, 5, 8, 8, 1)
    np.testing.assert_array_equal(steps[:, -1], images)
    assert model.log_prob is None and model.likelihood == "none"


@pytest.mark.slow
def test_as_many_images_are_in_memory_as_a_batch_of_sampling_has(monkeypatch):
    """A batch of many devices is encoded in parts, and a trajectory decoded a step at a time."""
    watch = []
    model, _, frozen, stub = latent_case(monkeypatch, watch=watch)
    stub.init = lambda *args: {"params": {}}
    stub.answer = lambda x, t, label: x
    watch.clear()
    batch = {name: np.concatenate([array] * 50) for name, array in BATCH.items()}
    jax.eval_shape(model.init, jax.random.key(0), batch, frozen)
    assert watch == [("encode_continuous", latent.PART)]
    watch.clear()
    ctx = Context(jnp.int32(0), None, frozen=frozen, extra={"latent_scale": jnp.float32(1.7)})
    cond = {"label": jnp.array([0, 1, 2])}
    jax.eval_shape(lambda: model.trajectory({"unet": {}}, ctx, keys_of(3), cond))
    assert watch == [("decode_continuous", 3)]


@pytest.mark.slow
def test_the_adversarys_weight_is_the_ratio_of_gradients():
    """Against the gradients of the two terms by the decoder's last kernel, each by itself."""
    model, params, extra = first_stage_case(adversary=Adversary(weight=0.5, channels=(8,)))
    system = model.phases[0].loss.args[0]
    x, z = to_float(IMAGES, 256), jax.random.normal(jax.random.key(2), (6, 4, 4, 2))

    def term(kernel, number):
        decoder = {**params["decoder"], "conv_out": {**params["decoder"]["conv_out"], "kernel": kernel}}
        x_hat = system.decoder.apply({"params": decoder}, z)
        scores = system.adversary.network.apply({"params": params["disc"]}, x_hat)
        return (jnp.mean(jnp.abs(x - x_hat)), -jnp.mean(scores))[number]

    kernel = params["decoder"]["conv_out"]["kernel"]
    gradient = jax.jit(jax.grad(term), static_argnums=1)
    expected = {name: gradient(kernel, number) for number, name in enumerate(("error", "score"))}
    norms = [float(jnp.sqrt(jnp.sum(array**2))) for array in expected.values()]

    @jax.jit
    def step(params, gradients):
        parts = (lambda x_hat: jnp.mean(jnp.abs(x - x_hat)), z, jnp.zeros_like(x))
        return patch_adversary.score_term(system.adversary, system.decoder, params, gradients, *parts)

    _, logged, new = step(params, extra["adversary"])
    assert logged["weight"] == 0  # there is no step before the first
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), new, expected)
    np.testing.assert_allclose(step(params, new)[1]["weight"], 0.5 * norms[0] / (norms[1] + 1e-4), rtol=1e-3)


@pytest.mark.slow
def test_the_adversary_begins_at_its_step():
    model, *_ = first_stage_case(adversary=Adversary(weight=0.5, start=3, channels=(8,)))
    active = [[phase.name or phase.trains[0] for phase in model.phases if phase.runs(step)] for step in (0, 2, 3, 9)]
    assert active == [["start"], ["start"], ["autoencoder", "disc"], ["autoencoder", "disc"]]
    without, params, _ = first_stage_case()
    assert len(without.phases) == 1 and set(params) == {"encoder", "decoder"}


@pytest.mark.slow
def test_encoded_latents_are_of_their_distribution():
    """Draws of z around the encoder's mean, with its variance; what is decoded is the image of the latents given."""
    model, params, _ = first_stage_case()
    system = model.phases[0].loss.args[0]
    x = jnp.broadcast_to(to_float(IMAGES[:1], 256), (3000, 8, 8, 1))
    mean, logvar = kl.posterior(system, params, x[:1])
    encode = model.functions["encode_continuous"]
    z = jax.jit(lambda keys: jnp.concatenate([encode(params, CTX, keys[i::30], x[:100]) for i in range(30)]))
    standard = (np.asarray(z(keys_of(3000))) - np.asarray(mean)) / np.exp(0.5 * np.asarray(logvar))
    assert np.all(np.abs(standard.mean(0)) < 5 / 3000**0.5) and np.all(
        np.abs(standard.var(0) - 1) < 5 * (2 / 3000) ** 0.5
    )
    decoded = model.functions["decode_continuous"](params, CTX, mean)
    np.testing.assert_array_equal(to_uint8(decoded, 256), model.decode(params, CTX, keys_of(1), mean, {}))


@pytest.mark.slow
def test_a_vqgans_latents_are_decoded_through_their_nearest_codes():
    network = dataclasses.replace(NETWORK, latent_channels=3)
    model = vqgan.make(vqgan.Config(network, num_codes=5, adversary=Adversary(0.5, channels=(8,))), DATA)
    params, extra = jax.jit(model.init)(jax.random.key(0), BATCH, {})
    ctx = Context(jnp.int32(0), extra=extra)
    z = np.asarray(model.functions["encode_continuous"](params, ctx, keys_of(6), to_float(IMAGES, 256)))
    vectors = np.asarray(centres(extra["codebook"]))
    nearest = ((z[..., None, :] - vectors) ** 2).sum(-1).argmin(-1)
    codes = model.encode(params, ctx, keys_of(6), IMAGES, {})
    np.testing.assert_array_equal(codes[..., 0], nearest)
    decoded = model.functions["decode_continuous"](params, ctx, z)
    np.testing.assert_array_equal(to_uint8(decoded, 256), model.decode(params, ctx, keys_of(6), codes, {}))
    assert model.codes[0].shape == (4, 4, 1) and model.codes[0].levels == 5


@pytest.mark.slow
def test_the_published_sizes():
    """KL-f8 of Stable Diffusion: 83.7 million parameters, 32x32x4 latents of 256x256 images. VQGAN of ImageNet, f16."""
    model = kl.make(kl.Config(), data_of(256, 256, 3, 256))
    batch = {"image": np.zeros((1, 256, 256, 3), np.uint8)}
    params, _ = jax.eval_shape(model.init, jax.random.key(0), batch, {})
    assert sum(x.size for x in jax.tree.leaves(params)) == 83_653_863
    assert model.phases[0].loss.args[0].latent_shape == (32, 32, 4)
    config = import_config(ROOT / "configs" / "vae" / "vqgan.py").get_config("imagenet256").model
    model = vqgan.make(config, data_of(256, 256, 3, 256))
    params, _ = jax.eval_shape(model.init, jax.random.key(0), {**batch, "image": np.zeros((8, 256, 256, 3))}, {})
    sizes = {role: sum(x.size for x in jax.tree.leaves(tree)) for role, tree in params.items()}
    assert sizes["encoder"] + sizes["decoder"] == 71_879_555  # of diffusers' VQModel, with attention at 16x16
    assert set(params["decoder"]) >= {f"level4_attention{i}" for i in range(3)} and model.codes[0].shape == (16, 16, 1)


@pytest.mark.slow
def test_bad_options_are_one_line(monkeypatch):
    model, autoencoder, *_ = latent_case(monkeypatch)
    clipped = edm.Config(sampling=dataclasses.replace(OPTIONS, clip=True))
    make = latent.make
    mistake(lambda: make(latent.Config(clipped), DATA, autoencoder=autoencoder), "clip is True", "must be False")
    mistake(lambda: model.check_sampling(dataclasses.replace(OPTIONS, clip=True)), "clip is True")
    other = vae.make(vae.Config(), DATA)
    mistake(
        lambda: make(latent.Config(edm.Config()), DATA, autoencoder=other), "autoencoder is a vae", "autoencoder_kl"
    )
    wrong = data_of(4, 4, 1, 256, 3)
    mistake(lambda: make(latent.Config(edm.Config()), wrong, autoencoder=autoencoder), "was trained on", "4")
    mistake(lambda: kl.make(kl.Config(NETWORK, kl_weight=-1.0), DATA), "kl_weight is -1.0")
    mistake(lambda: kl.make(kl.Config(NETWORK), data_of(7, 8, 1, 256)), "7x8", "divisible by 2")
    mistake(lambda: kl.make(kl.Config(NETWORK, adversary=Adversary(1.0, -1)), DATA), "adversary.start is -1")
    deep = Adversary(1.0, channels=(8, 8, 8, 8))
    mistake(lambda: kl.make(kl.Config(NETWORK, adversary=deep), DATA), "adversary.channels", "8x8", "divisible by 16")
    groups = dataclasses.replace(NETWORK, groups=3)
    mistake(lambda: kl.make(kl.Config(groups), DATA), "groups = 3")
    within = dataclasses.replace(NETWORK, attention_resolutions=(8, 2))
    mistake(lambda: kl.make(kl.Config(within), DATA), "attention_resolutions are (8, 2)", "heights 8, 4")
