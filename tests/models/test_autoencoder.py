"""Autoencoders against PCA, transposed weights, and losses and penalties computed by hand."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
import scipy.special
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from specs import data_of

import jgen
import sample
import train
from jgen.core import keys as rng
from jgen.core.model import Context
from jgen.errors import NotSupported, UserError
from jgen.experiment import make_model
from jgen.models.vae import autoencoder

DIGITS = data_of(8, 8, 1, 17)
LINEAR = autoencoder.Config(network="dense", widths=(), blocks=0, latent=4)
DEEP = replace(LINEAR, widths=(24, 12), latent=6)
KEY = jax.random.key(0)


def digits(num=1797):
    return load_digits().images[:num].astype(np.uint8)[..., None]


def keys_of(n, seed=0):
    return rng.image_keys(jax.random.key(seed), jnp.arange(n))


def start(config, images=None, data=DIGITS):
    """A model with its first weights, those that start at zero made different, and its extra."""
    model = make_model(config, data)
    params, extra = jax.jit(model.init)(KEY, {"image": digits(32) if images is None else images}, {})
    params = jax.tree.map(lambda x: x + 0.05 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params)
    return model, params, extra


def loss_of(model, params, extra, images, keys=None):
    """(loss, metrics, new extra)."""
    keys = keys_of(len(images)) if keys is None else keys
    ctx = Context(jnp.int32(0), extra=extra)
    value, (metrics, new) = jax.jit(model.phases[0].loss)(params, ctx, keys, {"image": images})
    return value, metrics, new


def fit(config, images, steps, learning_rate=1e-2):
    """The weights after some steps of Adam on all images, with a learning rate that falls to zero."""
    model = make_model(config, DIGITS)
    params, extra = jax.jit(model.init)(KEY, {"image": images}, {})
    optimiser = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    @jax.jit
    def run(params, extra):
        def step(carry, number):
            params, extra, opt = carry
            keys = rng.fold_in(keys_of(len(images)), number)

            def value(params):
                loss, _, new = loss_of(model, params, extra, images, keys)
                return loss, new

            gradients, new = jax.grad(value, has_aux=True)(params)
            updates, opt = optimiser.update(gradients, opt)
            return (optax.apply_updates(params, updates), {**extra, **new}, opt), None

        carry, _ = jax.lax.scan(step, (params, extra, optimiser.init(params)), jnp.arange(steps))
        return carry[:2]

    return (model, *run(params, extra))


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_the_linear_autoencoder_spans_the_principal_components(tied):
    """The largest principal angle is below 1 degree, and the error is that of PCA, the best of any linear model."""
    images = digits()
    model, params, _ = fit(replace(LINEAR, tied=tied), images, 1500, learning_rate=3e-2)
    x = images.reshape(len(images), -1) / 16.0
    pca = PCA(LINEAR.latent).fit(x)
    decoder = params["encoder"]["out"]["kernel"].T if tied else params["decoder"]["out"]["kernel"]
    angles = np.degrees(scipy.linalg.subspace_angles(np.asarray(decoder, np.float64).T, pca.components_.T))
    assert angles.max() < 1.0
    best = np.mean((pca.inverse_transform(pca.transform(x)) - x) ** 2)
    mse = np.mean(model.validate(params, Context(jnp.int32(0)), keys_of(len(x)), {"image": images})["mse"])
    assert best * (1 - 1e-4) < mse < best * (1 + 1e-3)


@pytest.mark.slow
def test_tied_weights_are_the_encoder_s_transposed():
    """The network's output by hand, and a gradient that is the sum of the encoder's and the decoder's."""
    config = replace(DEEP, tied=True)
    model, params, _ = start(config)
    free_model = make_model(replace(config, tied=False), DIGITS)
    assert sorted(params["decoder"]) == ["bias0", "bias1", "bias2"]  # no weights of its own

    def untied(enc, dec):
        kernels = [dec["layers"]["dense0"]["kernel"], dec["layers"]["dense1"]["kernel"], dec["out"]["kernel"]]
        bias = params["decoder"]
        layers = {f"dense{i}": {"kernel": kernels[i], "bias": bias[f"bias{2 - i}"]} for i in range(2)}
        return {"encoder": enc, "decoder": {"layers": layers, "out": {"kernel": kernels[2], "bias": bias["bias0"]}}}

    enc = params["encoder"]
    transposed = {
        "layers": {
            "dense0": {"kernel": enc["out"]["kernel"].T},
            "dense1": {"kernel": enc["layers"]["dense1"]["kernel"].T},
        },
        "out": {"kernel": enc["layers"]["dense0"]["kernel"].T},
    }
    images = digits(16)

    def free_loss(enc, dec):
        return loss_of(free_model, untied(enc, dec), {}, images)[0]

    def tied_loss(enc):
        return loss_of(model, {**params, "encoder": enc}, {}, images)[0]

    value, of_tied = jax.jit(jax.value_and_grad(tied_loss))(enc)
    wanted, (of_enc, of_dec) = jax.jit(jax.value_and_grad(free_loss, argnums=(0, 1)))(enc, transposed)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    pairs = [(("layers", "dense0"), ("out",)), (("layers", "dense1"), ("layers", "dense1"))]
    for path, mirrored in [*pairs, (("out",), ("layers", "dense0"))]:
        one, other, both = (
            functools.reduce(lambda tree, name: tree[name], where, tree)["kernel"]
            for where, tree in ((path, of_enc), (mirrored, of_dec), (path, of_tied))
        )
        np.testing.assert_allclose(both, one + other.T, rtol=1e-4, atol=1e-5)


def test_corruptions_have_their_statistics():
    n, x = 400, jnp.full((400, 8, 8, 3), 0.7)
    gaussian = replace(LINEAR, corruption="gaussian", corruption_level=0.25)
    noise = np.asarray(autoencoder.corrupt(gaussian, keys_of(n), x) - x)
    assert abs(noise.mean()) < 5 * 0.25 / np.sqrt(noise.size)
    assert abs(noise.std() - 0.25) < 5 * 0.25 / np.sqrt(2 * noise.size)
    masking = replace(LINEAR, corruption="masking", corruption_level=0.3)
    masked = np.asarray(autoencoder.corrupt(masking, keys_of(n), x))
    zero = masked == 0
    assert np.all(masked[~zero] == np.float32(0.7)) and np.all(zero == zero[..., :1])  # a pixel with all its channels
    pixels = zero[..., 0]
    assert abs(pixels.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / pixels.size)
    for config, corrupted in ((gaussian, noise + x), (masking, masked)):  # a draw is its example's
        part = autoencoder.corrupt(config, keys_of(n)[7:9], x[7:9])
        np.testing.assert_allclose(part, corrupted[7:9], atol=1e-6)
    np.testing.assert_array_equal(autoencoder.corrupt(LINEAR, keys_of(n), x), x)


@pytest.mark.slow
@pytest.mark.parametrize("corruption", ["gaussian", "masking"])
def test_denoising_reads_the_corrupted_image_and_is_scored_with_the_clean_one(corruption):
    config = replace(DEEP, corruption=corruption, corruption_level=0.4)
    model, params, _ = start(config)
    plain = make_model(DEEP, DIGITS)
    images, keys = digits(16), keys_of(16, 3)
    x = images / np.float32(16)
    corrupted = np.asarray(autoencoder.corrupt(config, keys, jnp.asarray(x)))
    # The same network without corruption, at unrounded inputs.
    ae = model.encode.args[0]
    x_hat = np.asarray(autoencoder.reconstruction(ae, params, jnp.asarray(corrupted)))
    value, metrics, _ = loss_of(model, params, {}, images, keys)
    np.testing.assert_allclose(value, np.mean(np.sum((x_hat - x) ** 2, axis=(1, 2, 3))), rtol=1e-5)
    np.testing.assert_allclose(metrics["mse"], np.mean((x_hat - x) ** 2), rtol=1e-5)
    scores = model.validate(params, Context(jnp.int32(0)), keys, {"image": images})
    np.testing.assert_allclose(scores["denoising_mse"], np.mean((x_hat - x) ** 2, axis=(1, 2, 3)), rtol=1e-5)
    clean = plain.validate(params, Context(jnp.int32(0)), keys, {"image": images})
    np.testing.assert_allclose(scores["mse"], clean["mse"], rtol=1e-6)
    np.testing.assert_array_equal(
        *(m.encode(params, Context(0), keys, images, {}) for m in (model, plain))  # outside of training nothing is lost
    )


@pytest.mark.slow
def test_denoising_recovers_more_than_a_plain_autoencoder():
    """Trained alike and given noisy images, the one that was trained with noise is nearer to the clean ones."""
    plain, images, errors = replace(DEEP, widths=(64,), latent=32), digits(600), []
    noisy = replace(plain, corruption="gaussian", corruption_level=0.4)
    for config in (plain, noisy):
        _, params, _ = fit(config, images, 300)
        held_out = {"image": digits()[1000:1400]}
        scores = make_model(noisy, DIGITS).validate(params, Context(jnp.int32(0)), keys_of(400, 9), held_out)
        errors.append(float(np.mean(scores["denoising_mse"])))
    assert errors[1] < 0.6 * errors[0]


def test_the_cross_entropy_by_hand():
    data = data_of(8, 8, 1, 2)
    model, params, _ = start(replace(DEEP, loss="cross_entropy"), digits(32) // 9, data)
    images = digits(16) // 9
    x, ae = images / np.float64(1), model.encode.args[0]
    z = model.encode(params, Context(0), keys_of(16), images, {})
    p = scipy.special.expit(np.asarray(autoencoder.output(ae, params, z), np.float64))
    wanted = -np.mean(np.sum(x * np.log(p) + (1 - x) * np.log1p(-p), axis=(1, 2, 3)))
    np.testing.assert_allclose(loss_of(model, params, {}, images)[0], wanted, rtol=1e-5)
    np.testing.assert_array_equal(model.decode(params, Context(0), keys_of(16), z, {}), p > 0.5)


def test_the_l1_penalty_by_hand():
    config = replace(DEEP, activation="relu", sparsity="l1", sparsity_weight=0.7)
    model, params, _ = start(config)
    images = digits(16)
    plain = loss_of(make_model(replace(config, sparsity="none"), DIGITS), params, {}, images)[0]
    z = np.asarray(model.encode(params, Context(0), keys_of(16), images, {}))
    value, metrics, _ = loss_of(model, params, {}, images)
    np.testing.assert_allclose(value - plain, 0.7 * np.mean(np.sum(np.abs(z), axis=1)), rtol=1e-4)
    np.testing.assert_allclose(metrics["active"], np.mean(np.abs(z) > 0.1), rtol=1e-6)


@pytest.mark.slow
def test_the_kl_penalty_is_the_divergence_of_mean_activations():
    """Its value by SciPy; its gradient by autodiff of the divergence itself, at the mean of the examples."""
    target = 0.05
    z = jax.random.uniform(KEY, (64, 5), minval=0.02, maxval=0.9)
    mean = jnp.mean(z, axis=0)

    def divergence(z):
        a = jnp.mean(z, axis=0)
        return jnp.sum(target * jnp.log(target / a) + (1 - target) * jnp.log((1 - target) / (1 - a)))

    def penalty(z):
        return jnp.mean(autoencoder.kl_penalty(z, mean, target))

    by_scipy = scipy.special.rel_entr(target, mean) + scipy.special.rel_entr(1 - target, 1 - mean)
    np.testing.assert_allclose(penalty(z), by_scipy.sum(), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(penalty)(z), jax.grad(divergence)(z), rtol=1e-5)
    np.testing.assert_allclose(autoencoder.kl_penalty(z, jnp.full(5, target), target), np.zeros(64), atol=1e-6)


def test_mean_activations_are_averages_over_steps():
    config = replace(LINEAR, activation="sigmoid", sparsity="kl")
    model, params, extra = start(config)
    first, second = digits(32), digits(64)[32:]
    z = [np.asarray(model.encode(params, Context(0), keys_of(32), x, {})) for x in (first, second)]
    new = loss_of(model, params, {"activation": z[0].mean(0)}, second)[2]
    np.testing.assert_allclose(new["activation"], 0.9 * z[0].mean(0) + 0.1 * z[1].mean(0), rtol=1e-5)
    assert extra["activation"].shape == (4,) and np.all((extra["activation"] > 0) & (extra["activation"] < 1))


@pytest.mark.slow
def test_penalties_make_codes_sparse():
    images = digits(300)
    wide = replace(LINEAR, latent=32, tied=True, activation="relu")
    shares = []
    for weight in (0.0, 0.5):
        model, params, _ = fit(replace(wide, sparsity="l1", sparsity_weight=weight), images, 200)
        shares.append(float(np.mean(model.encode(params, Context(0), keys_of(300), images, {}) > 0.1)))
    assert shares[1] < 0.6 * shares[0]
    kl = replace(wide, activation="sigmoid", sparsity="kl", sparsity_weight=1.0, sparsity_target=0.1)
    model, params, _ = fit(kl, images, 400)
    mean = np.mean(model.encode(params, Context(0), keys_of(300), images, {}), axis=0)
    assert abs(mean.mean() - 0.1) < 0.03


@pytest.fixture(scope="module")
def run(cache, tmp_path_factory):
    """An autoencoder of 8x8 digits after two steps."""
    folder = tmp_path_factory.mktemp("runs") / "autoencoder-tiny"
    quick = ["--train.steps", "2", "--train.validate-every", "0"]
    train.command(["configs/vae/autoencoder.py:tiny", *quick, "--workdir", str(folder)])
    return folder


@pytest.mark.slow
def test_a_run_without_a_density_says_why_it_does_not_sample(run, tmp_path):
    words = "autoencoder cannot sample: it has no distribution of codes, and random codes need not decode to realistic"
    gen = jgen.load(run)
    with pytest.raises(
        NotSupported, match=f"^{words}[^\n]*latent_density.py; it can encode, decode, reconstruct[^\n]*$"
    ):
        gen.sample(KEY, 4)
    with pytest.raises(NotSupported, match=f"^{words}"):
        sample.command([str(run), "--num", "4", "--out", str(tmp_path / "x.png")])
    with pytest.raises(NotSupported, match="^autoencoder cannot log_prob: it can encode"):
        gen.log_prob(KEY, np.zeros((1, 8, 8, 1), np.uint8))


@pytest.mark.slow
def test_codes_are_floats_and_reconstruct_and_interpolate(run):
    gen = jgen.load(run)
    z = gen.encode(KEY, digits(6))
    assert z.dtype == np.float32 and z.shape == (6, 4)
    made = gen.reconstruct(KEY, digits(6))
    assert made.dtype == np.uint8 and made.max() < 17
    way = gen.interpolate(KEY, digits(6)[:3], digits(6)[3:], 5)
    np.testing.assert_array_equal(way[:, 0], made[:3])
    np.testing.assert_array_equal(way[:, -1], made[3:])
    with pytest.raises(UserError, match=r"latents have shape \(n, 3\): they must be \(n, 4\)"):
        gen.decode(KEY, np.zeros((2, 3), np.float32))


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"latent": 0}, "latent is 0"),
        ({"network": "conv", "widths": (8, 8, 8, 8)}, "images are 8x8"),
        ({"network": "conv", "widths": (8,), "tied": True}, "tied is True: the network must be dense"),
        ({"widths": (8,), "blocks": 2, "tied": True}, "tied is True: blocks must be 0, it is 2"),
        ({"hidden": (8,)}, "hidden is (8,): it is for conv"),
        ({"corruption": "masking", "corruption_level": 1.0}, "corruption_level is 1.0: it must be below 1"),
        ({"corruption": "gaussian", "corruption_level": 0.0}, "corruption_level is 0.0: it must be above zero"),
        ({"sparsity": "kl"}, "sparsity is kl: activation must be sigmoid, it is none"),
        ({"sparsity": "kl", "activation": "sigmoid", "sparsity_target": 1.0}, "sparsity_target is 1.0"),
        ({"sparsity": "l1", "sparsity_weight": -1.0}, "sparsity_weight is -1.0"),
    ],
)
def test_configurations_that_no_autoencoder_has(changes, words):
    with pytest.raises(UserError) as caught:
        make_model(replace(LINEAR, **changes), DIGITS)
    assert words in str(caught.value) and "\n" not in str(caught.value)
