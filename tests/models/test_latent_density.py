"""The mixture over codes against scikit-learn's, SciPy's densities and closed forms; what it can depend on."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from specs import data_of

from jgen.core import keys as rng
from jgen.core.model import Context, FrozenModel, GenerativeModel, ImageSpec
from jgen.errors import UserError
from jgen.experiment import make_model
from jgen.models.vae import autoencoder, latent_density, vae
from jgen.prob import gaussian_mixture

DIGITS = data_of(8, 8, 1, 17, num_classes=10)
DIM = 6
FULL = gaussian_mixture.full()
LINEAR = autoencoder.Config(network="dense", widths=(), blocks=0, latent=DIM)
CONFIG = latent_density.Config(components=5, power=0.0, covariance_floor=1e-6, class_conditional=False)


def keys_of(n, seed=0):
    return rng.image_keys(jax.random.key(seed), jnp.arange(n))


def batch_of(start=0, stop=1797):
    digits = load_digits()
    image = digits.images[start:stop].astype(np.uint8)[..., None]
    return {"image": image, "label": digits.target[start:stop].astype(np.int32)}


def principal_components():
    """A frozen linear autoencoder whose codes are the digits' first principal components, and the codes."""
    batch = batch_of()
    x = batch["image"].reshape(-1, 64) / 8.0 - 1.0
    pca = PCA(DIM).fit(x)
    W, b = pca.components_.astype(np.float32), pca.mean_.astype(np.float32)
    params = {
        "encoder": {"layers": {}, "out": {"kernel": W.T, "bias": -b @ W.T}},
        "decoder": {"layers": {}, "out": {"kernel": W, "bias": b}},
    }
    return {"autoencoder": FrozenModel(params, {})}, pca.transform(x)


def start(config, batch, seed=0):
    """The model, its first extra and the frozen autoencoder."""
    model = latent_density.make(config, DIGITS, autoencoder=autoencoder.make(LINEAR, DIGITS))
    frozen, _ = principal_components()
    params, extra = jax.jit(model.init)(jax.random.key(seed), batch, frozen)
    assert params == {}
    return model, extra, frozen


def step_of(model, frozen):
    """(extra, step, batch) -> (new extra, mean log p of the codes before the step)."""

    @jax.jit
    def step(extra, number, batch):
        ctx = Context(number, jax.random.key(0), extra=extra, frozen=frozen)
        value, (_, new) = model.phases[0].loss({}, ctx, keys_of(batch["image"].shape[0]), batch)
        return {**extra, **new}, -value

    return step


def in_codes(extra, floor):
    """Weights (H, K), means (K, D) and covariances (K, D, D) in the autoencoder's units, float64."""
    weights, means, factors = map(np.float64, FULL.mixture_of(extra["mixture"], floor))
    mean, std = (np.float64(extra["units"][name]) for name in ("mean", "std"))
    factors = factors * std[None, :, None]
    return weights, means * std + mean, factors @ factors.transpose(0, 2, 1)


def test_one_component_has_the_mean_and_the_covariance_of_the_codes():
    batch, z = batch_of(), principal_components()[1]
    model, extra, frozen = start(replace(CONFIG, components=1), batch)
    extra, _ = step_of(model, frozen)(extra, 0, batch)
    weights, means, covariances = in_codes(extra, 0.0)
    np.testing.assert_allclose(weights, [[1.0]], rtol=1e-6)
    np.testing.assert_allclose(means[0], z.mean(0), atol=1e-4)
    wanted = np.cov(z.T, bias=True)
    np.testing.assert_allclose(covariances[0], wanted, atol=1e-4 * wanted.max())


def test_an_iteration_is_that_of_scikit_learn():
    """EM on one batch from the same start: weights, means and covariances."""
    batch, z = batch_of(), principal_components()[1]
    model, extra, frozen = start(CONFIG, batch)
    step = step_of(model, frozen)
    weights, means, covariances = in_codes(extra, CONFIG.covariance_floor)
    peer = GaussianMixture(
        CONFIG.components,
        weights_init=weights[0] / weights.sum(),
        means_init=means,
        precisions_init=np.linalg.inv(covariances),
        reg_covar=0.0,
        max_iter=3,
        tol=0.0,
    )
    with pytest.warns(UserWarning, match="did not converge"):
        peer.fit(z)
    for _ in range(3):
        extra, _ = step(extra, 0, batch)
    weights, means, covariances = in_codes(extra, 0.0)
    np.testing.assert_allclose(weights[0], peer.weights_, atol=2e-4)
    np.testing.assert_allclose(means, peer.means_, atol=5e-3)
    np.testing.assert_allclose(covariances, peer.covariances_, atol=1e-2)


def test_em_on_all_codes_never_lowers_their_density():
    batch = batch_of()
    model, extra, frozen = start(replace(CONFIG, components=8), batch)
    step, values = step_of(model, frozen), []
    for _ in range(40):
        extra, log_p = step(extra, 0, batch)
        values.append(float(log_p))
    assert values[-1] > values[0] + 0.5 and np.all(np.diff(values) > -1e-4)


@pytest.mark.slow
def test_stepwise_em_on_batches_reaches_the_density_of_scikit_learn():
    """Mean log p of the codes within 0.1 nats of the best of five fits of scikit-learn, to all codes at once."""
    images, z = batch_of(), principal_components()[1]
    config = replace(CONFIG, components=10, power=0.6)
    order = np.random.default_rng(0).permutation(1792)

    def rows(number, size=256):
        part = order[(number % 7) * size : (number % 7 + 1) * size]
        return {name: array[part] for name, array in images.items()}

    model, extra, frozen = start(config, rows(0))
    step = step_of(model, frozen)
    for number in range(210):  # thirty passes
        extra, _ = step(extra, number, rows(number))
    log_p = -step_validation(model, extra, frozen, images)
    peer = GaussianMixture(10, n_init=5, random_state=0, reg_covar=1e-6).fit(z).score(z)
    assert log_p.mean() > peer - 0.1


def step_validation(model, extra, frozen, batch):
    ctx = Context(jnp.int32(0), extra=extra, frozen=frozen)
    return np.asarray(model.validate({}, ctx, keys_of(len(batch["image"])), batch)["nll_codes"])


@pytest.mark.slow
def test_the_density_is_that_of_scipy_with_weights_by_class():
    batch = batch_of(0, 300)
    config = replace(CONFIG, class_conditional=True)
    model, extra, frozen = start(config, batch)
    step = step_of(model, frozen)
    for _ in range(5):
        extra, _ = step(extra, 0, batch)
    weights, means, covariances = in_codes(extra, config.covariance_floor)
    np.testing.assert_allclose(weights.sum(axis=1), np.ones(10), rtol=1e-5)
    z = principal_components()[1][:300]
    normal = [scipy.stats.multivariate_normal(mean, cov).pdf(z) for mean, cov in zip(means, covariances)]
    wanted = -np.log(np.sum(weights[batch["label"]] * np.stack(normal, axis=1), axis=1))
    np.testing.assert_allclose(step_validation(model, extra, frozen, batch), wanted, rtol=1e-3, atol=1e-3)


def test_sampled_codes_have_the_moments_of_the_mixture():
    gen = np.random.default_rng(0)
    weights = np.array([[0.2, 0.8], [1.0, 0.0]], np.float32)
    means = np.array([[1.0, -1.0], [-2.0, 3.0]], np.float32)
    factors = np.tril(gen.uniform(0.3, 1.0, (2, 2, 2))).astype(np.float32)
    mixture = gaussian_mixture.Mixture(*map(jnp.asarray, (weights, means, factors)))
    n = 20_000
    draw = jax.jit(lambda row, t: gaussian_mixture.sample(FULL, mixture, keys_of(n), jnp.full(n, row), t))
    for row in range(2):
        z, w = np.asarray(draw(row, 1.0)), weights[row]
        covariances = factors @ factors.transpose(0, 2, 1)
        mean = w @ means
        between = np.einsum("k,ki,kj->ij", w, means - mean, means - mean)
        wanted = np.einsum("k,kij->ij", w, covariances) + between
        assert np.all(np.abs(z.mean(0) - mean) < 5 * np.sqrt(np.diag(wanted) / n))
        np.testing.assert_allclose(np.cov(z.T), wanted, atol=0.12)
    cold = np.asarray(draw(1, 0.01))
    np.testing.assert_allclose(cold, np.broadcast_to(means[0], cold.shape), atol=0.1)


@pytest.mark.slow
def test_samples_are_decoded_codes_of_the_class_that_was_asked_for():
    """The linear autoencoder encodes a sample as the codes that it was decoded from, up to the rounding of pixels."""
    batch = batch_of()
    model, extra, frozen = start(replace(CONFIG, components=30, class_conditional=True, power=0.6), batch)
    step = step_of(model, frozen)
    for number in range(60):
        extra, _ = step(extra, number, batch)
    ctx = Context(jnp.int32(0), jax.random.key(1), extra=extra, frozen=frozen)
    label = np.arange(500, dtype=np.int32) % 10
    images = np.asarray(jax.jit(lambda cond: model.sample({}, ctx, keys_of(500), cond))({"label": label}))
    assert images.dtype == np.uint8 and images.shape == (500, 8, 8, 1) and images.max() <= 16
    scores = np.stack(
        [
            step_validation(model, extra, frozen, {"image": images, "label": np.full(500, each, np.int32)})
            for each in range(10)
        ]
    )
    assert np.mean(np.argmin(scores, axis=0) == label) > 0.8


def test_a_dimension_that_does_not_vary_is_no_obstacle():
    """All images alike in their codes: numbers stay finite."""
    batch = {name: array[:1].repeat(16, axis=0) for name, array in batch_of(0, 1).items()}
    model, extra, frozen = start(replace(CONFIG, covariance_floor=1e-3, components=20), batch)
    step = step_of(model, frozen)
    for number in range(5):
        extra, log_p = step(extra, number, batch)
        assert np.isfinite(log_p)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(extra))


@pytest.mark.slow
def test_it_stands_on_a_conditional_vae_too():
    config = vae.Config(network="dense", widths=(), blocks=0, latent=3, class_conditional=True)
    below = make_model(config, DIGITS)
    batch = batch_of(0, 20)
    frozen = {"autoencoder": FrozenModel(*below.init(jax.random.key(0), batch, {}))}
    model = make_model(replace(CONFIG, class_conditional=True), DIGITS, {"autoencoder": below})
    _, extra = model.init(jax.random.key(0), batch, frozen)
    ctx = Context(jnp.int32(0), jax.random.key(1), extra=extra, frozen=frozen)
    images = model.sample({}, ctx, keys_of(20), {"label": batch["label"]})
    assert images.shape == (20, 8, 8, 1)
    with pytest.raises(UserError, match="class_conditional is False, but the autoencoder, vae, needs the class"):
        make_model(CONFIG, DIGITS, {"autoencoder": below})


def encode(params, ctx, keys, x, cond):
    return x.astype(jnp.float32)  # (B, 8, 8, 1): not (n, d)


@pytest.mark.parametrize(
    "below,words",
    [
        (GenerativeModel("classifier", DIGITS, None, ()), "is a classifier, which does not encode and decode"),
        (
            GenerativeModel("vq", DIGITS, None, (), encode=encode, decode=encode, codes=(ImageSpec(4, 4, 1, 8),)),
            "is a vq, whose codes are discrete: configs/vae/vq_prior.py",
        ),
        (
            GenerativeModel("other", data_of(4, 4, 1, 17), None, (), encode=encode, decode=encode),
            "was trained on ImageSpec",
        ),
    ],
)
def test_models_that_it_cannot_stand_on(below, words):
    with pytest.raises(UserError, match="^frozen.autoencoder [^\n]*$") as caught:
        make_model(CONFIG, DIGITS, {"autoencoder": below})
    assert words in str(caught.value)


def test_codes_that_are_not_one_vector_are_refused():
    below = GenerativeModel("grid", DIGITS, None, (), encode=encode, decode=encode)
    model = make_model(CONFIG, DIGITS, {"autoencoder": below})
    with pytest.raises(UserError, match=r"is a grid, whose codes are not one array \(n, d\)"):
        model.init(jax.random.key(0), batch_of(0, 8), {"autoencoder": FrozenModel({}, {})})


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"components": 0}, "components is 0"),
        ({"power": 1.5}, "power is 1.5: it must be from 0 to 1"),
        ({"covariance_floor": 0.0}, "covariance_floor is 0.0"),
        ({"sampling": latent_density.Sampling(0.0)}, "temperature is 0.0.*--model.sampling.temperature"),
    ],
)
def test_options_out_of_range(changes, words):
    with pytest.raises(UserError, match=words):
        make_model(replace(CONFIG, **changes), DIGITS, {"autoencoder": make_model(LINEAR, DIGITS)})
