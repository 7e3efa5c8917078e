"""AUROC by scikit-learn, code lengths by their order, calibration by hand; Bayes' rule of Gaussians in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import mistake
from gaussians import PROCESSES, keys_of, mixture
from sklearn.metrics import roc_auc_score
from specs import data_of

from jgen.core.model import Context
from jgen.experiment import Experiment, make_model
from jgen.generator import Generator
from jgen.metrics.decisions import auroc, calibration_error
from jgen.models.classical.gaussian_mixture import Config
from jgen.prob.anomaly import code_lengths
from jgen.samplers.denoising_error import denoising_error

DATA = data_of(2, 2, 1, 256, num_classes=3)
KEY = jax.random.key(0)


def test_the_area_is_that_of_scikit_learn():
    gen = np.random.default_rng(0)
    own, others = gen.integers(0, 20, 200), gen.integers(5, 25, 70)  # with ties
    wanted = roc_auc_score(np.r_[np.zeros(200), np.ones(70)], np.r_[own, others])
    assert auroc(own, others) == pytest.approx(wanted, abs=1e-12)
    mistake(lambda: auroc(own, others[:0]), "200 and 0 scores")


def test_flat_images_have_shorter_codes_than_noise():
    noise = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    assert np.all(code_lengths(np.full_like(noise, 7)) < code_lengths(noise))
    mistake(lambda: code_lengths(noise[..., :2]), "images have 2 channels")


def test_calibration_by_hand():
    """Two of three at a confidence of 0.8 are right, one of one at 0.6."""
    p = np.array([[0.8, 0.2], [0.8, 0.2], [0.2, 0.8], [0.6, 0.4]])
    assert calibration_error(np.log(p), np.array([0, 0, 0, 0])) == pytest.approx((abs(2 - 2.4) + abs(1 - 0.6)) / 4)


def of_gaussians():
    """A generator of images of 2x2 pixels, a Gaussian per class, and what it is made of."""
    gen = np.random.default_rng(0)
    config = Config(components=1, covariance="full", logit_alpha=0.0, covariance_floor=1e-9)
    model = make_model(config, DATA)
    means, maps = gen.normal(size=(3, 4)), gen.normal(size=(3, 4, 4)) / 4 + 0.5 * np.eye(4)
    matrices = maps @ maps.transpose(0, 2, 1)
    total = np.full(3, 1 / 3)
    mixture = {
        "weight": jnp.float32(np.diag(total)),
        "first": jnp.float32(means / 3),
        "second": jnp.float32((matrices + means[:, :, None] * means[:, None, :]) / 3),
    }
    units = {"mean": jnp.zeros(4), "std": jnp.full(4, 0.1)}
    ctx = Context(jnp.int32(0), None, {}, {"mixture": mixture, "units": units})
    return Generator(model, {}, ctx, Experiment(config), 0), means * 0.1, matrices * 0.01


def test_bayes_rule_of_gaussians_is_the_closed_form():
    """In 256 levels the noise of dequantisation is far below the Gaussians' width."""
    gen, means, matrices = of_gaussians()
    images = np.random.default_rng(1).integers(100, 156, (200, 2, 2, 1), np.uint8)
    x = (images.reshape(200, 4) + 0.5) / 256 - 0.5
    prior = np.array([0.2, 0.5, 0.3])
    joint = np.stack([scipy.stats.multivariate_normal(m, S).logpdf(x) for m, S in zip(means, matrices)], axis=1)
    joint += np.log(prior)
    wanted = joint - scipy.special.logsumexp(joint, axis=1, keepdims=True)
    ours = gen.class_log_probs(KEY, images, prior=prior, samples=64)
    np.testing.assert_allclose(np.exp(ours), np.exp(wanted), atol=0.02)
    np.testing.assert_array_equal(gen.classify(KEY, images, prior=prior, samples=64), ours.argmax(axis=1))
    assert set(gen.classify(KEY, images, prior=[0, 1, 0])) == {1}
    mistake(lambda: gen.classify(KEY, images, prior=[0.5, 0.5]), "prior is [0.5, 0.5]: it must be 3 probabilities")
    mistake(lambda: gen.classify(KEY, images, by="density"), "by is 'density'")


def test_anomaly_scores_are_what_their_names_say():
    gen, *_ = of_gaussians()
    images = np.random.default_rng(1).integers(100, 156, (20, 2, 2, 1), np.uint8)
    by_class = np.stack([gen.log_prob(KEY, images, label=c) for c in range(3)])
    nats = -np.logaddexp.reduce(np.float64(by_class) - np.log(3), axis=0)
    np.testing.assert_allclose(gen.anomaly_score(KEY, images), nats, rtol=1e-6)
    np.testing.assert_allclose(gen.anomaly_score(KEY, images, label=1), -by_class[1], rtol=1e-6)
    bits = nats / np.log(2) - code_lengths(images)
    np.testing.assert_allclose(gen.anomaly_score(KEY, images, "complexity"), bits, rtol=1e-6)
    typical = gen.anomaly_score(KEY, images, "typicality", reference=images)
    np.testing.assert_allclose(typical, np.abs(nats - nats.mean()), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gen.anomaly_score(KEY, images, "ratio", background=gen), 0.0, atol=1e-9)
    mistake(lambda: gen.anomaly_score(KEY, images, "typicality"), "reference is missing")
    mistake(lambda: gen.anomaly_score(KEY, images, "ratio"), "background is missing")
    mistake(lambda: gen.anomaly_score(KEY, images, "surprise"), "kind is 'surprise'")


def test_the_classes_that_denoising_errors_tell_are_those_of_the_closed_form():
    """Two Gaussians by their exact denoisers: bounds differ as the log-densities do, but for noise."""
    process, n = PROCESSES["cosine"], 300
    S, means = 0.04 * np.array([[1, 0.5], [0.5, 1]]), np.array([[0.2, 0.1], [-0.2, 0.0]])
    x = np.random.default_rng(0).multivariate_normal(means[0], S, n).astype(np.float32)
    truth = [scipy.stats.multivariate_normal(m, S).logpdf(x) for m in means]

    def error(mean):
        denoiser = mixture(process, np.ones(1), mean[None], S)
        return denoising_error(denoiser, process, x.reshape(n, 1, 2, 1), keys_of(n), 256, times=200)

    difference = np.subtract(*(np.asarray(jax.jit(lambda m=mean: error(m))()) for mean in means))
    assert np.mean(np.sign(difference) == np.sign(truth[1] - truth[0])) > 0.95
    assert difference.mean() == pytest.approx(np.mean(truth[1] - truth[0]), rel=0.1)
