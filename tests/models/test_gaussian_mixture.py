"""The mixture over pixels: its fit and density by scikit-learn's, its classes, its completions, its options."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture
from specs import data_of

from jgen.core import keys as rng
from jgen.core.model import Context
from jgen.errors import UserError
from jgen.experiment import make_model
from jgen.models.classical import gaussian_mixture
from jgen.models.classical.gaussian_mixture import Config, Sampling, Scoring
from jgen.prob import gaussian_mixture as gm
from jgen.prob.dequantisation import dequantise

DIGITS = data_of(8, 8, 1, 17, num_classes=10)
CONFIG = Config(components=3, covariance="full", power=0.0, covariance_floor=0.1, class_conditional=False)
N = 600


def keys_of(n, seed=0):
    return rng.image_keys(jax.random.key(seed), jnp.arange(n))


def batch_of(n=N):
    digits = load_digits()
    return {"image": digits.images[:n].astype(np.uint8)[..., None], "label": digits.target[:n].astype(np.int32)}


def fit(config, steps, batch):
    """The model, its context before and after EM on all images with one draw of their noise, and bits/dim before each
    step."""
    model = make_model(config, DIGITS)
    _, start = jax.jit(model.init)(jax.random.key(1), batch, {})

    def step(extra, number):
        ctx = Context(number, jax.random.key(0), extra=extra)
        value, (_, new) = model.phases[0].loss({}, ctx, keys_of(len(batch["image"])), batch)
        return {**extra, **new}, value

    extra, values = jax.jit(lambda extra: jax.lax.scan(step, extra, jnp.arange(steps)))(start)
    contexts = (Context(jnp.int32(0), jax.random.key(0), extra=each) for each in (start, extra))
    return model, *contexts, np.asarray(values)


@pytest.fixture(scope="module")
def fitted():
    return fit(CONFIG, 40, batch_of())


@pytest.mark.slow
def test_the_fit_has_the_likelihood_of_scikit_learns(fitted):
    """Of the same dequantised images, from the same start by k-means: within 0.1 %, and never falling."""
    model, start, ctx, values = fitted
    assert values[-1] < values[0] and np.all(np.diff(values) < 1e-5)
    pixels = gaussian_mixture.Pixels(CONFIG, DIGITS.image, gm.full(), (), 1)
    x = dequantise(keys_of(N), batch_of()["image"])
    z, log_det = map(np.asarray, gaussian_mixture.standardised(pixels, ctx, x))
    first = gaussian_mixture.mixture_in(pixels, start)
    precisions = np.linalg.inv(np.float64(gm.full().matrices(first)))
    given = {"means_init": first.means, "precisions_init": precisions, "weights_init": np.full(3, 1 / 3)}
    peer = GaussianMixture(3, reg_covar=0.1, **given).fit(z)
    ours = np.asarray(model.log_density({}, ctx, keys_of(N), x, {}))
    assert peer.converged_ and ours.mean() == pytest.approx(peer.score(z) + log_det.mean(), rel=1e-3)


def test_completions_keep_what_is_kept_and_follow_it(fitted):
    model, _, ctx, _ = fitted
    images = batch_of(40)["image"]
    mask = np.broadcast_to(np.arange(8)[:, None] < 4, (40, 8, 8))
    made = np.asarray(jax.jit(lambda: model.inpaint({}, ctx, keys_of(40, 3), images, mask, {}))())
    np.testing.assert_array_equal(made[mask], images[mask])
    error = np.square(np.float32(made) - images)[~mask].mean()
    assert error < 0.75 * np.square(np.float32(np.roll(made, 1, axis=0)) - images)[~mask].mean()


@pytest.mark.slow
def test_samples_of_a_class_are_likeliest_under_it():
    config = replace(CONFIG, components=2, covariance="low_rank", rank=4, class_conditional=True)
    model, _, ctx, _ = fit(config, 20, batch_of(1200))
    label = np.arange(200, dtype=np.int32) % 10
    images = np.asarray(jax.jit(lambda: model.sample({}, ctx, keys_of(200), {"label": label}))())
    log_prob = jax.jit(lambda label: model.log_prob({}, ctx, keys_of(200), images, {"label": label}))
    scores = np.stack([log_prob(np.full(200, each, np.int32)) for each in range(10)])
    assert images.dtype == np.uint8 and images.max() <= 16 and np.mean(np.argmax(scores, axis=0) == label) > 0.9


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"components": 0}, "components is 0"),
        ({"covariance": "low_rank", "rank": 65}, "rank is 65: it must be from 1 to 64, the pixels of an image"),
        ({"power": -0.5}, "power is -0.5: it must be from 0 to 1"),
        ({"covariance_floor": 0.0}, "covariance_floor is 0.0"),
        ({"logit_alpha": 0.5}, "logit_alpha is 0.5"),
        ({"sampling": Sampling(0.0)}, "temperature is 0.0.*--model.sampling.temperature"),
        ({"scoring": Scoring(0)}, "samples is 0.*--model.scoring.samples"),
    ],
)
def test_options_out_of_range(changes, words):
    with pytest.raises(UserError, match=words):
        make_model(replace(CONFIG, **changes), DIGITS)


def test_more_components_than_images():
    model = make_model(replace(CONFIG, components=9), DIGITS)
    with pytest.raises(UserError, match="^components is 9: a batch has 8 images, from which they start$"):
        model.init(jax.random.key(0), batch_of(8), {})
